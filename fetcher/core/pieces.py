"""How much goes to the bus at once: as much as the link takes within Redis's timeout."""

from itertools import accumulate, takewhile

from .history import DeadLetter, Entry

MAX_PIECE, MAX_PIECE_BYTES = 500, 2**20  # updates and bytes of one commit
MIN_SHARE, UNKNOWN = 1 / MAX_PIECE, 4.0  # of a piece: a single update, and more than there ever is
STEADY = 10  # commits in a row before a size that has timed out is tried again
MAX_BREAKS = 3  # broken connections in a row after which a commit may be too large for their lifetime


class PieceSize:
    """How much one commit may hold: a share of MAX_PIECE and MAX_PIECE_BYTES that follows the link.

    A timeout halves it, a success doubles it. But a size that has timed out is tried again only after STEADY
    successes, so that on a steady link at most one commit in ten times out. A single update, which cannot be halved,
    gets more time instead: see bus.py.
    """

    def __init__(self) -> None:
        """Begin with a whole piece."""
        self.share = 1.0
        self.too_large = UNKNOWN  # the share that failed last, and has not succeeded since
        self.steady = self.breaks = 0  # commits since the share changed, and broken connections since a commit

    def has_room(self, count: int, size: int) -> bool:
        """Return whether this many updates and bytes fit."""
        return share_of(count, size) <= self.share

    def how_many(self, entries: list[Entry | DeadLetter | None]) -> int:
        """Return how many of these entries fit: at least one."""
        sizes = enumerate(accumulate(map(size_of, entries)), 1)
        return max(1, sum(1 for _ in takewhile(lambda first: self.has_room(*first), sizes)))

    def succeeded(self, count: int, size: int) -> None:
        """Let the next commit be larger, if this one was about as large as allowed."""
        used = share_of(count, size)
        self.steady, self.breaks = self.steady + 1, 0
        if used >= self.too_large:
            self.too_large = UNKNOWN
        if 2 * used > self.share and (2 * self.share < self.too_large or self.steady >= STEADY):
            self.share, self.steady = min(1.0, 2 * self.share), 0

    def failed(self, count: int, size: int, timed_out: bool) -> None:
        """Make the next commit smaller if this one timed out, or if no connection seems to live long enough for it."""
        self.breaks += 1
        if timed_out or self.breaks == MAX_BREAKS:
            self.too_large = share_of(count, size)
            self.share = max(MIN_SHARE, min(self.share, self.too_large) / 2)
            self.steady = self.breaks = 0


def share_of(count: int, size: int) -> float:
    """Return the share of a whole piece that this many updates and bytes take."""
    return max(count / MAX_PIECE, size / MAX_PIECE_BYTES)


def size_of(entry: Entry | DeadLetter | None) -> int:
    """Return about how many bytes it takes on the wire."""
    if isinstance(entry, Entry):
        return len(entry.text) + 100
    return sum(map(len, entry.fields.values())) + 100 if entry else 0
