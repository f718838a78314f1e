"""The state of exactly-once: what is pending after each answer from VK and from the bus. No I/O, no fakes."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from fetcher.core import backlog as limits
from fetcher.core.backlog import LOST_CHECKPOINT, NOT_ANSWERED, RESTARTED, Backlog, Pending
from fetcher.core.history import Answer, DeadLetter, Entry, Outcome, Position

SIZE = 101  # bytes of an entry, unless a test says otherwise


def place(text: Any) -> Position:
    return Position.parse(str(text))


def batch(since: int, until: int, ids: str = "", size: int = 0) -> Answer:
    return Answer(since, until, list(ids), size)


def gap(since: int, until: int, ids: str = "", end: int | None = None) -> Answer:
    """Make VK's answer at `since`: a gap up to `until`, then updates up to `end`."""
    return Answer(until, until if end is None else end, list(ids), gap="forgotten")


def entries(ids: Iterable[Any], size: int = SIZE) -> list[Entry | DeadLetter | None]:
    """Make an entry for each id; "-" stands for an update that is not published."""
    return [None if id == "-" else Entry(id, "message", b"x" * (size - 100)) for id in ids]


def built(backlog: Backlog, size: int = SIZE) -> Backlog:
    """Build everything that is pending; in these tests an update is just the id of its entry."""
    for one in backlog.pending:
        if one.updates:
            one.set_entries(entries(one.updates, size))
    return backlog


def started(*answers: Answer, checkpoint: Any = 10, size: int = SIZE) -> Backlog:
    """Make a backlog that knows the checkpoint, and holds these answers with their events built."""
    backlog = Backlog()
    backlog.start(10)
    backlog.connected(place(checkpoint), set())
    for answer in answers:
        backlog.add(answer)
    return built(backlog, size)


def committed(*answers: Answer) -> Backlog:
    """Make a backlog whose bus has accepted these answers, one after the other."""
    backlog = started()
    for answer in answers:
        backlog.add(answer)
        pieces(built(backlog))
    return backlog


def ids(items: Iterable[Entry | DeadLetter | None]) -> str:
    """Return the id of each entry, "!" for a dead letter."""
    return "".join("!" if isinstance(one, DeadLetter) else one.id for one in items if one)


def shown(pending: Iterable[Pending]) -> list[str]:
    """Return a line for each item: its kind, since, until, and ids."""
    return [f"{one.kind} {one.since}-{one.until} {ids(one.entries)}".rstrip() for one in pending]


def errors(pending: Iterable[Pending]) -> list[str]:
    return [one.fields["error"] for item in pending for one in item.entries if isinstance(one, DeadLetter)]


def next_commit(backlog: Backlog) -> Pending:
    commit = backlog.next_commit()
    assert commit
    return commit


def answer(backlog: Backlog, checkpoint: Any) -> bool:
    """Answer the next commit with this checkpoint, and return whether updates before the pending ones are missing.

    If the bus has lost something, read it again; `seen` has lost nothing.
    """
    if not backlog.answered(next_commit(backlog), Outcome(place(checkpoint), [])):
        backlog.connected(place(checkpoint), set())
    return bool(backlog.pending) and backlog.is_missing_updates


def replay_ids(backlog: Backlog) -> list[str]:
    """Return the ids of all entries in the replay buffer."""
    return [id for one in backlog.replay for id in one.ids]


# What VK answers


class Added(NamedTuple):
    """VK's answers, of which the first is polled at this checkpoint, and what they leave pending."""

    answers: list[Answer]
    pending: list[str]
    next: str
    checkpoint: str = "10"


ADDED = {
    "nothing": Added([batch(10, 10)], [], "10"),
    "a batch": Added([batch(10, 12, "ab")], ["batch 10-12 ab"], "12"),
    "VK's steps are VK's": Added([batch(10, 99, "a")], ["batch 10-99 a"], "99"),
    "ts alone moves": Added([batch(10, 15)], ["batch 10-15"], "15"),
    "updates, and ts stays": Added([batch(10, 10, "a")], ["batch 10-10 a"], "10"),
    "a gap, and what is behind it": Added([gap(10, 20, "a", 21)], ["gap 10-20 !", "batch 20-21 a"], "21"),
    "a gap, and nothing behind it": Added([gap(10, 20)], ["gap 10-20 !"], "20"),
    "a gap of nothing": Added([gap(10, 10, "a", 11)], ["batch 10-11 a"], "11"),
    "a gap backwards": Added([gap(10, 3, "a", 4)], ["gap 10-1:3 !", "batch 1:3-1:4 a"], "1:4"),
    "ts goes back": Added([batch(10, 3, "a")], ["batch 10-10 a", "gap 10-1:3 !"], "1:3"),
    "ts goes back with nothing": Added([batch(10, 3)], ["batch 10-10", "gap 10-1:3 !"], "1:3"),
    "inside a batch": Added([batch(10, 12, "ab")], ["batch 10-12 ab"], "12", "10+1"),
    "inside a batch, and ts stays": Added([batch(10, 10, "a")], ["batch 10-10 a"], "10+1", "10+1"),
    "inside a batch, nothing": Added([batch(10, 10)], [], "10+1", "10+1"),
    "a gap inside a batch": Added([gap(10, 20)], ["gap 10+1-20 !"], "20", "10+1"),
    "inside a batch, ts goes back": Added([batch(10, 3, "a")], ["batch 10-10 a", "gap 10+1-1:3 !"], "1:3", "10+1"),
    "in a later epoch": Added(
        [batch(10, 12, "a"), gap(12, 20)], ["batch 2:10-2:12 a", "gap 2:12-2:20 !"], "2:20", "2:10"
    ),
    "two restarts": Added(
        [gap(10, 3, "a", 4), gap(4, 1, "b", 2)],
        ["gap 10-1:3 !", "batch 1:3-1:4 a", "gap 1:4-2:1 !", "batch 2:1-2:2 b"],
        "2:2",
    ),
    "longer than a double": Added([batch(10, 10**25, "a")], [f"batch 10-{10**25} a"], str(10**25)),
}


@pytest.mark.parametrize("case", ADDED.values(), ids=ADDED)
def test_an_answer_becomes_pending(case: Added) -> None:
    """An answer that moves ts or has updates is pending; a lower ts is in the next epoch; VK is polled at the end."""
    backlog = started(checkpoint=case.checkpoint)
    for answer in case.answers:
        backlog.add(answer)
    built(backlog)
    assert [line.rstrip() for line in shown(backlog.pending)] == case.pending
    assert backlog.next == place(case.next)


def test_a_gap_is_recorded_with_its_reason() -> None:
    """A gap is recorded with the reason in VK's answer; a restart of VK's numbering has a reason of its own."""
    backlog = started(gap(10, 20, end=3))
    assert errors(backlog.pending) == ["forgotten", RESTARTED]
    assert errors(started(batch(3, 4)).pending) == [RESTARTED]


def test_the_ts_at_which_vk_is_polled() -> None:
    """VK is polled at the end of what is pending or at the checkpoint, whichever is later; first at VK's latest ts."""
    backlog = Backlog()
    backlog.start(7)
    assert backlog.next == place(7)
    backlog.add(batch(7, 8, "a"))
    assert backlog.next == place(8)
    backlog.connected(place(5), set())
    assert backlog.next == place(8)
    backlog.connected(place(9), set())
    assert backlog.next == place(9)


def test_batches_are_built_together() -> None:
    """As many whole batches as fit are built together, a large one alone; gaps and built batches are skipped."""
    max_unbuilt = limits.MAX_UNBUILT
    backlog = started(gap(10, 11))
    for answer in (batch(11, 12, "a" * (max_unbuilt + 5)), batch(12, 13, "b")):
        backlog.add(answer)
    assert [one.since for one in backlog.unbuilt()] == [place(11)]
    built(backlog)
    assert backlog.unbuilt() == []
    for answer in (batch(13, 14, "c" * (max_unbuilt - 5)), gap(14, 15, "d" * 5, 16), batch(16, 17, "e")):
        backlog.add(answer)
    assert [one.since for one in backlog.unbuilt()] == [place(13), place(15)]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is limited by updates and by bytes: those of VK's answer until it is built, then those of its entries."""
    monkeypatch.setattr(limits, "MAX_PENDING", 3)
    monkeypatch.setattr(limits, "MAX_PENDING_BYTES", 1000)
    backlog = started(batch(10, 12, "ab"), gap(12, 20), gap(20, 30))
    assert not backlog.is_full
    backlog.add(batch(30, 31, "c", size=700))
    assert (backlog.count, backlog.is_full) == (3, True)
    backlog = started(batch(10, 12, "a"))
    backlog.add(batch(12, 13, "b", size=899))
    assert backlog.is_full
    built(backlog)
    assert not backlog.is_full
    assert backlog.pending[-1].updates == []


# What goes to the bus


class Next(NamedTuple):
    answers: list[Answer]
    commit: tuple[str, str, str, str, int]  # kind, since, until, ids, updates
    left: int = 0  # how many items stay behind it


NEXT = {
    "one batch": Next([batch(10, 12, "ab")], ("batch", "10", "12", "ab", 2)),
    "batches that follow": Next([batch(10, 12, "ab"), batch(12, 13, "c")], ("batch", "10", "13", "abc", 3)),
    "no updates": Next([batch(10, 12), batch(12, 13, "c")], ("batch", "10", "13", "c", 1)),
    "nothing wanted": Next([batch(10, 12, "-a-")], ("batch", "10", "12", "a", 3)),
    "updates, and ts stays": Next([batch(10, 10, "a"), batch(10, 11, "ab")], ("batch", "10", "11", "aab", 3)),
    "up to a gap": Next([batch(10, 12, "a"), gap(12, 20), batch(20, 21, "b")], ("batch", "10", "12", "a", 1), 2),
    "a gap alone": Next([gap(10, 20), batch(20, 21, "b")], ("gap", "10", "20", "!", 0), 1),
    "two gaps": Next([gap(10, 20), gap(20, 30)], ("gap", "10", "20", "!", 0), 1),
}


@pytest.mark.parametrize("case", NEXT.values(), ids=NEXT)
def test_a_commit_is_successive_batches_or_one_gap(case: Next) -> None:
    """A commit consists of whole batches that follow each other, or of a single gap, and stays pending as one item."""
    backlog = started(*case.answers)
    commit = next_commit(backlog)
    assert (commit.kind, str(commit.since), str(commit.until), ids(commit.entries), commit.count) == case.commit
    assert backlog.pending[0] is commit
    assert len(backlog.pending) == case.left + 1
    assert commit.size == SIZE * len(ids(commit.entries).replace("!", ""))


def test_nothing_is_committed_before_it_is_built() -> None:
    """A batch that is not built yet also holds back everything after it, but nothing before it."""
    backlog = started()
    assert backlog.next_commit() is None
    backlog.add(batch(10, 11, "a"))
    backlog.add(gap(11, 12))
    assert backlog.next_commit() is None
    built(backlog)
    backlog = started(batch(10, 11, "a"))
    backlog.add(batch(11, 12, "b"))
    assert next_commit(backlog).until == place(11)


@pytest.mark.parametrize("second", [batch(12, 13, "b"), batch(10, 12, "b")], ids=["missing updates", "an overlap"])
def test_only_adjacent_batches_share_a_commit(second: Answer) -> None:
    """If two batches overlap, or updates between them are missing, the bus must answer for each of them."""
    backlog = started(batch(10, 11, "a"))
    backlog.pending.extend(started(second, checkpoint=second.since).pending)
    assert next_commit(backlog).until == place(11)


def pieces(backlog: Backlog) -> list[str]:
    """Commit everything that is pending to a bus that accepts it; return a line for each commit."""
    lines = []
    while commit := backlog.next_commit():
        lines.append(f"{commit.since}-{commit.until} {ids(commit.entries)}")
        assert backlog.answered(commit, Outcome(commit.until, []))
    return lines


def smaller(backlog: Backlog, count: int) -> Backlog:
    """Limit a commit to about this many updates."""
    backlog.piece.failed(2 * count, 0, timed_out=True)
    return backlog


def test_a_large_batch_is_committed_in_pieces() -> None:
    """A piece is a batch like any other: the checkpoint may lie between two, and the last can be joined with others."""
    backlog = smaller(started(batch(10, 17, "abc-def"), batch(17, 18, "h")), 3)
    assert pieces(backlog) == ["10-10+3 abc", "10+3-10+6 de", "10+6-18 fh"]
    backlog = smaller(started(batch(10, 17, "abcd"), checkpoint="1:10"), 2)
    assert pieces(backlog) == ["1:10-1:10+2 ab", "1:10+2-1:17 cd"]


def test_a_commit_that_has_failed_is_cut_again() -> None:
    """A commit of several batches may turn out too large: the checkpoint between its pieces never says too much."""
    backlog = started(batch(10, 12, "ab"), batch(12, 14, "cd"))
    assert next_commit(backlog).until == place(14)
    assert pieces(smaller(backlog, 3)) == ["10-10+3 abc", "10+3-14 d"]
    assert place(12) > place("10+3"), "although the update that follows is after it"


def test_a_piece_knows_the_end_of_its_answer() -> None:
    """A commit of a piece has the end of VK's answer, unless a whole answer follows in the same commit."""
    backlog, ends = smaller(started(batch(10, 17, "abcdefg"), batch(17, 18, "h")), 3), list[Position | None]()
    while commit := backlog.next_commit():
        ends.append(commit.end)
        assert backlog.answered(commit, Outcome(commit.until, []))
    assert ends == [place(17), place(17), None]


def test_bytes_bound_a_piece() -> None:
    """A batch that does not fit into a commit is left whole for the next one; a piece has at least one entry."""
    assert pieces(started(batch(10, 12, "ab"), batch(12, 14, "cd"), size=300_000)) == ["10-12 ab", "12-14 cd"]
    assert pieces(started(batch(10, 12, "ab"), size=2**21)) == ["10-10+1 a", "10+1-12 b"]


# What the bus answers


class Answered(NamedTuple):
    answers: list[Answer]  # pending, all built
    checkpoint: str  # the bus's answer to the first commit
    pending: list[str]
    replay: list[str]
    is_missing: bool = False


A, B, C = batch(10, 11, "a"), batch(11, 12, "b"), batch(20, 21, "c")
ANSWERED = {
    "taken": Answered([A], "11", [], ["batch 10-11 a"]),
    "both taken": Answered([A, B], "12", [], ["batch 10-12 ab"]),
    "the bus is further": Answered([A], "99", [], ["batch 10-11 a"]),
    "the bus is of a later epoch": Answered([A], "1:3", [], ["batch 10-11 a"]),
    "begins after the checkpoint": Answered([A, B], "9", ["batch 10-12 ab"], [], True),
    "is compared as numbers": Answered([batch(100, 101, "a")], "99", ["batch 100-101 a"], [], True),
    "a gap recorded": Answered([gap(10, 20), C], "20", ["batch 20-21 c"], ["gap 10-20 !"]),
    "a gap that another fetcher has filled": Answered([gap(10, 20), C], "25", ["batch 20-21 c"], ["gap 10-20 !"]),
    "a gap that another fetcher has filled in part": Answered([gap(10, 20), C], "15", ["batch 20-21 c"], [], True),
    "a gap begins after the checkpoint": Answered([gap(10, 20)], "7", ["gap 10-20 !"], [], True),
    "a gap to the next epoch": Answered([gap(10, 3)], "1:3", [], ["gap 10-1:3 !"]),
    "a gap to the next epoch, filled": Answered([gap(10, 3)], "1:5", [], ["gap 10-1:3 !"]),
    "a gap to the next epoch, filled in part": Answered([gap(10, 3)], "15", [], []),
}


@pytest.mark.parametrize("case", ANSWERED.values(), ids=ANSWERED)
def test_committed_updates_move_to_the_replay_buffer(case: Answered) -> None:
    """An update is pending until the bus answers that it has it; then it moves to the replay buffer."""
    backlog = started(*case.answers, checkpoint=10 if case.answers[0].gap else case.answers[0].since)
    assert answer(backlog, case.checkpoint) is case.is_missing
    assert shown(backlog.pending) == case.pending
    assert shown(backlog.replay) == case.replay
    assert backlog.checkpoint == place(case.checkpoint)


# What is missing


@pytest.mark.parametrize(
    ("checkpoint", "lacking"),
    [
        ("12", ["batch 11-13 bc", "gap 13-14 !", "batch 14-15 e"]),
        ("13", ["gap 13-14 !", "batch 14-15 e"]),
        ("10", ["batch 10-11 a", "batch 11-13 bc", "gap 13-14 !", "batch 14-15 e"]),
        ("14+1", ["batch 14-15 e"]),
        ("5", ["batch 10-11 a", "batch 11-13 bc", "gap 13-14 !", "batch 14-15 e"]),
    ],
)
def test_the_replay_buffer_supplies_missing_updates(checkpoint: str, lacking: list[str]) -> None:
    """What is in the replay buffer and ends after the checkpoint is committed again, in order, before pending ones."""
    backlog = committed(batch(10, 11, "a"), batch(11, 13, "bc"), gap(13, 14), batch(14, 15, "e"))
    remembered = shown(backlog.replay)
    backlog.add(batch(15, 16, "f"))
    built(backlog)
    assert answer(backlog, checkpoint) is (checkpoint == "5"), "the rest is not there"
    assert shown(backlog.pending) == [*lacking, "batch 15-16 f"]
    assert shown(backlog.replay) == [one for one in remembered if one not in lacking]


def test_an_earlier_checkpoint_shows_a_loss_whatever_the_commit() -> None:
    """The bus may have taken the commit, if that began early enough, and still lack what was committed before it."""
    backlog = committed(batch(10, 20, "a"))
    backlog.pending.extend(started(batch(10, 12, "b")).pending)
    commit = next_commit(backlog)
    assert not backlog.answered(commit, Outcome(place(12), []))
    assert backlog.pending[0] is commit
    assert shown(backlog.replay) == ["batch 10-20 a"]
    backlog.connected(place(12), set())
    assert shown(backlog.pending) == ["batch 10-20 a", "batch 10-12 b"]


class Filled(NamedTuple):
    answer: Answer  # VK's, at ts 5, while "a", from 10 to 11, is pending
    filling: list[str]
    error: str = ""


FILLED = {
    "VK has it": Filled(batch(5, 10, "xy"), ["batch 5-10 xy"]),
    "VK has a part of it": Filled(batch(5, 7, "x"), ["batch 5-7 x"]),
    "VK has it and more": Filled(batch(5, 30, "xaz"), ["batch 5-30 xaz"]),
    "only ts moves": Filled(batch(5, 10), ["batch 5-10"]),
    "a gap inside": Filled(gap(5, 8, "x", 9), ["gap 5-8 !", "batch 8-9 x"], "forgotten"),
    "a gap up to it": Filled(gap(5, 10, "a", 11), ["gap 5-10 !"], NOT_ANSWERED),
    "a gap past it hides nothing": Filled(gap(5, 99, "z", 100), ["gap 5-10 !"], NOT_ANSWERED),
    "VK is not that far": Filled(batch(5, 5), ["gap 5-10 !"], NOT_ANSWERED),
    "VK is even less far": Filled(batch(5, 3), ["gap 5-10 !"], NOT_ANSWERED),
    "VK is even less far, with updates": Filled(batch(5, 3, "x"), ["gap 5-10 !"], NOT_ANSWERED),
    "a gap backwards": Filled(gap(5, 2, "x", 3), ["gap 5-10 !"], NOT_ANSWERED),
    "updates, and ts stays": Filled(batch(5, 5, "x"), ["batch 5-5 x"]),
}


@pytest.mark.parametrize("case", FILLED.values(), ids=FILLED)
def test_missing_updates_come_from_vk_or_become_a_gap(case: Filled) -> None:
    """What is missing is filled from VK's answer, or else becomes a gap that ends where the pending batches begin."""
    backlog = started(A)
    assert answer(backlog, 5)
    backlog.fill(case.answer)
    built(backlog)
    assert shown(backlog.pending) == [*case.filling, "batch 10-11 a"]
    assert errors(backlog.pending) == [case.error] * bool(case.error)


def test_missing_updates_of_an_earlier_epoch_become_a_gap() -> None:
    """Missing updates of an earlier epoch become a gap at once, because VK no longer has them."""
    backlog = started(batch(10, 3), batch(3, 4, "a"))
    for at in (10, "1:3"):
        answer(backlog, at)
    backlog.replay.clear()
    assert answer(backlog, 5)
    backlog.skip(RESTARTED)
    assert shown(backlog.pending)[0] == "gap 5-1:3 !"
    assert errors(backlog.pending)[0] == RESTARTED


# A new connection


COMMITTED: list[Answer] = [
    batch(10, 11, "a"),
    gap(11, 20),
    batch(20, 22, "b-"),
    batch(22, 23, "-"),
    batch(23, 3),
    batch(3, 4, "c"),
]
REPLAY = [
    "batch 10-11 a",
    "gap 11-20 !",
    "batch 20-22 b",
    "batch 22-23",
    "batch 23-23",
    "gap 23-1:3 !",
    "batch 1:3-1:4 c",
]


@pytest.mark.parametrize(
    ("checkpoint", "missing", "again"),
    [
        ("1:4", "", []),
        ("1:4", "b", ["batch 20-22 b"]),
        ("1:4", "x", []),
        ("1:3", "c", ["batch 1:3-1:4 c"]),
        ("23", "c", ["gap 23-1:3 !", "batch 1:3-1:4 c"]),
        ("10", "abc", REPLAY),
    ],
)
def test_only_what_the_bus_lacks_is_committed_again(checkpoint: str, missing: str, again: list[str]) -> None:
    """Only what has ids that `seen` lacks, or ends after the checkpoint, is committed again."""
    backlog = committed(*COMMITTED)
    assert shown(backlog.replay) == REPLAY
    assert replay_ids(backlog) == ["a", "b", "c"]
    backlog.add(batch(4, 5, "d"))
    built(backlog)
    backlog.connected(place(checkpoint), set(missing))
    assert shown(backlog.pending) == [*again, "batch 1:4-1:5 d"]
    assert shown(backlog.replay) == [one for one in REPLAY if one not in again]
    assert backlog.next == place("1:5")


def test_batches_committed_again_keep_vks_order() -> None:
    """Batches are committed again in VK's order, whatever their order in the replay buffer.

    Batches that one failover lost come after newer ones there; the next failover may lose all of them.
    """
    backlog = committed(A, B)
    backlog.connected(place(12), {"a"})
    answer(backlog, 12)
    assert shown(backlog.replay) == ["batch 11-12 b", "batch 10-11 a"]
    backlog.connected(place(10), {"a", "b"})
    assert shown(backlog.pending) == ["batch 10-11 a", "batch 11-12 b"]
    assert not backlog.is_missing_updates


def test_the_bus_came_back_empty() -> None:
    """The lost checkpoint is restored first, once however often the connection breaks; all batches follow it."""
    backlog = committed(A, gap(11, 12))
    backlog.add(batch(12, 13, "b"))
    built(backlog)
    for _ in range(2):
        backlog.connected(None, {"a"})
    assert shown(backlog.pending) == ["restore 12-12 !", "batch 10-11 a", "gap 11-12 !", "batch 12-13 b"]
    assert errors(backlog.pending)[0] == LOST_CHECKPOINT
    assert not backlog.is_missing_updates, "the checkpoint comes first"
    assert not answer(backlog, 12)
    assert shown(backlog.replay) == []


def test_another_fetcher_restored_an_older_checkpoint() -> None:
    """If another fetcher has restored an older checkpoint, this fetcher's replay buffer fills the difference."""
    backlog = committed(A, B)
    backlog.add(batch(12, 13, "c"))
    built(backlog)
    backlog.connected(None, set())
    assert not backlog.is_missing_updates
    assert not answer(backlog, 10), "the record goes first, wherever the checkpoint is"
    assert pieces(backlog) == ["12-12 !", "10-13 abc"]


def test_the_first_bus_is_empty() -> None:
    """A bus without a checkpoint begins at the ts at which the fetcher began to poll VK."""
    backlog = Backlog()
    backlog.start(7)
    backlog.connected(None, set())
    assert shown(backlog.pending) == ["restore 7-7 !"]


@pytest.mark.parametrize(
    ("checkpoint", "held", "latest", "epochs"),
    [
        ("50", [batch(50, 60, "a")], 60, ["50-60"]),
        ("40", [batch(50, 60, "a")], 60, ["50-60"]),  # another fetcher stores an older checkpoint
        ("90", [batch(50, 60, "a")], 90, ["50-60"]),  # another fetcher is ahead
        ("3:40", [batch(50, 60, "a")], 60, ["3:50-3:60"]),
        ("500", [batch(50, 60, "a")], 60, ["1:50-1:60"]),  # VK has restarted its numbering since the checkpoint
        ("3:500", [batch(50, 60, "a"), batch(60, 70, "b")], 70, ["4:50-4:60", "4:60-4:70"]),
        ("40", [batch(50, 60, "a")], 30, ["50-60"]),  # …since the held batch: the next poll will show it
        ("3:40", [batch(50, 60, "a")], 30, ["3:50-3:60"]),
        ("3:60", [batch(50, 60, "a")], 30, ["3:50-3:60"]),
        ("3:20", [batch(50, 60, "a")], 30, ["2:50-2:60"]),  # …and another fetcher has noticed that
        ("20", [batch(50, 60, "a")], 30, ["50-60"]),
        ("3:40", [batch(50, 60, "a"), gap(60, 7), batch(7, 8, "b")], 8, ["3:50-3:60", "3:60-4:7", "4:7-4:8"]),
        ("3:7", [batch(50, 60, "a"), gap(60, 7), batch(7, 8, "b")], 8, ["2:50-2:60", "2:60-3:7", "3:7-3:8"]),
        ("3:40", [batch(50, 60, "a"), gap(60, 7), batch(7, 100, "b")], 5, ["2:50-2:60", "2:60-3:7", "3:7-3:100"]),
    ],
)
def test_epochs_are_counted_as_the_bus_does(
    checkpoint: str, held: list[Answer], latest: int, epochs: list[str]
) -> None:
    """A fetcher that started without Redis counts epochs from 0, until the checkpoint and VK's latest ts correct it."""
    backlog = Backlog()
    backlog.start(50)
    for one in held:
        backlog.add(one)
    backlog.rebase(place(checkpoint), latest)
    assert [f"{one.since}-{one.until}" for one in backlog.pending] == epochs


# The replay buffer


@pytest.mark.parametrize(
    ("limit", "value", "kept"),
    [
        ("MAX_REPLAY", 3, "bcd"),
        ("MAX_REPLAY_BYTES", 3 * SIZE - 1, "bcd"),
        ("MAX_REPLAY_BYTES", 2 * SIZE + 1, "bcd"),
        ("MAX_REPLAY", 1, "d"),
        ("MAX_REPLAY_BYTES", 1, "d"),
    ],
)
def test_the_replay_buffer_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str, value: int, kept: str) -> None:
    """The replay buffer keeps just as many of the latest batches as reach its limit of updates or of bytes."""
    monkeypatch.setattr(limits, limit, value)
    backlog = committed(*(batch(10 + i, 11 + i, id) for i, id in enumerate("abcd")))
    assert "".join(replay_ids(backlog)) == kept


@pytest.mark.parametrize(
    ("limit", "value", "latest", "kept"),
    [
        ("MAX_REPLAY", 5, "cdef", "abcdef"),
        ("MAX_REPLAY", 5, "cdefg", "cdefg"),
        ("MAX_REPLAY_BYTES", 4 * SIZE + 1, "cdef", "abcdef"),
        ("MAX_REPLAY_BYTES", 4 * SIZE, "cdef", "cdef"),
    ],
)
def test_the_oldest_batch_is_dropped_once_the_others_reach_a_limit(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, latest: str, kept: str
) -> None:
    """The oldest batch is dropped exactly when the others reach a limit without it."""
    monkeypatch.setattr(limits, limit, value)
    backlog = committed(batch(10, 12, "ab"))
    backlog.add(batch(12, 20, latest))
    commit = next_commit(built(backlog))
    assert backlog.answered(commit, Outcome(commit.until, []))
    assert "".join(replay_ids(backlog)) == kept


def test_a_large_batch_is_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is larger than the limit is kept whole, even after small ones follow."""
    monkeypatch.setattr(limits, "MAX_REPLAY", 3)
    backlog = committed(batch(10, 11, "a"), batch(11, 12, "bcdef"), batch(12, 13, "g"))
    assert "".join(replay_ids(backlog)) == "bcdefg"


def test_batches_without_events_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches without events have no size, so their number is limited, too."""
    monkeypatch.setattr(limits, "MAX_REPLAY", 5)
    backlog = committed(*(batch(10 + i, 11 + i) for i in range(20)))
    assert len(backlog.replay) == 5


def test_batches_committed_again_do_not_count_towards_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that leave the replay buffer to be committed again no longer count towards its limits."""
    monkeypatch.setattr(limits, "MAX_REPLAY", 3)
    backlog = committed(*(batch(10 + i, 11 + i, id) for i, id in enumerate("abc")))
    for _ in range(5):
        backlog.connected(place(13), {"b", "c"})
        assert [commit.split()[-1] for commit in pieces(backlog)] == ["bc"]
    assert "".join(replay_ids(backlog)) == "abc"
