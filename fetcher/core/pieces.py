"""How much one commit may hold: as much as the link to Redis carries within Redis's timeout."""

from itertools import accumulate, takewhile

from .history import DeadLetter, Entry

MAX_PIECE, MAX_PIECE_BYTES = 500, 2**20  # updates and bytes of one commit
STEADY = 10  # successful commits after a failure before a larger size is tried again
MAX_FAILURES = 3  # failures in a row without a timeout, after which connections seem too short-lived for this size


class PieceSize:
    """The size of the next commit, as a share of a whole piece (MAX_PIECE updates or MAX_PIECE_BYTES).

    A timeout halves the share; after STEADY successes each further one doubles it again, until the next timeout. So on
    a steady link at most one commit in ten times out. A slow answer changes nothing: if Redis is far away, a small
    piece takes as long as a large one. A single update cannot be halved, so it is only tried again.
    """

    def __init__(self) -> None:
        """Start with a whole piece."""
        self.share = 1.0
        self.steady = self.failures = 0  # successes, and failures in a row, since the share was last halved

    def has_room(self, count: int, size: int) -> bool:
        """Return whether this many updates and bytes fit into one commit."""
        return share_of(count, size) <= self.share

    def how_many(self, entries: list[Entry | DeadLetter | None]) -> int:
        """Return how many of these entries, from the first on, fit into one commit: at least one."""
        sizes = enumerate(accumulate(map(size_of, entries)), 1)
        return max(1, sum(1 for _ in takewhile(lambda first: self.has_room(*first), sizes)))

    def succeeded(self, count: int, size: int) -> None:
        """Allow a larger commit next, if this one used more than half of what was allowed."""
        self.steady, self.failures = self.steady + 1, 0
        if self.steady >= STEADY and 2 * share_of(count, size) > self.share:
            self.share = min(1.0, 2 * self.share)

    def failed(self, count: int, size: int, timed_out: bool) -> None:
        """Make the next commit smaller if this one timed out, or if MAX_FAILURES in a row have failed in other ways."""
        self.failures += 1
        if timed_out or self.failures == MAX_FAILURES:
            self.share = max(share_of(1, 0), min(self.share, share_of(count, size)) / 2)  # at least a single update
            self.steady = self.failures = 0


def share_of(count: int, size: int) -> float:
    """Return the share of a whole piece that this many updates and bytes take; it may exceed 1."""
    return max(count / MAX_PIECE, size / MAX_PIECE_BYTES)


def size_of(entry: Entry | DeadLetter | None) -> int:
    """Return about how many bytes an entry takes on the wire."""
    if isinstance(entry, Entry):
        return len(entry.text) + 100
    return sum(map(len, entry.fields.values())) + 100 if entry else 0
