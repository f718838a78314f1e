"""The size of commits: as large as the link can take, on every kind of link."""

import pytest

from fetcher.core.history import DeadLetter, Entry
from fetcher.core.pieces import MAX_PIECE, MAX_PIECE_BYTES, PieceSize, size_of

UNLIMITED = 10**9


def entries(count: int, size: int = 200) -> list[Entry | DeadLetter | None]:
    """Make entries that each take this many bytes on the wire."""
    return [Entry("id", "message", b"x" * (size - 100))] * count


def send(piece: PieceSize, limit: float, size: int = 200, times: int = 1, pending: int = 1000) -> list[int]:
    """Commit pieces of what is pending over a link that times out above this many bytes; return their entry counts.

    A negative number is a commit that timed out.
    """
    sent = []
    for _ in range(times):
        count = piece.how_many(entries(pending, size))
        if count * size > limit:
            piece.failed(count, count * size, timed_out=True)
        else:
            piece.succeeded(count, count * size)
        sent.append(-count if count * size > limit else count)
    return sent


def grown(piece: PieceSize) -> bool:
    """Return whether the next commit may have the largest size."""
    return piece.has_room(MAX_PIECE, MAX_PIECE_BYTES)


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        (Entry("id", "message", b"x" * 50), 150),
        (DeadLetter("id", {"update": "u" * 1000, "error": "e" * 50}), 1150),
        (None, 0),
    ],
)
def test_the_size_of_an_entry(entry: Entry | DeadLetter | None, size: int) -> None:
    """The size is that of the text plus a small overhead; an entry that is not published has none."""
    assert size_of(entry) == size


@pytest.mark.parametrize(
    ("size", "pending", "fits"),
    [
        (200, 1000, 500),
        (200, 500, 500),
        (200, 3, 3),
        (100_000, 1000, 10),
        (2**20, 2, 1),
        (2**19, 2, 2),
        (2**21, 2, 1),
        (2**21, 1, 1),
    ],
)
def test_a_commit_is_at_most_500_events_and_1_mib(size: int, pending: int, fits: int) -> None:
    """At least one event is committed, however large it is."""
    assert PieceSize().how_many(entries(pending, size)) == fits
    assert (MAX_PIECE, MAX_PIECE_BYTES) == (500, 2**20)


@pytest.mark.parametrize(
    ("count", "size", "has_room"),
    [(500, 2**20, True), (501, 1, False), (1, 2**20 + 1, False), (0, 0, True)],
)
def test_entries_and_their_bytes_are_limited(count: int, size: int, has_room: bool) -> None:
    """Both the number of entries and their bytes are limited."""
    assert PieceSize().has_room(count, size) is has_room


def test_updates_that_are_not_published_count_by_number() -> None:
    """They have no size, so only their number is limited."""
    assert PieceSize().how_many([None] * 1000) == 500


def test_timeouts_halve_the_size_down_to_one_event() -> None:
    """The size of the next commit never falls below one event."""
    assert send(PieceSize(), limit=0, times=11) == [-500, -250, -125, -62, -31, -15, -7, -3, -1, -1, -1]


def test_a_small_commit_that_times_out_makes_the_next_one_smaller() -> None:
    """The next commit is half of what was sent, not of what could have been sent."""
    piece = PieceSize()
    send(piece, limit=0, pending=100)
    assert piece.how_many(entries(1000)) == 50


def test_successes_restore_the_size() -> None:
    """On any link, the size grows back to the limits."""
    piece = PieceSize()
    send(piece, limit=0, times=20)
    sent = send(piece, UNLIMITED, times=40)
    assert sent == sorted(sent)
    assert sent[-1] == 500
    assert grown(piece)


def test_the_size_does_not_exceed_its_limits() -> None:
    """However many commits succeed, one timeout halves the size."""
    piece = PieceSize()
    send(piece, UNLIMITED, times=40)
    assert send(piece, limit=0, times=2) == [-500, -250]


@pytest.mark.parametrize("pending", [1, 125])
def test_a_small_commit_proves_nothing_about_a_larger_one(pending: int) -> None:
    """Even many small commits, up to half the allowed size, do not make it grow."""
    piece = PieceSize()
    send(piece, limit=0)
    send(piece, UNLIMITED, times=100, pending=pending)
    assert piece.how_many(entries(1000)) == 250


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("size", [200, 1000, 5000])
@pytest.mark.parametrize("limit", [6_000, 30_000, 70_000, 150_000, 300_000, 500_000, 900_000, 2**20 - 1])
def test_at_most_one_commit_in_ten_times_out(limit: int, size: int) -> None:
    """This holds on a steady link of any capacity, and the successful commits stay large."""
    piece = PieceSize()
    send(piece, limit, size, times=20)
    sent = send(piece, limit, size, times=1000)
    assert sum(count < 0 for count in sent) <= 100
    largest = min(limit // size, 500)
    assert min(count for count in sent if count > 0) >= max(1, largest // 4)
    assert max(sent) >= max(1, largest // 2 - 1)


def test_a_link_that_becomes_better() -> None:
    """A size that timed out is tried again, and its timeout is forgotten once it succeeds."""
    piece = PieceSize()
    send(piece, 60_000, times=50)
    send(piece, UNLIMITED, times=40)
    assert grown(piece)
    send(piece, limit=0)
    assert send(piece, UNLIMITED, times=30)[-1] == 500


@pytest.mark.parametrize("pending", [1000, 1])
def test_an_outage_is_forgotten_soon(pending: int) -> None:
    """A series of timeouts during an outage proves nothing about sizes."""
    piece = PieceSize()
    send(piece, limit=0, times=30, pending=pending)
    assert send(piece, UNLIMITED, times=25)[-1] == 500


def test_a_size_that_has_timed_out_succeeds_later() -> None:
    """When a size that has timed out succeeds, it and larger sizes count as possible again."""
    piece = PieceSize()
    assert send(piece, limit=60_000) == [-500]
    assert send(piece, UNLIMITED) == [250]
    assert send(piece, limit=40_000) == [-250]
    assert send(piece, UNLIMITED, times=12) == [125] * 10 + [250, 500]


def test_growth_is_tried_after_a_few_successes_only() -> None:
    """A size that timed out is tried again only after ten successes."""
    piece = PieceSize()
    send(piece, UNLIMITED)
    assert send(piece, 99_999) == [-500]
    assert send(piece, 99_999, times=10) == [250] * 10
    assert send(piece, 99_999) == [-500]


@pytest.mark.parametrize(
    ("happens", "fits"),
    [
        ("bb", 500),
        ("bbb", 250),
        ("bbbbb", 250),
        ("bbbbbb", 125),
        ("b" * 300, 1),
        ("bbsbb", 500),
        ("s" + "b" * 2, 500),
        ("s" + "b" * 3, 250),
        ("s" + "b" * 6, 125),
        ("-bbb", 250),
        ("bbb" + "s" * 9, 250),
        ("bbb" + "s" * 10, 500),
    ],
)
def test_three_broken_connections_halve_the_size(happens: str, fits: int) -> None:
    """After three broken connections in a row, the commit is halved: it may take longer than connections live.

    "b" is a broken connection, "s" a success, "-" a success of a small commit. Growth waits as it does after a timeout.
    """
    piece = PieceSize()
    for event in happens:
        count = 50 if event == "-" else piece.how_many(entries(1000))
        if event == "b":
            piece.failed(count, 200 * count, timed_out=False)
        else:
            piece.succeeded(count, 200 * count)
    assert piece.how_many(entries(1000)) == fits
