"""What the loop stands between: VK on one side, the bus on the other."""

from typing import Protocol

from .backlog import Pending
from .history import Batch, Commit, Gap, Outcome, Position, State


class LongPoll(Protocol):
    """What the loop needs of VK."""

    def latest_ts(self) -> int: ...
    def renew(self) -> int: ...
    def shorten_timeouts(self, short: bool) -> None: ...
    def poll(self, ts: int, wait: int) -> list[Batch | Gap]: ...


class Bus(Protocol):
    """What the loop needs of the bus."""

    is_connected: bool

    def disconnected(self) -> None: ...
    def read(self, ids: list[str], start: Position | None = None) -> State: ...
    def commit(self, commit: Commit) -> Outcome: ...
    def beat(self) -> None: ...


class EntryBuilder(Protocol):
    """Builds the entries of batches."""

    def build(self, batches: list[Pending], give_up: bool) -> None: ...
