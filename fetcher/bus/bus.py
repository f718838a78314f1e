"""The bus in Redis: its names, the checkpoint, the commit, the cache of names and the heartbeat."""

import json
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from redis import AuthenticationError, Redis, RedisCluster, RedisError, ResponseError, TimeoutError
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.exceptions import NoPermissionError, RedisClusterException
from redis.retry import Retry

from ..core.backlog import DEDUP_WINDOW
from ..core.batch import Commit, Entry, utf8
from ..core.names import Name
from ..errors import FatalError, RedisTimeout, RedisUnavailable
from ..events import channel
from .connection import connect

TIMEOUT = 1  # seconds, to connect and for each answer: the loop alone retries
SLOWEST_LINK = 2**17  # bytes per second: so much time more does a commit get for its size
DEAD_LETTERS = 10_000  # about so many are kept
UNKNOWN_TTL = 60  # seconds: who has no name at VK today may have one soon
DENIED = ("NOPERM", "ACL failure", "can't run this command")  # how a permission is refused inside a script
COMMIT = Path(__file__).with_name("commit.lua").read_text(encoding="utf-8")


class Bus:
    """One community's part of the bus.

    Methods raise RedisUnavailable while Redis is, RedisTimeout if it is too slow, and FatalError for what the operator
    must fix. `reconnected` is set whenever a new connection is made: what was committed lately may be lost.
    """

    def __init__(self, url: str, bus: str, group: int, stream_maxlen: int, names_ttl: int, alive_ttl: int) -> None:
        """Connect to nothing yet; `names_ttl` and `alive_ttl` are in seconds."""
        own = f"{{{bus}}}"  # the hash tag keeps all keys in the stream's slot of a cluster
        self.url, self.bus, self.stream_maxlen = url, bus, stream_maxlen
        self.names_ttl, self.alive_ttl = names_ttl, alive_ttl
        self.checkpoint_key = f"{own}:ts:{group}"
        self.keys = [self.checkpoint_key, f"{own}:seen:{group}", bus, f"{own}:dead-letter"]
        self.name_keys = f"{own}:name:"
        self.alive_key = f"{own}:alive:{group}:{socket.gethostname()}"
        self.reconnected = True
        self.clients: dict[int, Redis | RedisCluster] = {}
        self.connected = {TIMEOUT}  # the clients whose next connection replaces another

    def client(self, timeout: int = TIMEOUT) -> Redis | RedisCluster:
        """Return the client whose answers may take so many seconds."""
        if timeout not in self.clients:
            self.clients[timeout] = connect(
                self.url,
                on_connect=partial(self._note_connection, timeout),
                decode_responses=True,
                encoding_errors="replace",
                protocol=2,
                socket_timeout=timeout,
                socket_connect_timeout=TIMEOUT,
                retry=Retry(NoBackoff(), 0),
            )
        return self.clients[timeout]

    def _note_connection(self, timeout: int) -> None:
        """Note a new connection that replaces another; `commit` sees to the first one of a further client."""
        self.reconnected = self.reconnected or timeout in self.connected

    @cached_property
    def script(self) -> Script:
        """The commit, loaded into the server when it does not know it."""
        return self.client().register_script(COMMIT)

    def checkpoint(self, start_ts: str = "") -> str:
        """Return the ts up to which everything is on the bus, "" for none; `start_ts` becomes it where none is."""
        with translate_errors():
            if start_ts:
                self.client().set(self.checkpoint_key, start_ts, nx=True)
            stored = self.client().get(self.checkpoint_key)
            self.reconnected = False
        return self._checked(str(stored or ""))

    def commit(self, commit: Commit) -> str:
        """Commit all or nothing, and return the checkpoint as it is afterwards, "" if there is none.

        What the answer means stands in backlog.py. https://redis.io/docs/latest/develop/programmability/eval-intro/
        """
        events = [entry for entry in commit.entries if isinstance(entry, Entry)]
        letters = [entry for entry in commit.entries if not isinstance(entry, Entry)]
        arguments: list[Any] = [commit.kind, commit.since, commit.until, commit.keep]
        arguments += [DEDUP_WINDOW, self.stream_maxlen, DEAD_LETTERS, len(events)]
        for event in events:
            arguments += [utf8(event.id), utf8(channel(self.bus, event.event_type)), event.text]
        arguments.append(len(letters))
        for letter in letters:
            arguments += [utf8(letter.id), 2 * len(letter.fields)]
            arguments += [utf8(part) for field in letter.fields.items() for part in field]
        timeout = TIMEOUT << (commit.size // SLOWEST_LINK).bit_length()  # few different ones: each has its connection
        with translate_errors():
            stored = self.script(self.keys, arguments, client=self.client(timeout))
            if timeout not in self.connected:  # its first connection: the other ones may be to a server of before
                self.client().get(self.checkpoint_key)
                self.connected.add(timeout)
        return self._checked(stored)

    def _checked(self, stored: str) -> str:
        if stored and not (stored.isascii() and stored.isdigit()):
            raise FatalError(
                f"Redis: {self.checkpoint_key} holds no ts of VK's; delete this key to begin with VK's newest events"
            )
        return stored

    def names(self, ids: Iterable[int]) -> dict[int, Name]:
        """Return the cached names of those ids that the cache has."""
        ids = list(ids)
        if not ids or not self.names_ttl:
            return {}
        with translate_errors():
            cached: Any = self.client().mget([f"{self.name_keys}{id}" for id in ids])
        try:
            found = json.loads(f"[{','.join(text or 'null' for text in cached)}]")  # all at once: it is the faster way
            return {id: Name(*map(str, name)) for id, name in zip(ids, found, strict=True) if name}
        except (ValueError, TypeError):
            return {}  # put there by somebody else: VK's answer will replace it

    def cache_names(self, names: Mapping[int, Name]) -> None:
        """Put names into the cache, for `names_ttl` seconds; those that VK does not tell for a minute at most."""
        if not names or not self.names_ttl:
            return
        with translate_errors(), self.client().pipeline(transaction=False) as pipeline:
            for id, name in names.items():
                ttl = self.names_ttl if any(name) else min(UNKNOWN_TTL, self.names_ttl)
                pipeline.set(f"{self.name_keys}{id}", json.dumps(name), ex=ttl)
            pipeline.execute()

    def beat(self) -> None:
        """Set the heartbeat of this host's fetcher."""
        with translate_errors():
            self.client().set(self.alive_key, int(time.time()), ex=self.alive_ttl)

    def alive(self) -> bool:
        """Tell whether this host's fetcher of this community has polled VK lately."""
        with translate_errors():
            return bool(self.client().exists(self.alive_key))


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise what redis-py raises as RedisUnavailable or FatalError, in words that hold neither address nor password."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        text, kind = str(error), type(error).__name__
        code = text.partition(" ")[0]
        if isinstance(error, AuthenticationError) or code in ("WRONGPASS", "NOAUTH"):
            raise FatalError("Redis refuses the user or the password: fix REDIS_URL") from None
        if isinstance(error, NoPermissionError) or any(mark in text for mark in DENIED):
            raise FatalError(
                "Redis refuses a permission: give the user of REDIS_URL the ACL rules of docs/operations.md"
            ) from None
        if code == "WRONGTYPE":
            raise FatalError(
                "Redis: a key of the bus is of another type; choose another BUS or delete the key"
            ) from None
        if "DB index is out of range" in text or "SELECT is not allowed" in text:
            raise FatalError("Redis does not have the database of REDIS_URL: choose another number") from None
        said = code if isinstance(error, ResponseError) and re.fullmatch("[A-Z]+", code) else kind
        unavailable = RedisTimeout if isinstance(error, TimeoutError) else RedisUnavailable
        raise unavailable(f"Redis is unavailable ({said})") from None
