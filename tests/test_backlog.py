"""The state of exactly-once: what is pending after each answer of VK and of the bus. No I/O, no fakes."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from fetcher.core import backlog as limits
from fetcher.core.backlog import LOST_CHECKPOINT, Backlog, Pending, is_after
from fetcher.core.batch import Batch, Commit, DeadLetter, Entry, Gap

Entries = list[Entry | DeadLetter]


def batch(since: int, until: int, *updates: Any, size: int = 0) -> Batch:
    return Batch(str(since), str(until), list(updates), size)


def gap(since: int, until: int, error: str = "forgotten") -> Gap:
    return Gap(str(since), str(until), error)


def entries(*ids: Any, size: int = 0) -> Entries:
    """Make entries of these ids, each about so many bytes on the wire."""
    return [Entry(str(id), "message", b"x" * max(1, size - 100)) for id in ids]


def built(backlog: Backlog, size: int = 0) -> Backlog:
    """Build all that is pending: an update is the id of its entry."""
    for one in backlog.pending:
        if one.entries is None:
            one.built(entries(*one.updates, size=size))
    return backlog


def started(*answers: Batch | Gap, checkpoint: str = "10", size: int = 0) -> Backlog:
    """Make a backlog that knows the checkpoint, and holds these answers with their events built."""
    backlog = Backlog()
    backlog.start_ts = "10"
    backlog.connected(checkpoint)
    for number, answer in enumerate(answers):
        backlog.add(answer, now=10.0 * number)
    return built(backlog, size)


def committed(backlog: Backlog) -> Backlog:
    """Commit all that is pending, to a bus that takes it."""
    while commit := backlog.next_commit():
        backlog.answered(commit, commit.until if commit.completes else backlog.checkpoint or "")
    assert not backlog.pending
    return backlog


def ids(items: Iterable[Entry | DeadLetter]) -> str:
    """Tell entries in a word: the id of each, "!" for a dead letter, "(a)" for one without its text."""
    return "".join("!" if isinstance(one, DeadLetter) else one.id if one.text else f"({one.id})" for one in items)


def shown(pending: Iterable[Pending]) -> list[str]:
    """Tell each pending item in a line: kind, since, until, and what is in it."""
    return [
        f"{one.kind} {one.since}-{one.until} {ids(one.entries or ()) if one.entries is not None else one.updates}"
        for one in pending
    ]


def errors(one: Pending) -> list[str]:
    return [entry.fields["error"] for entry in one.entries or () if isinstance(entry, DeadLetter)]


def answer(backlog: Backlog, checkpoint: str) -> Commit:
    """Take the bus's answer to what goes to it next, and return that."""
    commit = backlog.next_commit()
    assert commit
    backlog.answered(commit, checkpoint)
    return commit


# What VK answers


class Added(NamedTuple):
    answers: list[Batch | Gap]
    pending: list[str]
    next_ts: str


ADDED = {
    "nothing": Added([batch(10, 10)], [], "10"),
    "a batch": Added([batch(10, 12, "a", "b")], ["batch 10-12 ab"], "12"),
    "VK's steps are VK's": Added([batch(10, 99, "a")], ["batch 10-99 a"], "99"),
    "ts alone moves": Added([batch(10, 15)], ["batch 10-15 "], "15"),
    "updates, and ts stays": Added([batch(10, 10, "a")], ["batch 10-10 a"], "10"),
    "a gap": Added([gap(10, 20)], ["gap 10-20 !"], "20"),
    "a gap backwards": Added([gap(10, 3)], ["gap 10-3 !"], "3"),
    "a gap of nothing": Added([gap(10, 10)], [], "10"),
    "what follows a gap": Added([gap(10, 20), batch(20, 21, "a")], ["gap 10-20 !", "batch 20-21 a"], "21"),
    "ts goes back, unsaid": Added([batch(10, 3, "a")], ["batch 10-10 a", "gap 10-3 !"], "3"),
    "ts goes back with nothing": Added([batch(10, 3)], ["gap 10-3 !"], "3"),
    "a ts longer than a double": Added(
        [batch(10, 10**25, "a"), batch(10**25, 10**25 + 1, "b")],
        [f"batch 10-{10**25} a", f"batch {10**25}-{10**25 + 1} b"],
        str(10**25 + 1),
    ),
}


@pytest.mark.parametrize("case", ADDED.values(), ids=ADDED)
def test_what_vk_answers_is_pending(case: Added) -> None:
    """Whatever moves ts, or holds updates, is held; VK is polled where it ends."""
    backlog = started(*case.answers)
    assert shown(backlog.pending) == case.pending
    assert backlog.next_ts == case.next_ts


def test_where_vk_is_polled() -> None:
    """At the end of what is pending, else at the checkpoint, and at the ts of the start as long as none is known."""
    backlog = Backlog()
    backlog.start_ts = "7"
    assert backlog.next_ts == "7"
    backlog.add(batch(7, 8, "a"), 0)
    assert backlog.next_ts == "8"
    backlog.connected("5")
    assert backlog.next_ts == "8"
    backlog.pending.clear()
    assert backlog.next_ts == "5"


class Merged(NamedTuple):
    first: Batch | Gap
    build: bool
    later: float
    second: Batch
    pending: list[str]


JOIN = "batch 10-12 ['a', 'b']"
MERGED = {
    "within a second": Merged(batch(10, 11, "a"), False, 0.9, batch(11, 12, "b"), [JOIN]),
    "later": Merged(batch(10, 11, "a"), False, 1.0, batch(11, 12, "b"), ["batch 10-11 ['a']", "batch 11-12 ['b']"]),
    "already built": Merged(batch(10, 11, "a"), True, 0, batch(11, 12, "b"), ["batch 10-11 a", "batch 11-12 ['b']"]),
    "after a gap": Merged(gap(10, 11), False, 0, batch(11, 12, "b"), ["gap 10-11 !", "batch 11-12 ['b']"]),
    "only ts moves": Merged(batch(10, 11, "a"), False, 0, batch(11, 12), ["batch 10-12 ['a']"]),
    "nothing new": Merged(batch(10, 11, "a"), False, 0, batch(11, 11), ["batch 10-11 ['a']"]),
}


@pytest.mark.parametrize("case", MERGED.values(), ids=MERGED)
def test_batches_that_come_together_are_one(case: Merged) -> None:
    """One request asks for all their names. What is built already, or is no batch, stays apart."""
    backlog = started()
    backlog.add(case.first, 100.0)
    if case.build:
        built(backlog)
    backlog.add(case.second, 100.0 + case.later)
    assert shown(backlog.pending) == case.pending


def test_batches_are_merged_up_to_a_number() -> None:
    """No more updates are one than are built at once."""
    backlog, most = started(), limits.MAX_UNBUILT
    backlog.add(batch(10, 11, *"a" * (most - 1), size=5), 0)
    backlog.add(batch(11, 12, "b", size=7), 0)
    backlog.add(batch(12, 13, "c", size=9), 0)
    assert [(one.count, one.size) for one in backlog.pending] == [(most, 12), (1, 9)]
    assert backlog.count == most + 1


def test_what_is_built_at_once() -> None:
    """The first batches, as many as fit, whole; a large one alone; gaps and what is built are passed over."""
    backlog, most = started(), limits.MAX_UNBUILT
    backlog.add(gap(10, 11), 0)
    backlog.add(batch(11, 12, *"a" * (most + 5)), 10)
    assert shown(backlog.unbuilt()) == shown([backlog.pending[1]])
    backlog.add(batch(12, 13, *"b" * 5), 20)
    assert len(backlog.unbuilt()) == 1
    built(backlog)
    assert backlog.unbuilt() == []
    backlog.add(batch(13, 14, *"c" * (most - 5)), 30)
    backlog.add(batch(14, 15, *"d" * 5), 40)
    backlog.add(batch(15, 16, "e"), 50)
    assert [one.since for one in backlog.unbuilt()] == ["13", "14"]


def test_memory_is_bounded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many updates are the most, built or not; updates that gave no event cost nothing."""
    monkeypatch.setattr(limits, "MAX_PENDING", 3)
    backlog = started(batch(10, 12, "a", "b"))
    assert not backlog.is_full
    backlog.add(batch(12, 13, "c"), 100)
    assert backlog.is_full
    backlog.pending[-1].built([])
    assert not backlog.is_full
    assert backlog.count == 2


def test_memory_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many bytes are the most: of VK's answer before the events are built, of the events after."""
    monkeypatch.setattr(limits, "MAX_PENDING_BYTES", 1000)
    backlog = started()
    backlog.add(batch(10, 11, "a", size=1000), 0)
    assert backlog.is_full
    backlog.pending[0].built(entries("a", size=400))
    assert not backlog.is_full
    backlog.add(batch(11, 12, "b", size=600), 100)
    assert backlog.is_full


def test_what_is_built_forgets_its_updates() -> None:
    """Memory holds each update once."""
    one = started(batch(10, 12, "a", "b")).pending[0]
    assert one.updates == []
    assert one.count == 2
    assert one.size == 2 * 101


def test_the_size_of_a_dead_letter() -> None:
    """The fields count."""
    one = Pending("batch", "1", "2")
    one.built([DeadLetter("x", {"update": "u" * 1000, "error": "e" * 50})])
    assert one.size == 1050 + 100


# What goes to the bus


def test_nothing_goes_out_before_it_is_built() -> None:
    """Nor does what comes after it: order is VK's."""
    backlog = Backlog()
    assert backlog.next_commit() is None
    backlog.add(batch(10, 11, "a"), 0)
    assert backlog.next_commit() is None
    backlog.add(gap(11, 12), 0)
    assert backlog.next_commit() is None


class Piece(NamedTuple):
    answers: list[Batch | Gap]
    commit: tuple[str, str, str, str, int]  # kind, since, until, ids, how many pending items it completes


PIECES = {
    "one batch": Piece([batch(10, 12, "a", "b")], ("batch", "10", "12", "ab", 1)),
    "batches that follow": Piece([batch(10, 12, "a", "b"), batch(12, 13, "c")], ("batch", "10", "13", "abc", 2)),
    "no updates": Piece([batch(10, 12), batch(12, 13, "c")], ("batch", "10", "13", "c", 2)),
    "up to a gap": Piece([batch(10, 12, "a"), gap(12, 20), batch(20, 21, "b")], ("batch", "10", "12", "a", 1)),
    "a gap alone": Piece([gap(10, 20), batch(20, 21, "b")], ("gap", "10", "20", "!", 1)),
    "two gaps": Piece([gap(10, 20), gap(20, 30)], ("gap", "10", "20", "!", 1)),
}


@pytest.mark.parametrize("case", PIECES.values(), ids=PIECES)
def test_what_goes_out_next(case: Piece) -> None:
    """Whole batches, one following the other; a gap goes out alone."""
    commit = started(*case.answers).next_commit()
    assert commit
    assert (commit.kind, commit.since, commit.until, ids(commit.entries), commit.completes) == case.commit


def test_what_is_not_built_ends_a_piece() -> None:
    """Its names may be waited for, and the others go out."""
    backlog = started(batch(10, 11, "a"))
    backlog.add(batch(11, 12, "b"), 100)
    commit = backlog.next_commit()
    assert commit
    assert (commit.until, commit.completes) == ("11", 1)


def test_only_what_follows_without_a_hole_is_merged() -> None:
    """Between the two something is missing, or they overlap: the bus must tell of each."""
    for second in (batch(12, 13, "b"), batch(10, 12, "b")):
        backlog = started(batch(10, 11, "a"))
        backlog.pending.append(built(started(second)).pending[0])
        commit = backlog.next_commit()
        assert commit
        assert (commit.until, commit.completes) == ("11", 1)


def test_a_repeat_is_never_merged_with_a_batch() -> None:
    """What is too old needs a dead letter in the one and none in the other."""
    backlog = committed(started(batch(10, 11, "a"), batch(11, 12, "b")))
    backlog.connected("12")
    backlog.add(batch(12, 13, "c"), 100)
    built(backlog)
    commit = backlog.next_commit()
    assert commit
    assert (commit.kind, ids(commit.entries), commit.completes) == ("repeat", "ab", 2)


def test_the_bus_remembers_more_than_any_batch() -> None:
    """As many ids as ever, and those of the largest batch besides."""
    backlog = started(batch(10, 11, *"a" * 3), batch(11, 12, *"b" * 7), batch(12, 13, "c"))
    commit = backlog.next_commit()
    assert commit
    assert commit.keep == limits.DEDUP_WINDOW + 7
    assert commit.size == 11 * 101


def parts(backlog: Backlog) -> list[tuple[str, int, int]]:
    """Commit all that is pending to a bus that takes it; return ids, completes and keep of each piece."""
    done = []
    while commit := backlog.next_commit():
        done.append((ids(commit.entries), commit.completes, commit.keep))
        backlog.answered(commit, commit.until if commit.completes else backlog.checkpoint or "")
    return done


def test_a_large_batch_goes_out_in_parts() -> None:
    """None but the last moves the checkpoint, or lets the bus forget ids; each begins with what must be there."""
    backlog = started(batch(10, 17, *"abcdefg"), batch(17, 18, "h"))
    backlog.piece = 3
    keep = limits.DEDUP_WINDOW + 7
    assert parts(backlog) == [("abc", 0, 0), ("(c)def", 0, 0), ("(f)gh", 2, keep)]
    assert backlog.checkpoint == "18"


def test_bytes_bound_a_piece() -> None:
    """But one entry goes out at least, however large."""
    backlog = started(batch(10, 13, *"abc"), batch(13, 14, "d"), size=1000)
    backlog.piece_bytes = 2500
    assert [ids for ids, *_ in parts(backlog)] == ["ab", "(b)cd"]
    backlog = started(batch(10, 13, *"abc"), size=1000)
    backlog.piece_bytes = 1
    assert [ids for ids, *_ in parts(backlog)] == ["a", "(a)b", "(b)c"]


def test_dead_letters_go_out_with_the_last_part() -> None:
    """All of them, however many: they are there if, and only if, the checkpoint has moved past them."""
    backlog = started(batch(10, 15, *"abcde"))
    letters = [DeadLetter(id, {"error": "why"}) for id in "xyz"]
    backlog.pending[0].built([letters[0], *entries("a"), *letters[1:], *entries("b")])
    backlog.piece = 1
    assert parts(backlog) == [("a", 0, 0), ("(a)b!!!", 1, limits.DEDUP_WINDOW + 5)]


def test_the_number_bounds_what_is_merged() -> None:
    """A batch that does not fit any more goes out with the next piece, whole."""
    backlog = started(batch(10, 12, *"ab"), batch(12, 14, *"cd"), batch(14, 16, *"ef"))
    backlog.piece = 5
    assert [ids for ids, *_ in parts(backlog)] == ["abcd", "ef"]


def test_pieces_are_halved_and_grow_again() -> None:
    """Down to a single event, and back to the limits; a small commit proves nothing about a larger one."""
    backlog = started(batch(10, 11, *"a" * 2000), size=4096)
    assert (backlog.piece, backlog.piece_bytes) == (limits.MAX_PIECE, limits.FIRST_PIECE_BYTES)
    backlog.shrink_piece()
    assert (backlog.piece, backlog.piece_bytes) == (limits.MAX_PIECE // 2, limits.FIRST_PIECE_BYTES // 2)
    for _ in range(30):
        backlog.shrink_piece()
    assert (backlog.piece, backlog.piece_bytes) == (1, 1)
    for _ in range(30):
        commit = backlog.next_commit()
        assert commit
        backlog.grow_piece(commit)
    assert (backlog.piece, backlog.piece_bytes) == (limits.MAX_PIECE, limits.MAX_PIECE_BYTES)
    backlog.shrink_piece()
    small = Commit("batch", "10", "11", entries("a"), 1, 1, 100)
    backlog.grow_piece(small)
    assert (backlog.piece, backlog.piece_bytes) == (limits.MAX_PIECE // 2, limits.MAX_PIECE_BYTES // 2)


def test_parts_begin_again_on_a_new_connection() -> None:
    """The bus may have lost the first ones; it passes over those that it has."""
    backlog = started(batch(10, 14, *"abcd"))
    backlog.piece = 2
    assert ids(answer(backlog, "10").entries) == "ab"
    backlog.connected("10")
    assert [ids for ids, *_ in parts(backlog)] == ["ab", "(b)cd"]


# What the bus answers


class Answered(NamedTuple):
    answers: list[Batch | Gap]  # pending, all built
    checkpoint: str  # the bus's answer to the first commit
    pending: list[str]
    recent: list[str]
    hole: str | None = None


A, B, C = batch(10, 11, "a"), batch(11, 12, "b"), batch(20, 21, "c")
ANSWERED = {
    "taken": Answered([A], "11", [], ["repeat 10-11 a"]),
    "both taken": Answered([A, B], "12", [], ["repeat 10-11 a", "repeat 11-12 b"]),
    "the bus is further": Answered([A], "99", [], ["repeat 10-11 a"]),
    "begins at the checkpoint exactly": Answered([A], "10", [], ["repeat 10-11 a"]),
    "begins after the checkpoint": Answered([A, B], "9", ["batch 10-11 a", "batch 11-12 b"], [], "9"),
    "compared as numbers": Answered([batch(100, 101, "a")], "99", ["batch 100-101 a"], [], "99"),
    "no checkpoint": Answered([A], "", ["restore 10-10 !", "batch 10-11 a"], []),
    "a gap recorded": Answered([gap(10, 20), C], "20", ["batch 20-21 c"], []),
    "a gap that others recorded": Answered([gap(10, 20), C], "25", ["batch 20-21 c"], []),
    "a part of a gap is filled by others": Answered([gap(10, 20), C], "15", ["batch 20-21 c"], []),
    "a gap begins after the checkpoint": Answered([gap(10, 20)], "7", ["gap 10-20 !"], [], "7"),
    "a gap backwards recorded": Answered([gap(10, 3), batch(3, 4, "a")], "3", ["batch 3-4 a"], []),
    "a gap backwards that others recorded": Answered([gap(10, 3)], "5", [], []),
    "others are further, of a time before": Answered([gap(10, 3)], "15", ["gap 15-3 !"], []),
}


@pytest.mark.parametrize("case", ANSWERED.values(), ids=ANSWERED)
def test_what_the_bus_answers(case: Answered) -> None:
    """An update leaves memory only when the bus has answered that it has it."""
    backlog = started(*case.answers)
    answer(backlog, case.checkpoint)
    assert shown(backlog.pending) == case.pending
    assert shown(backlog.recent) == case.recent
    assert backlog.hole == case.hole
    assert backlog.checkpoint == (case.checkpoint or "10")


def test_a_gap_back_says_why_also_when_it_begins_later() -> None:
    """Another fetcher was further when VK began anew: the reason stays."""
    backlog = started(gap(10, 3, "VK has forgotten"))
    answer(backlog, "15")
    assert backlog.pending[0].entries == [DeadLetter("", {"since": "15", "until": "3", "error": "VK has forgotten"})]


def test_the_rest_of_a_gap_is_asked_for_once_more() -> None:
    """Another fetcher had a part of it, so VK has not forgotten all: what comes after it waits for the answer."""
    backlog = started(gap(10, 20), batch(20, 21, "a"))
    answer(backlog, "15")
    assert shown(backlog.pending) == ["batch 20-21 a"]
    answer(backlog, "15")
    assert backlog.hole == "15"


def test_the_checkpoint_is_restored() -> None:
    """What the bus said last goes there, with a dead letter, then what was committed lately, then what is pending."""
    backlog = committed(started(A))
    backlog.add(B, 100)
    built(backlog)
    answer(backlog, "")
    assert errors(backlog.pending[0]) == [LOST_CHECKPOINT]
    assert answer(backlog, "11").kind == "restore"
    assert shown(backlog.pending) == ["repeat 10-11 a", "batch 11-12 b"]
    assert ids(answer(backlog, "11").entries) == "a"
    assert ids(answer(backlog, "12").entries) == "b"
    assert not backlog.pending


def test_another_fetcher_restored_an_older_checkpoint() -> None:
    """What this one committed lately fills the rest."""
    backlog = committed(started(A, B))
    backlog.add(batch(12, 13, "c"), 100)
    built(backlog)
    answer(backlog, "")
    answer(backlog, "10")  # stored by the other
    assert (backlog.checkpoint, shown(backlog.pending)[0]) == ("10", "repeat 10-11 a")
    assert ids(answer(backlog, "12").entries) == "ab"
    assert ids(answer(backlog, "13").entries) == "c"


def test_gaps_and_checkpoints_are_not_remembered() -> None:
    """Offered again they would mean nothing."""
    backlog = started(gap(10, 20))
    answer(backlog, "20")
    answer(started(C), "")
    assert not backlog.pending
    assert not backlog.recent


# What is committed lately


def test_a_failover_takes_away_what_was_committed() -> None:
    """What ends after the checkpoint is committed again, before what is pending, in its order; no poll is needed."""
    backlog = committed(started(batch(10, 11, "a"), batch(11, 13, *"bc"), batch(13, 14, "d")))
    backlog.add(batch(14, 15, "e"), 100)
    built(backlog)
    answer(backlog, "12")
    assert backlog.hole is None
    assert shown(backlog.pending) == ["repeat 11-13 bc", "repeat 13-14 d", "batch 14-15 e"]
    assert shown(backlog.recent) == ["repeat 10-11 a"]
    assert (backlog.recent_count, backlog.recent_bytes) == (1, 101)
    assert ids(answer(backlog, "14").entries) == "bcd"
    assert ids(answer(backlog, "15").entries) == "e"
    assert ids(entry for one in backlog.recent for entry in one.entries or ()) == "abcde"


def test_a_repeat_that_does_not_fit_either() -> None:
    """The failover took more than is remembered: VK is asked for what is before."""
    backlog = committed(started(A, B))
    backlog.add(batch(12, 13, "c"), 100)
    built(backlog)
    answer(backlog, "5")
    assert shown(backlog.pending)[0] == "repeat 10-11 a"
    answer(backlog, "5")
    assert backlog.hole == "5"
    assert shown(backlog.pending) == ["repeat 10-11 a", "repeat 11-12 b", "batch 12-13 c"]


def test_what_was_committed_of_another_time_is_no_help() -> None:
    """VK has begun anew since then: it ends after what is pending."""
    backlog = committed(started(batch(10, 90, "a"), gap(90, 3)))
    backlog.add(batch(5, 6, "b"), 100)
    built(backlog)
    answer(backlog, "3")
    assert backlog.hole == "3"
    assert shown(backlog.pending) == ["batch 5-6 b"]


@pytest.mark.parametrize(
    ("limit", "value", "kept"), [("MAX_RECENT", 3, "bcd"), ("MAX_RECENT_BYTES", 250, "bcd"), ("MAX_RECENT", 1, "d")]
)
def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str, value: int, kept: str) -> None:
    """By number and by bytes: the oldest are forgotten, and those that are left are not fewer."""
    monkeypatch.setattr(limits, limit, value)
    backlog = committed(started(*(batch(10 + i, 11 + i, id) for i, id in enumerate("abcd"))))
    assert ids(entry for one in backlog.recent for entry in one.entries or ()) == kept
    assert (backlog.recent_count, backlog.recent_bytes) == (len(kept), 101 * len(kept))


def test_a_large_batch_is_remembered_with_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when small ones come after it."""
    monkeypatch.setattr(limits, "MAX_RECENT_BYTES", 1000)
    backlog = committed(started(A, batch(11, 12, "b"), size=5000))
    backlog.add(batch(12, 13, "c"), 100)
    committed(built(backlog))
    assert shown(backlog.recent) == ["repeat 11-12 b", "repeat 12-13 c"]


def test_batches_without_events_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They weigh nothing, and there may be any number of them."""
    monkeypatch.setattr(limits, "MAX_RECENT", 5)
    backlog = committed(started(*(batch(10 + i, 11 + i) for i in range(20))))
    assert len(backlog.recent) == 5


# A hole


class Filled(NamedTuple):
    answer: Batch | Gap  # VK's, at ts 5; "a", from 10 to 11, and a gap to 20 are pending
    pending: list[str]


PENDING = ["batch 10-11 a", "gap 11-20 !"]
FILLED = {
    "VK has it": Filled(batch(5, 10, "x", "y"), ["batch 5-10 xy", *PENDING]),
    "VK has a part of it": Filled(batch(5, 7, "x"), ["batch 5-7 x", *PENDING]),
    "VK has it and more": Filled(batch(5, 30, "x", "a", "z"), ["batch 5-30 xaz", *PENDING]),
    "only ts moves": Filled(batch(5, 10), ["batch 5-10 ", *PENDING]),
    "ts goes back": Filled(batch(5, 3, "x"), ["batch 5-5 x", *PENDING]),
    "a gap inside": Filled(gap(5, 8), ["gap 5-8 !", *PENDING]),
    "a gap up to it": Filled(gap(5, 10), ["gap 5-10 !", *PENDING]),
    "a gap past it hides nothing": Filled(gap(5, 99), ["gap 5-10 !", *PENDING]),
    "a gap backwards: VK is not that far": Filled(gap(5, 2), ["late 10-11 a", "gap 11-20 !"]),
    "VK is not that far": Filled(batch(5, 5), ["late 10-11 a", "gap 11-20 !"]),
    "VK is even less far": Filled(batch(5, 3), ["late 10-11 a", "gap 11-20 !"]),
}


@pytest.mark.parametrize("case", FILLED.values(), ids=FILLED)
def test_a_hole_is_filled(case: Filled) -> None:
    """With what VK has there, or a gap that ends where what is pending begins; if VK is not that far, that is late."""
    backlog = started(A, gap(11, 20))
    answer(backlog, "5")
    assert backlog.hole == "5"
    backlog.fill(case.answer, 0)
    built(backlog)
    assert backlog.hole is None
    assert shown(backlog.pending) == case.pending


def test_a_gap_of_a_time_before_vk_began_anew_is_dropped() -> None:
    """There is nothing in it, and VK's ts are other ones now."""
    backlog = started(gap(10, 20), batch(20, 21, "a"))
    answer(backlog, "5")
    backlog.fill(batch(5, 5), 0)
    assert shown(backlog.pending) == ["batch 20-21 a"]


def test_what_is_late_goes_out_alone_and_moves_nothing() -> None:
    """Each late batch is its own: the bus leaves its checkpoint where it is."""
    backlog = started(A, B)
    answer(backlog, "5")
    backlog.fill(batch(5, 5), 0)
    commit = answer(backlog, "5")
    assert (commit.kind, ids(commit.entries), commit.completes) == ("late", "a", 1)
    assert shown(backlog.pending) == ["batch 11-12 b"]
    assert backlog.checkpoint == "5"


def test_what_is_late_is_committed_again_as_such() -> None:
    """On a new connection, in its place; it fills no hole, for its ts are of another time."""
    backlog = started(A)
    answer(backlog, "5")
    backlog.fill(batch(5, 5), 0)
    answer(backlog, "5")
    backlog.add(batch(5, 6, "b"), 0)
    committed(built(backlog))
    assert shown(backlog.recent) == ["late 10-11 a", "repeat 5-6 b"]
    backlog.add(batch(20, 21, "c"), 100)
    built(backlog)
    answer(backlog, "8")
    assert backlog.hole == "8"
    backlog.connected("6")
    assert shown(backlog.pending) == ["late 10-11 a", "repeat 5-6 b", "batch 20-21 c"]


@pytest.mark.parametrize(
    ("first", "left"),
    [
        (batch(10, 11, "a"), ["late 10-11 a", "gap 11-3 !", "batch 3-4 c"]),
        (gap(10, 11), ["gap 11-3 !", "batch 3-4 c"]),
    ],
)
def test_what_is_pending_outlived_its_time(first: Batch | Gap, left: list[str]) -> None:
    """What is pending after it has lower ts: VK is not asked for a hole that it cannot know."""
    backlog = started(first, gap(11, 3), batch(3, 4, "c"))
    answer(backlog, "2")
    assert backlog.hole is None
    assert shown(backlog.pending) == left


def test_what_fills_a_hole_waits_for_names_from_then_on() -> None:
    """It is as young as it is here."""
    backlog = started(A)
    answer(backlog, "5")
    backlog.fill(batch(5, 10, "x", size=9), 77.0)
    assert (backlog.pending[0].held_since, backlog.pending[0].size) == (77.0, 9)
    assert backlog.unbuilt() == [backlog.pending[0]]


# A new connection


def test_what_was_committed_lately_is_committed_again() -> None:
    """Redis may have failed over to a replica that lacks it; what is pending comes after it."""
    backlog = committed(started(A, B))
    backlog.add(batch(12, 13, "c"), 100)
    built(backlog)
    backlog.connected("12")
    assert shown(backlog.pending) == ["repeat 10-11 a", "repeat 11-12 b", "batch 12-13 c"]
    assert (backlog.recent_count, backlog.recent_bytes, len(backlog.recent)) == (0, 0, 0)
    assert backlog.next_ts == "13"
    committed(backlog)
    assert shown(backlog.recent) == ["repeat 10-11 a", "repeat 11-12 b", "repeat 12-13 c"]


@pytest.mark.parametrize(
    ("held", "latest", "left"),
    [
        ([batch(3, 4, "a"), batch(4, 5, "b")], "5", ["gap 20-3 !", "batch 3-4 a", "batch 4-5 b"]),
        ([batch(3, 4, "a"), batch(4, 5, "b")], "20", ["batch 3-4 a", "batch 4-5 b"]),  # another fetcher is ahead
        ([batch(3, 4, "a"), gap(4, 5)], "6", ["gap 20-3 !", "batch 3-4 a", "gap 4-5 !"]),
        ([batch(9, 11, "o"), gap(11, 3), batch(3, 4, "a")], "4", ["batch 9-11 o", "gap 20-3 !", "batch 3-4 a"]),
        ([batch(9, 11, "o")], "4", ["batch 9-11 o"]),  # of the time before: the poll after it will tell
    ],
)
def test_redis_is_as_it_was_before_vk_began_anew(held: list[Batch | Gap], latest: str, left: list[str]) -> None:
    """The checkpoint is after what is pending: VK is asked, once, whether it is that far."""
    backlog = started(*held, checkpoint="20")
    assert backlog.in_doubt
    backlog.vk_is_at(latest)
    assert not backlog.in_doubt
    assert shown(backlog.pending) == left


def test_the_gap_back_is_recorded_once_more() -> None:
    """What was committed after it comes after it again, and the poll goes on where it was."""
    backlog = committed(started(batch(3, 4, "a"), checkpoint="3"))
    backlog.connected("20")
    backlog.vk_is_at("4")
    assert backlog.next_ts == "4"
    committed(backlog)
    assert (backlog.checkpoint, shown(backlog.recent)) == ("4", ["repeat 3-4 a"])


def test_vk_is_as_far_as_the_checkpoint() -> None:
    """VK has told so by an answer: it need not be asked."""
    assert not started(batch(10, 12, "a"), batch(12, 20, "b"), checkpoint="20").in_doubt
    assert not started(checkpoint="20").in_doubt


def test_a_hole_of_another_connection_is_none() -> None:
    """The bus will tell again what is missing."""
    backlog = started(A)
    answer(backlog, "5")
    backlog.connected("10")
    assert backlog.hole is None
    assert backlog.checkpoint == "10"


def test_the_bus_came_back_empty() -> None:
    """The checkpoint that it had is stored first, once however often the connection breaks, then all that is held."""
    backlog = committed(started(A))
    backlog.add(B, 100)
    built(backlog)
    for _ in range(2):
        backlog.connected("")
    assert shown(backlog.pending) == ["restore 11-11 !", "repeat 10-11 a", "batch 11-12 b"]
    assert backlog.checkpoint == "11"


def test_the_first_start_of_a_fetcher_without_a_bus() -> None:
    """What came before the bus was there begins at VK's first ts."""
    backlog = Backlog()
    backlog.start_ts = "7"
    backlog.add(batch(7, 8, "a"), 0)
    backlog.connected("")
    assert shown(backlog.pending)[0] == "restore 7-7 !"


@pytest.mark.parametrize(
    ("ts", "other", "after"),
    [("2", "1", True), ("1", "1", False), ("10", "9", True), ("9", "10", False), ("9" * 25, "9" * 24, True)],
)
def test_ts_are_numbers(ts: str, other: str, after: bool) -> None:
    """However long."""
    assert is_after(ts, other) is after
