"""The history that every VK of the tests has: the updates that it keeps, and its answer to a poll at a ts."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from tests.vk.updates import Json


class History:
    """Updates, each with the ts that follows it; the latest `kept` can be polled. Everything may change at any time."""

    def __init__(self, ts: int, kept: int = 10**6, batch: int = 100) -> None:
        self.ts = self.oldest = ts  # the ts after the latest update, and the ts before the oldest
        self.kept, self.batch = kept, batch  # the most updates in all, and in one answer
        self.step: int | Callable[[], int] = 1  # by how much ts advances for each update
        self.newest_on_failed_1 = False  # answer failed 1 with the newest ts, not with the oldest that is kept
        self.updates: list[Any] = []
        self.places: list[int] = []  # the ts after each update

    def add(self, *updates: Any) -> None:
        """Append updates."""
        for update in updates:
            self.ts += self.step() if callable(self.step) else self.step
            self.updates.append(update)
            self.places.append(self.ts)
        self.trim()

    def trim(self) -> None:
        """Forget the updates that are no longer kept."""
        if excess := self.places[: max(0, len(self.places) - self.kept)]:
            self.oldest = max(self.oldest, excess[-1])
            del self.places[: len(excess)], self.updates[: len(excess)]

    def begin_at(self, ts: int) -> None:
        """Continue from another ts, lower or higher, without any update."""
        self.ts = self.oldest = ts
        self.places.clear()
        self.updates.clear()

    def answer_at(self, ts: float, newest: int) -> Json:
        """Return the answer at this ts from a server that knows everything up to `newest`."""
        self.trim()
        if not self.oldest <= ts <= newest:
            return {"failed": 1, "ts": newest if ts > newest or self.newest_on_failed_1 else self.oldest}
        first, end = bisect_right(self.places, ts), bisect_right(self.places, newest)
        last = min(first + self.batch, end)
        return {"ts": self.places[last - 1] if last < end else newest, "updates": self.updates[first:last]}
