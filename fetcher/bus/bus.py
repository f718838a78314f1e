"""The bus in Redis: its keys, the checkpoint, commits, the heartbeat, and the names that all fetchers share."""

import socket
import time
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from redis import Redis, RedisCluster

from ..config import Config
from ..core.backlog import DEDUP_WINDOW, Pending
from ..core.history import Entry, Name, Outcome, Position
from ..errors import ConnectionReplaced, RedisFatalError
from ..events import channel
from ..fastjson import dumps, loads, utf8
from .connection import connect, redis_errors

DEAD_LETTERS = 10_000  # how many are kept, approximately
ALIVE_TTL = 30  # seconds that a heartbeat lasts in addition to POLL_WAIT
UNKNOWN_TTL = 60  # seconds for which it is cached that VK has no name for an id: VK may have one soon
SCRIPTS = {path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.lua")}


class Bus:
    """One community's part of the bus.

    Methods raise RedisUnavailable if Redis cannot be reached or refuses the request for now, RedisTimeout if it does
    not answer in time, RedisFatalError for what only the operator can fix, and ConnectionReplaced. `is_connected` is
    False at the start, after a failure and on a new connection, because the bus may have lost something; the loop sets
    it to True when it has read what the bus has.
    """

    def __init__(self, settings: Config) -> None:
        """Connect to nothing yet."""
        self.settings, self.name, self.names_ttl, group = settings, settings.bus, settings.names_ttl, settings.group
        self.prefix = f"{{{self.name}}}"  # the hash tag keeps all keys in the stream's slot of a cluster
        self.checkpoint_key, self.seen_key = f"{self.prefix}:ts:{group}", f"{self.prefix}:seen:{group}"
        self.keys = [self.checkpoint_key, self.seen_key, self.name, f"{self.prefix}:dead-letter"]
        self.alive_key = f"{self.prefix}:alive:{group}:{utf8(socket.gethostname()).decode()}"
        self.is_connected = False
        self.unwritten: dict[int, Name] = {}  # names still to be cached: Redis was not connected, or writing failed

    @cached_property
    def client(self) -> Redis | RedisCluster:
        """The client; it is made when first used, because making it sends requests to Redis."""
        return connect(self.settings.redis_url, self.new_connection)

    def new_connection(self) -> None:
        """Note a new connection, and raise ConnectionReplaced if it takes the place of one that was in use.

        The error stops the request, because the loop must first look up what the new server lacks.
        """
        was_connected, self.is_connected = self.is_connected, False
        if was_connected:
            raise ConnectionReplaced

    def disconnect(self) -> None:
        """Close the connection; the next request makes a new one.

        A cluster's client is left alone, because it finds its new masters itself.
        """
        self.is_connected = False
        if pool := getattr(vars(self).get("client"), "connection_pool", None):
            pool.disconnect()

    def read(self, ids: list[str], start: Position | None = None) -> tuple[Position | None, set[str]]:
        """Return the checkpoint, and which of these ids `seen` lacks; `start` becomes the checkpoint if there is none.

        Everything takes one round trip, because connections may be short-lived.
        https://redis.io/docs/latest/commands/zmscore/
        """
        members: Any = [utf8(id) for id in ids] or [b""]  # redis-py refuses an empty list
        with redis_errors(), self.client.pipeline(transaction=False) as pipeline:
            if start:
                pipeline.set(self.checkpoint_key, str(start), nx=True)
            pipeline.get(self.checkpoint_key)
            pipeline.zmscore(self.seen_key, members)
            *_, stored, scores = pipeline.execute()
        missing = {id for id, score in zip(ids, scores, strict=False) if score is None}
        return self._position(stored), missing

    def commit(self, commit: Pending) -> Outcome:
        """Commit all or nothing, in one atomic step, and return what the bus did."""
        entries = [entry for entry in commit.entries if entry]
        arguments: list[Any] = [commit.kind, str(commit.since), str(commit.until), DEDUP_WINDOW]
        arguments += [self.settings.stream_maxlen, DEAD_LETTERS, len(entries), str(commit.end or commit.until)]
        for entry in entries:
            if isinstance(entry, Entry):
                arguments += [utf8(entry.id), utf8(channel(self.name, entry.event_type)), 2, b"event", entry.text]
            else:
                fields = [utf8(part) for field in entry.fields.items() for part in field]
                arguments += [utf8(entry.id), b"", len(fields), *fields]
        stored, recorded, left_out = self.run_script("commit", self.keys, *arguments)
        return Outcome(self._position(stored), [entries[number - 1] for number in recorded], left_out)

    def run_script(self, name: str, keys: list[str], *arguments: Any) -> Any:
        """Run a Lua script, which Redis executes as one atomic step, and return its answer.

        https://redis.io/docs/latest/develop/programmability/eval-intro/
        """
        with redis_errors():
            return self.client.register_script(SCRIPTS[name])(keys, arguments)

    def _position(self, stored: str | None) -> Position | None:
        try:
            return Position.parse(stored) if stored else None
        except ValueError:
            raise RedisFatalError(f"Redis: {self.checkpoint_key} holds no ts of VK; delete this key") from None

    def beat(self) -> None:
        """Set this host's heartbeat."""
        with redis_errors():
            self.client.set(self.alive_key, int(time.time()), ex=self.settings.poll_wait + ALIVE_TTL)

    def alive(self) -> bool:
        """Return whether this host's fetcher has a heartbeat, which means that VK has answered a poll lately."""
        with redis_errors():
            return bool(self.client.exists(self.alive_key))

    def names(self, ids: Collection[int]) -> dict[int, Name]:
        """Return the cached names by id, without the ids that have none; nothing while the bus is not connected."""
        if not ids or not self.names_ttl or not self.is_connected:
            return {}
        with redis_errors():
            cached: Any = self.client.mget([f"{self.prefix}:name:{id}" for id in ids])
        try:
            return {id: Name(*map(str, loads(text.encode()))) for id, text in zip(ids, cached, strict=True) if text}
        except (ValueError, TypeError):
            return {}  # another program has written to a key; VK's names will replace all of these

    def cache_names(self, names: Mapping[int, Name]) -> None:
        """Cache names for NAMES_TTL, or for at most UNKNOWN_TTL if they are empty because VK has no name.

        Names that cannot be cached now are cached by the next call for which the bus is connected.
        """
        self.unwritten |= names if self.names_ttl else {}
        if self.unwritten and self.is_connected:
            with redis_errors(), self.client.pipeline(transaction=False) as pipeline:
                for id, name in self.unwritten.items():
                    ttl = self.names_ttl if any(name) else min(UNKNOWN_TTL, self.names_ttl)
                    pipeline.set(f"{self.prefix}:name:{id}", dumps([*name]), ex=ttl)
                pipeline.execute()
            self.unwritten = {}
