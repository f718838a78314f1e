"""Redis in memory: the keys of one bus, and the commands that the fetcher sends. commit.lua is the real one."""

import functools
import itertools
import json
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from lupa.lua51 import LuaRuntime
from redis.exceptions import ResponseError

LUA = LuaRuntime(unpack_returned_tuples=True)  # as in Redis: Lua 5.1


@functools.cache
def compiled(script: str) -> Any:
    """Return the script as a function of KEYS, ARGV and redis."""
    return LUA.execute(f"return function(KEYS, ARGV, redis) {script}\nend")


class Record(NamedTuple):
    """A dead letter."""

    fields: dict[str, str]

    def get(self, name: str) -> str | None:
        return self.fields.get(name)


class Copy(NamedTuple):
    """The state at one moment; the lists only grow, so their lengths are enough."""

    checkpoint: str
    lengths: tuple[int, int, int]
    seen: dict[str, int]


class Store:
    """The keys of one bus."""

    def __init__(self) -> None:
        self.checkpoint = ""
        self.seen: dict[str, int] = {}  # ids, in the order of their scores
        self.stream: list[tuple[str, str]] = []  # event_id, JSON
        self.dead: list[Record] = []
        self.published: list[tuple[str, str]] = []  # channel, JSON
        self.allows: Callable[[], bool] = lambda: True  # whether the server grants the permissions that a script checks
        me = weakref.proxy(self)  # neither Lua's garbage collector nor Python's sees a cycle through both
        may = {"call": lambda *command: me.call(*command), "acl_check_cmd": lambda *command: me.allows()}
        self.redis = LUA.table_from({**may, "error_reply": lambda text: LUA.table_from({"err": text})})

    def copy(self) -> Copy:
        return Copy(self.checkpoint, (len(self.stream), len(self.dead), len(self.published)), dict(self.seen))

    def restore(self, copy: Copy) -> None:
        self.checkpoint, (stream, dead, published), self.seen = copy.checkpoint, copy.lengths, dict(copy.seen)
        del self.stream[stream:], self.dead[dead:], self.published[published:]

    def empty(self) -> None:
        self.checkpoint = ""
        for key in (self.seen, self.stream, self.dead, self.published):
            key.clear()

    def set_if_missing(self, checkpoint: str) -> None:
        self.checkpoint = self.checkpoint or checkpoint

    def run(self, script: str, keys: list[str], arguments: list[Any]) -> list[Any]:
        """Run the script and return its answer; raise ResponseError if the answer is an error."""
        argv = [one if isinstance(one, bytes | str) else str(one) for one in arguments]
        answer = dict(compiled(script)(LUA.table_from(keys), LUA.table_from(argv), self.redis))
        if "err" in answer:
            raise ResponseError(answer["err"])
        return [answer[1], list(answer[2].values()), answer[3]]

    def call(self, command: str, key: str, *arguments: Any) -> Any:
        """Execute a script's command, and return the answer in Lua's types."""
        match command:
            case "GET":
                return self.checkpoint or False
            case "SET":
                self.checkpoint = arguments[0]
            case "TYPE":
                return LUA.table_from({"ok": "stream"})
            case "ZADD":
                _, score, id = arguments
                if id in self.seen:
                    return 0
                if score:
                    self.seen[id] = score
                else:  # ids with the same score are in alphabetical order
                    zeros = itertools.takewhile(lambda one: not self.seen[one], self.seen)
                    self.seen = dict.fromkeys(sorted([id, *zeros]), 0) | self.seen
                return 1
            case "ZREVRANGE":
                first, last, *with_scores = arguments
                latest = self.latest(int(first), int(last))
                return LUA.table_from(
                    [part for id in latest for part in (id, str(self.seen[id]))[: 1 + len(with_scores)]]
                )
            case "ZREMRANGEBYRANK":
                first, last = map(int, arguments)
                for id in list(self.seen)[first : max(0, len(self.seen) + 1 + last)]:
                    del self.seen[id]
            case "XADD":
                fields = arguments[4:]
                if key.endswith(":dead-letter"):
                    self.dead.append(Record(dict(zip(fields[::2], fields[1::2], strict=True))))
                else:
                    self.stream.append((json.loads(fields[1])["event_id"], fields[1]))
            case "PUBLISH":
                self.published.append((key, arguments[0]))
        return None

    def latest(self, first: int, last: int) -> list[str]:
        """Return ids of `seen`, the latest first."""
        return list(itertools.islice(reversed(self.seen), first, last + 1))
