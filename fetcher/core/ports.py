"""The interfaces of VK's side and the bus, as the loop uses them; only VK's side uses `names` and `cache_names`."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from ..errors import Failure
from .backlog import Pending
from .history import Answer, Name, Outcome, Position


class LongPoll(Protocol):
    """Reads VK's history. Methods raise TransientError or FatalError."""

    def renew(self) -> int: ...
    def poll(self, ts: int, wait: int) -> Answer: ...


class EntryBuilder(Protocol):
    """Builds bus entries from VK's updates. Raises TransientError or FatalError."""

    def build(self, batches: Sequence[Pending], give_up: bool) -> Failure: ...


class Bus(Protocol):
    """Publishes entries and keeps the checkpoint.

    Methods raise RedisUnavailable, RedisFatalError or ConnectionReplaced.
    """

    is_connected: bool
    names_ttl: int

    def disconnect(self) -> None: ...
    def read(self, ids: list[str], start: Position | None) -> tuple[Position | None, set[str]]: ...
    def beat(self) -> None: ...
    def commit(self, commit: Pending) -> Outcome: ...
    def names(self, ids: Collection[int]) -> dict[int, Name]: ...
    def cache_names(self, names: Mapping[int, Name]) -> None: ...
