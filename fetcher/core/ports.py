"""What the core needs of its two sides: VK and the bus."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from ..errors import FatalError, TransientError
from ..events import Event
from .history import Batch, Commit, Gap, Outcome, Position, State

Failure = TransientError | FatalError | None


class Name(NamedTuple):
    """A name at VK; a chat has only `name`, and all fields are empty if VK knows no name."""

    name: str = ""
    firstname: str = ""
    lastname: str = ""
    nick: str = ""


class LongPoll(Protocol):
    """VK's history."""

    def renew(self) -> int: ...
    def shorten_timeouts(self, short: bool) -> None: ...
    def poll(self, ts: int, wait: int) -> list[Batch | Gap]: ...


class Updates(Protocol):
    """What VK's updates mean."""

    def with_full_messages(self, updates: list[Any]) -> tuple[list[Any], Failure]: ...
    def build(self, update: Any) -> Event | None: ...
    def sent_at(self, update: Any) -> int: ...


class Lookups(Protocol):
    """VK's names."""

    def names(self, ids: Iterable[int]) -> tuple[dict[int, Name], Failure]: ...


class Bus(Protocol):
    """The bus. Methods raise RedisUnavailable or RedisFatalError."""

    is_connected: bool

    def read(self, ids: list[str], start: Position | None = None) -> State: ...
    def commit(self, commit: Commit) -> Outcome: ...
    def beat(self) -> None: ...


class Cache(Protocol):
    """The names that all fetchers share; while the bus is not connected there are none."""

    ttl: int

    def names(self, ids: Collection[int]) -> dict[int, Name]: ...
    def cache_names(self, names: Mapping[int, Name]) -> None: ...
