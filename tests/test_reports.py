"""What the loop reports to the operator about each commit: log lines and metrics."""

from typing import Any, NamedTuple

import pytest

from fetcher.core.backlog import Pending
from fetcher.core.history import DeadLetter, Entry, Outcome, Position
from fetcher.core.reports import MAX_STALL, REMIND_INTERVAL, Reports
from tests.net import Clock, Metrics

SINCE, UNTIL = Position(0, 10), Position(1, 20)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fetcher.core.reports.time", clock)
    return clock


@pytest.fixture
def reports(clock: Clock) -> Reports:
    return Reports(Metrics())


class Case(NamedTuple):
    kind: str
    recorded: list[Entry | DeadLetter]
    left_out: int
    log: list[str]
    counted: dict[str, float]  # sums of metrics that are not 0
    checkpoint: Position | None = UNTIL


A = Entry("a", "message", b"{}", 1_000_000 - 7)
LETTER = DeadLetter("x", {"update": "{}", "error": "no text: %s"})
GAP = DeadLetter("", {"since": "10", "until": "1:20", "error": "forgotten"})
LOST = DeadLetter("", {"since": "1:20", "until": "1:20", "error": "Redis had lost the checkpoint"})
LATE = "3 updates from ts 10 to 1:20 came so late that they may be on the bus already: they are left out"

CASES = {
    "events": Case("batch", [A, A._replace(date=0)], 0, [], {"message": 2, "publish_age": 7}),
    "sent by a faster clock": Case("batch", [A, A._replace(date=1_000_003)], 0, [], {"message": 2, "publish_age": 7}),
    "a dead letter": Case("batch", [A, LETTER], 0, ["Dead letter: no text: %s"],
                          {"message": 1, "publish_age": 7, "dead_letters": 1}),
    "nothing new": Case("batch", [], 0, [], {}),
    "begins after the checkpoint": Case("batch", [], 0, [], {}, Position(0, 9)),
    "no checkpoint": Case("batch", [], 0, [], {}, None),
    "left out": Case("batch", [], 3, [LATE], {"dead_letters": 1}),
    "a gap": Case("gap", [GAP], 0, ["A gap from ts 10 to 1:20: forgotten"], {"dead_letters": 1, "gaps": 1}),
    "a gap of another fetcher's": Case("gap", [], 0, [], {}),
    "a lost checkpoint": Case("restore", [LOST], 0, ["Redis had lost the checkpoint: ts 1:20 is stored again"],
                              {"dead_letters": 1}),
    "a lost checkpoint that is there again": Case("restore", [], 0, [], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_only_what_the_script_recorded_is_logged_and_counted(
    case: Case, reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    """What was offered does not count: another fetcher may have been faster."""
    offered: Any = [A, LETTER, GAP] * 5
    commit = Pending(case.kind, SINCE, UNTIL, entries=offered)  # type: ignore[arg-type]  # text of the table
    reports.committed(commit, Outcome(case.checkpoint, case.recorded, case.left_out), 0.25)
    assert caplog.messages == case.log
    assert {record.levelname for record in caplog.records} <= {"WARNING"}
    counted = {name: sum(metric.values) for name, metric in vars(reports.metrics).items()}
    counted |= reports.metrics.events.counts
    assert counted.pop("commit_seconds") == 0.25
    assert ("checkpoint" in counted) == (case.checkpoint == UNTIL), "whether it is where the commit is, or later"
    counted.pop("checkpoint", None)
    assert {name: value for name, value in counted.items() if value} == case.counted


def test_a_stall_is_logged_after_its_limit(clock: Clock, reports: Reports, caplog: pytest.LogCaptureFixture) -> None:
    """A commit that does not move the checkpoint is progress, too; each line is logged at most once a minute."""
    here = Pending("batch", SINCE, SINCE, entries=[A])
    reports.holds(7, True)
    for seconds, count in ((MAX_STALL, 0), (1, 1), (REMIND_INTERVAL - 1, 0), (1, 1)):
        clock.now += seconds
        reports.holds(7, True)
        assert len(caplog.messages) == count
        caplog.clear()
    reports.committed(here, Outcome(SINCE, [A]), 0.1)
    reports.holds(7, True)
    assert caplog.messages == ["Updates reach the bus again"]
    clock.now += MAX_STALL
    reports.holds(7, True)
    assert len(caplog.messages) == 1
