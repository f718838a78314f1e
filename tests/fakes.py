"""The core's two sides in memory, on a fake clock: VK, a bus, and fetchers between them."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Self

from fetcher import config
from fetcher.bus.bus import SCRIPTS
from fetcher.bus.bus import Bus as RealBus
from fetcher.core.backlog import Pending
from fetcher.core.history import Answer, Name, Outcome, Position
from fetcher.core.relay import Relay
from fetcher.errors import Failure, RedisTimeout, RedisUnavailable, TransientError
from fetcher.events import Event, Message, Peer, User
from fetcher.vk.entries import EntryBuilder
from tests import net
from tests.simulation.store import Store as InMemory
from tests.vk import history

PERSON, CHAT = 5, 2_000_000_007
REDIS_DOWN = RedisUnavailable("Redis is unavailable (ConnectionError)")
VK_DOWN = TransientError("VK error 10")


class Stop(BaseException):
    """Ends a run; it is not an Exception, because the loop catches every Exception."""


class Clock(net.Clock):
    """A clock that calls `before_sleep` before each sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.before_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.before_sleep()
        super().sleep(seconds)


def update(id: str, **more: Any) -> dict[str, Any]:
    """Make an update for the fake VK.

    `user` is who caused it, `date` its time, and `size` the length of its text. `malformed` makes it a dead letter, and
    with `ignored` it gives no event.
    """
    return {"type": "message_new", "event_id": id, "user": PERSON, "object": {"date": more.pop("date", 0)}} | more


def answer(since: int, until: int, *ids: str, gap: str = "", **more: Any) -> Answer:
    """Make VK's answer to a poll at `since`, or after a gap that ends at `since`."""
    return Answer(since, until, [update(id, **more) for id in ids], gap=gap)


def numbers(count: int, first: int = 0) -> list[str]:
    """Return ids that are successive numbers."""
    return [str(number) for number in range(first, first + count)]


# VK


class History(history.History):
    """VK's history, to which updates may be added at a steady rate; a gap ends at the oldest ts that can be polled."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(ts=10)
        self.clock = clock
        self.rate, self.flows_since, self.flowed = 0.0, 0.0, 0

    def push(self, *updates: Any) -> None:
        """Add updates; a string is the id of one."""
        self.add(*(update(one) if isinstance(one, str) else one for one in updates))

    def flow(self, rate: float) -> None:
        """Let this many updates arrive every second from now on; their ids are numbers from 0."""
        self.rate, self.flows_since = rate, self.clock.now

    def arrive(self) -> None:
        """Add the updates that have arrived since the last call."""
        total = max(self.flowed, int((self.clock.now - self.flows_since) * self.rate))
        self.push(*numbers(total - self.flowed, self.flowed))
        self.flowed = total

    def poll(self, ts: int, wait: float) -> Answer:
        """Answer a poll; after a gap, return the updates at its end."""
        self.arrive()
        if ts == self.ts:
            self.clock.now += min(wait, 1 / self.rate if self.rate else wait)
            self.arrive()
        self.clock.now += 0.01
        gap = ""
        if "failed" in self.answer_at(ts, self.ts):
            gap, ts = "forgotten", self.oldest
        answer = self.answer_at(ts, self.ts)
        return Answer(ts, answer["ts"], answer["updates"], 1000 * len(answer["updates"]), gap)


class VK:
    """One fetcher's VK: its long poll, full messages and names.

    Polls are answered from the script first, then from the history; an exception in the script is raised.
    """

    def __init__(self, history: History) -> None:
        self.history, self.clock = history, history.clock
        self.script: list[Answer | Exception] = []
        self.polls: list[tuple[float, int, int]] = []  # when, at which ts, and `wait`
        self.before_poll: list[Callable[[], None]] = []
        self.start_failure: Exception | None = None
        self.renewals: list[int] = []  # the ts of the next new keys; later keys have that of the history
        self.renewed = 0
        self.full_failure: Failure = None  # of requests for full messages
        self.names_failure: Failure = None  # of whole lookups of names
        self.unnamed: set[int] = set()  # ids whose names VK does not return now
        self.looked_up: list[set[int]] = []

    @property
    def waits(self) -> list[int]:
        return [wait for _, _, wait in self.polls]

    @property
    def polled_at(self) -> list[int]:
        return [ts for _, ts, _ in self.polls]

    def renew(self) -> int:
        if self.start_failure:
            raise self.start_failure
        self.renewed += 1
        return self.renewals.pop(0) if self.renewals else self.history.ts

    def poll(self, ts: int, wait: int) -> Answer:
        for call in self.before_poll:
            call()
        self.polls.append((self.clock.now, ts, wait))
        answer = self.script.pop(0) if self.script else self.history.poll(ts, wait)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def full_messages(self, places: Iterable[tuple[int, int]]) -> tuple[dict[tuple[int, int], Any], Failure]:
        return {}, self.full_failure

    def names(self, ids: Iterable[int]) -> tuple[dict[int, Name], Failure]:
        if not ids:
            return {}, None
        self.looked_up.append(set(ids))
        if self.names_failure:
            return {}, self.names_failure
        failure = VK_DOWN if self.looked_up[-1] & self.unnamed else None
        return {id: Name(f"name of {id}") for id in self.looked_up[-1] - self.unnamed}, failure


# The bus


class Store:
    """What a Redis holds: the real commit.lua runs on Redis data in memory."""

    def __init__(self) -> None:
        self.redis = InMemory()
        self.bus = RealBus(config.parse({}, ()))
        self.bus.run_script = self.run_script  # type: ignore[method-assign]
        self.names: dict[int, Name] = {}

    def run_script(self, name: str, keys: list[str], *arguments: Any) -> Any:
        return self.redis.run(SCRIPTS[name], keys, list(arguments))

    @property
    def checkpoint(self) -> Position | None:
        return Position.parse(self.redis.checkpoint) if self.redis.checkpoint else None

    @checkpoint.setter
    def checkpoint(self, checkpoint: Position | None) -> None:
        self.redis.checkpoint = str(checkpoint or "")

    @property
    def seen(self) -> list[str]:
        """The ids in `seen`, the oldest first."""
        return list(self.redis.seen)

    def remember(self, *ids: str) -> None:
        """Make these the only ids in `seen`."""
        self.redis.seen = {id: number for number, id in enumerate(ids, 1)}

    @property
    def ids(self) -> list[str]:
        """The ids of the stream's events."""
        return [id for id, _ in self.redis.stream]

    @property
    def users(self) -> list[str]:
        """The users' names in the stream's events."""
        return [json.loads(text)["user"]["name"] for _, text in self.redis.stream]

    @property
    def dead(self) -> list[dict[str, str]]:
        """The fields of the dead letters."""
        return [record.fields for record in self.redis.dead]

    def copy(self) -> "Store":
        """Return a copy, as a replica has."""
        replica = Store()
        replica.become(self)
        return replica

    def become(self, other: "Store") -> None:
        """Hold what another store holds, as after a failover."""
        mine, theirs = self.redis, other.redis
        mine.checkpoint, mine.seen, self.names = theirs.checkpoint, dict(theirs.seen), dict(other.names)
        mine.stream, mine.dead, mine.published = [*theirs.stream], [*theirs.dead], [*theirs.published]

    def read(self, ids: Iterable[str], start: Position | None) -> tuple[Position | None, set[str]]:
        if start:
            self.redis.set_if_missing(str(start))
        return self.checkpoint, {id for id in ids if id not in self.redis.seen}

    def commit(self, commit: Pending) -> Outcome:
        return self.bus.commit(commit)


class Bus:
    """One fetcher's connection to the store; it fails, loses replies and takes time as a test demands."""

    names_ttl = 600

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.is_connected = False
        self.failure: Exception | None = None  # raised by every request
        self.commit_failure: Exception | None = None  # raised by commits only
        self.read_failure: Exception | None = None  # raised by reads of the checkpoint only
        self.lost_replies = 0  # how many of the next commits lose their reply
        self.timeout = 5.0  # seconds; a commit that takes longer is executed all the same
        self.cost: Callable[[Pending], float] = lambda commit: 0.001  # seconds that a commit takes
        self.on_request: Callable[[], None] = lambda: None
        self.on_commit: Callable[[Pending], None] = lambda commit: None
        self.on_read_names: Callable[[], None] = lambda: None  # it may break the connection
        self.on_beat: Callable[[], None] = lambda: None
        self.commits: list[Pending] = []
        self.reads: list[list[str]] = []  # the ids that were looked up
        self.beats: list[float] = []

    def disconnect(self) -> None:
        self.is_connected = False

    def request(self, failure: Exception | None = None) -> None:
        self.on_request()
        if failure := self.failure or failure:
            self.clock.now += 0.01
            raise failure

    def read(self, ids: list[str], start: Position | None) -> tuple[Position | None, set[str]]:
        self.request(self.read_failure)
        self.reads.append(ids)
        return self.store.read(ids, start)

    def beat(self) -> None:
        self.request()
        self.on_beat()
        self.beats.append(self.clock.now)

    def commit(self, commit: Pending) -> Outcome:
        self.request(self.commit_failure)
        self.on_commit(commit)
        self.commits.append(replace(commit))  # a copy, because the backlog may split it later
        outcome = self.store.commit(commit)
        took = self.cost(commit)
        self.clock.now += min(took, self.timeout)
        if took > self.timeout:
            raise RedisTimeout("Redis is unavailable (TimeoutError)")
        if self.lost_replies:
            self.lost_replies -= 1
            raise REDIS_DOWN
        return outcome

    def names(self, ids: Iterable[int]) -> dict[int, Name]:
        if not ids or not self.is_connected:
            return {}
        self.request()
        self.on_read_names()
        return {id: self.store.names[id] for id in ids if id in self.store.names}

    def cache_names(self, names: Mapping[int, Name]) -> None:
        if self.is_connected:
            self.request()
            self.store.names |= names


# A fetcher


class Entries(EntryBuilder):
    """The real builder, for the updates that are made here."""

    def __init__(self, vk: Any, bus: Bus) -> None:
        super().__init__(vk, bus, 1, "/", raw=False)

    def event_of(self, update: Any) -> Event | None:
        if "malformed" in update:
            raise ValueError(update["malformed"])
        if "ignored" in update:
            return None
        message = Message(1, "x" * update.get("size", 0), None, [], [])
        user, peer = User(update["user"], "", "", "", ""), Peer(CHAT, 7, "")
        return Event("message", update["event_id"], user, peer, message=message)


class Fetcher:
    """A loop and everything around it; several fetchers may share a history, a store and a clock."""

    def __init__(self, history: History, store: Store, poll_wait: int = 25) -> None:
        self.history, self.store, self.clock = history, store, history.clock
        self.poll_wait = poll_wait
        self.restart()

    def restart(self) -> None:
        """Start again as a new process does, with nothing in memory."""
        self.vk, self.bus, self.metrics = VK(self.history), Bus(self.store, self.clock), net.Metrics()
        self.relay = Relay(self.vk, Entries(self.vk, self.bus).build, self.bus, self.poll_wait, self.metrics)

    @property
    def held(self) -> int:
        """How many updates in memory are not on the bus."""
        return self.relay.backlog.count

    @property
    def is_settled(self) -> bool:
        """Whether everything that VK has is on the bus."""
        return bool(
            not self.relay.backlog.pending
            and self.bus.is_connected
            and self.store.checkpoint
            and self.store.checkpoint.ts == self.history.ts
        )

    def run(self, until: Callable[[], bool], limit: float = 600) -> Self:
        """Run until the condition holds before a poll or a pause; fail if that takes longer than `limit` seconds."""
        end = self.clock.now + limit

        def check() -> None:
            if until() or self.clock.now > end:
                raise Stop

        self.clock.before_sleep = check
        self.vk.before_poll.append(check)
        try:
            self.relay.run()
        except Stop:
            assert until(), "it goes on too long"
            return self
        finally:
            self.vk.before_poll.remove(check)
            self.clock.before_sleep = lambda: None

    def run_for(self, seconds: float) -> Self:
        """Run for this many seconds."""
        end = self.clock.now + seconds
        return self.run(lambda: self.clock.now >= end, seconds + 200)

    def poll(self, times: int = 1) -> Self:
        """Run until this many polls are answered, and everything that follows each of them is done."""
        total = len(self.vk.polls) + times
        return self.run(lambda: len(self.vk.polls) >= total)

    def settle(self) -> Self:
        """Run until everything that VK has is on the bus."""
        return self.run(lambda: self.is_settled)
