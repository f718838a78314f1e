"""The fetcher's loop, with VK and the bus in memory and a fake clock: each test runs it as the program does."""

import itertools
import logging
import random
from enum import Enum
from typing import Any, NamedTuple

import pytest

from fetcher.core import backlog as limits
from fetcher.core.backlog import NOT_ANSWERED
from fetcher.core.history import Answer, Name, Position
from fetcher.core.relay import HEARTBEAT_INTERVAL, IMPATIENT_TIME, NAMES_TIMEOUT, require_progress
from fetcher.core.reports import REMIND_INTERVAL
from fetcher.errors import ConnectionReplaced, FatalError, RedisFatalError, RedisTimeout, TransientError
from tests.fakes import PERSON, REDIS_DOWN, VK_DOWN, Clock, Fetcher, History, Store, answer, numbers, update
from tests.simulation.store import Record

pytestmark = pytest.mark.usefixtures("own_lookups")

REDIS_FATAL = RedisFatalError("Redis refuses the user or the password: fix REDIS_URL")
VK_FATAL = FatalError("VK refuses the token: set another TOKEN")
BUG = RuntimeError("a bug of ours")
TIMEOUT = RedisTimeout("Redis is unavailable (TimeoutError)")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("core.relay", "core.reports", "vk.entries"):
        monkeypatch.setattr(f"fetcher.{module}.time", clock)
    return clock


@pytest.fixture
def history(clock: Clock) -> History:
    return History(clock)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def fetcher(history: History, store: Store) -> Fetcher:
    return Fetcher(history, store)


@pytest.fixture
def other(history: History, store: Store) -> Fetcher:
    """Another fetcher of the same community and bus."""
    return Fetcher(history, store)


@pytest.fixture
def begun(fetcher: Fetcher, caplog: pytest.LogCaptureFixture) -> Fetcher:
    """A fetcher that has begun to poll, with an empty log."""
    fetcher.poll()
    caplog.clear()
    return fetcher


def place(ts: int, epoch: int = 0, part: int = 0) -> Position:
    return Position(epoch, ts, part)


def gap(since: Any, until: Any, error: str = "forgotten") -> dict[str, str]:
    return {"since": str(since), "until": str(until), "error": error}


def settle(*fetchers: Fetcher) -> None:
    """Let each fetcher run until everything that VK has is on the bus and none of them holds anything."""
    for _ in range(3):
        for fetcher in fetchers:
            fetcher.settle()


def hold(fetcher: Fetcher, *ids: str) -> None:
    """Make the fetcher hold these updates by taking Redis down while it polls them."""
    fetcher.bus.failure = REDIS_DOWN
    fetcher.history.push(*ids)
    fetcher.run(lambda: fetcher.vk.polled_at[-1] == fetcher.history.ts)
    fetcher.bus.failure = None


def fail_over(store: Store, replica: Store, *fetchers: Fetcher) -> None:
    """Make the replica the server; connections break, which the clients notice when they use them."""
    store.become(replica)
    for fetcher in fetchers:
        fetcher.bus.disconnect()


# From VK to the bus


def test_an_answer_is_committed_before_the_next_poll(begun: Fetcher, store: Store) -> None:
    """The fetcher polls from the checkpoint, commits, and polls from where the answer ended."""
    begun.history.push("a", "b")
    begun.run(lambda: begun.vk.polled_at[-1] == 12 and begun.vk.waits[-1] == 25)
    assert store.ids == ["a", "b"]
    assert store.checkpoint == place(12)
    assert [commit.since for commit in begun.bus.commits] == [place(10)]
    assert begun.vk.polled_at[:3] == [10, 10, 12]


def test_the_first_start(fetcher: Fetcher, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The checkpoint is VK's ts, stored before the first poll; the log says once that polling has begun."""
    caplog.set_level(logging.INFO)
    checkpoints: list[Position | None] = []
    fetcher.vk.before_poll.append(lambda: checkpoints.append(store.checkpoint))
    fetcher.history.push("before")
    fetcher.poll(3)
    assert checkpoints[0] == place(11)
    assert caplog.messages == ["Polling VK, checkpoint 11"]
    fetcher.history.push("a")
    fetcher.settle()
    assert store.ids == ["a"]


def test_a_later_start(fetcher: Fetcher, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The fetcher continues from the bus's checkpoint, whatever VK's latest ts is."""
    caplog.set_level(logging.INFO)
    store.checkpoint = place(10)
    fetcher.history.push("a", "b")
    fetcher.settle()
    assert store.ids == ["a", "b"]
    assert caplog.messages == ["Polling VK, checkpoint 10"]


@pytest.mark.parametrize("failure", [VK_DOWN, VK_FATAL])
def test_vk_fails_at_the_start(fetcher: Fetcher, store: Store, failure: Exception) -> None:
    """Nothing happens until VK's ts is known; a fatal error ends the fetcher."""
    fetcher.vk.start_failure = failure
    if failure is VK_FATAL:
        with pytest.raises(FatalError):
            fetcher.relay.run()
    else:
        fetcher.run_for(10)
    assert not fetcher.vk.polls
    assert store.checkpoint is None
    fetcher.vk.start_failure = None
    fetcher.poll()
    assert store.checkpoint == place(10)


def test_updates_are_looked_up_together(begun: Fetcher, store: Store) -> None:
    """One request resolves the names for everything that is held, up to 1,000 updates."""
    begun.bus.failure = REDIS_DOWN
    begun.vk.names_failure = VK_DOWN
    begun.history.push(*(update(id, user=1000 + int(id)) for id in numbers(1200)))
    begun.run(lambda: begun.held == 1200)
    begun.bus.failure = begun.vk.names_failure = None
    begun.vk.looked_up.clear()
    begun.settle()
    assert store.ids == numbers(1200)
    assert [len(people) for people in begun.vk.looked_up] == [1001, 200]  # the first includes the chat


def test_an_update_that_is_malformed(begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """It becomes a dead letter in its place, logged once however often its batch is tried.

    An update of an unwanted type leaves nothing on the bus.
    """
    begun.vk.names_failure = VK_DOWN
    begun.history.push("a", update("x", malformed="no text"), update("y", ignored=True), "b")
    begun.poll(3)
    assert "Dead letter" not in caplog.text
    begun.vk.names_failure = None
    begun.settle()
    assert store.ids == ["a", "b"]
    assert [letter["error"] for letter in store.dead] == ["no text"]
    assert caplog.messages.count("Dead letter: no text") == 1
    assert store.seen == ["a", "x", "b"]


def test_a_large_answer_is_committed_in_pieces(begun: Fetcher, store: Store) -> None:
    """A commit has at most 500 updates; a kill between two commits loses and repeats nothing."""
    begun.history.batch = 2000
    begun.history.push(*numbers(300), update("x", malformed="why"), *numbers(900, 300))

    def cut(commit: Any) -> None:
        if len(store.ids) > 400:
            begun.bus.failure = REDIS_DOWN
            raise REDIS_DOWN

    begun.bus.on_commit = cut
    begun.run(lambda: begun.bus.failure is not None)
    assert store.checkpoint == place(10, part=500)
    assert (len(store.ids), len(store.dead)) == (499, 1)
    begun.restart()
    begun.settle()
    assert store.ids == numbers(1200)
    assert len(store.dead) == 1
    assert [commit.count for commit in begun.bus.commits] == [500, 500, 201]


# Gaps


Step = Enum("Step", ["COPY", "FAILOVER", "SILENT_FAILOVER", "FORGET"])
COPY, FAILOVER, SILENT_FAILOVER, FORGET = Step


class Story(NamedTuple):
    """The steps of a story, one after the other, and what the bus and the log have in the end.

    Letters are updates, which are all on the bus before the next step; a number is the ts from which VK continues,
    without any earlier updates. A failover is to the COPY, or to an empty server if there is none; a silent one breaks
    no connection.
    """

    steps: list[str | int | Step]
    dead: list[dict[str, str]]
    checkpoint: str
    log: list[str]


EMPTIED = [gap(12, 12, "Redis had lost the checkpoint")], "13", ["Redis had lost the checkpoint: ts 12 is stored again"]
STORIES = {
    "a gap": Story([20, "a"], [gap(10, 20)], "21", ["A gap from ts 10 to 20: forgotten"]),
    "VK restarts its numbering twice": Story(
        ["a", 3, "b", 1, "c"],
        [gap(11, "1:3"), gap("1:4", "2:1")],
        "2:2",
        ["A gap from ts 11 to 1:3: forgotten", "A gap from ts 1:4 to 2:1: forgotten"],
    ),
    "a failover to an older copy, and VK has forgotten everything": Story(
        ["ab", COPY, "cd", 500, "ef", FORGET, FAILOVER],
        [gap(14, 500)],
        "502",
        ["A gap from ts 14 to 500: forgotten"] * 2,
    ),
    "a failover to a copy from before VK restarted its numbering": Story(
        ["a", COPY, "b", 3, "cd", FAILOVER, "e"], [gap(12, "1:3")], "1:6", ["A gap from ts 12 to 1:3: forgotten"] * 2
    ),
    "a failover to a copy from before three restarts": Story(
        [COPY, 5, "a", 3, "b", 1, "c", FAILOVER],
        [gap(10, "1:5"), gap("1:6", "2:3"), gap("2:4", "3:1")],
        "3:2",
        [f"A gap from ts {places}: forgotten" for places in ("10 to 1:5", "1:6 to 2:3", "2:4 to 3:1")] * 2,
    ),
    "Redis came back empty": Story(["ab", FAILOVER, "c"], *EMPTIED),
    "Redis was emptied": Story(["ab", SILENT_FAILOVER, "c"], *EMPTIED),
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_everything_is_published_in_vks_order(
    begun: Fetcher, store: Store, story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    """Each update is published once and each gap recorded in its place, even if a copy lacks them; the log matches."""
    replica = Store()
    for step in story.steps:
        if isinstance(step, int):
            begun.history.begin_at(step)
        elif isinstance(step, str):
            begun.history.push(*step)
            begun.settle()
        elif step is COPY:
            replica = store.copy()
        elif step is FORGET:
            begun.history.kept = 0
        else:
            fail_over(store, replica, *[begun] * (step is FAILOVER))
    begun.settle()
    assert "".join(store.ids) == "".join(step for step in story.steps if isinstance(step, str))
    assert store.dead == story.dead
    assert str(store.checkpoint) == story.checkpoint
    assert caplog.messages == story.log


def test_vk_restarts_its_numbering_silently(begun: Fetcher, store: Store) -> None:
    """A lower ts in an answer reveals it: the answer's updates are published, and the gap is recorded."""
    begun.vk.script = [answer(10, 3, "a")]
    begun.history.begin_at(3)
    begun.history.push("b")
    begun.settle()
    assert store.ids == ["a", "b"]
    assert store.dead == [gap(10, "1:3", "VK restarted its numbering")]


@pytest.mark.parametrize("repeated", [answer(10, 10, "a"), answer(10, 10, "a", gap="forgotten")])
def test_vk_does_not_advance_ts(
    begun: Fetcher, store: Store, repeated: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """Updates at an unchanged ts are published once, VK is not polled in a tight loop, and no gap is recorded."""
    begun.vk.script = [repeated] * 5
    polls = len(begun.vk.polls)
    begun.run_for(3)
    assert len(begun.vk.polls) - polls <= 6
    assert "VK's long poll repeats itself without progress: trying again" in caplog.messages
    begun.history.push("b")
    begun.settle()
    assert store.ids == ["a", "b"]
    assert not store.dead


# Something is missing before what is pending


def forget(store: Store, ts: Position) -> None:
    """Reset the bus to this checkpoint, without anything that came later and without breaking a connection."""
    store.become(Store())
    store.checkpoint = ts


def test_the_replay_buffer_supplies_missing_updates(begun: Fetcher, store: Store) -> None:
    """The replay buffer supplies it, even if VK has forgotten it."""
    begun.history.push("a", "b")
    begun.settle()
    begun.history.push("c")
    polls = len(begun.vk.polls)
    forgotten: list[bool] = []

    def lose(commit: Any) -> None:
        if not forgotten:
            forgotten.append(True)
            forget(store, place(10))

    begun.bus.on_commit = lose
    begun.history.kept = 1
    begun.settle()
    assert store.ids == ["a", "b", "c"]
    assert not store.dead
    assert begun.vk.polled_at[polls:] == [12]


@pytest.fixture
def behind(begun: Fetcher, store: Store) -> Fetcher:
    """A fetcher that holds "c" (12, 13] and does not remember "a" and "b" (10, 12]; the bus is at 10."""
    begun.history.push("a", "b")
    store.checkpoint = place(12)
    begun.restart()
    begun.poll()
    hold(begun, "c")
    forget(store, place(10))
    begun.bus.disconnect()
    begun.vk.polls.clear()
    return begun


class Missing(NamedTuple):
    """What VK answers at the checkpoint, which events are published then, and what is recorded and logged."""

    script: list[Answer | Exception]
    ids: str
    gap_to: int = 0
    error: str = ""
    logged: str = ""
    new_key: int | None = None  # the ts of the next key, if it is not VK's latest
    restarts: bool = False  # whether VK restarts its numbering before the poll, and then sends "d"


MISSING = {
    "VK has it": Missing([], "abc"),
    "VK fails: nothing is decided then": Missing([VK_DOWN] * 4, "abc"),
    "VK repeats itself: polled again, with a pause": Missing(
        [answer(10, 10, "a")], "abc", logged="VK's long poll repeats itself without progress: trying again"
    ),
    "an empty answer proves nothing while a new key is past the place": Missing(
        [answer(10, 10)], "abc", logged="VK's long poll is silent, though its new key has a later ts: trying again"
    ),
    "VK is not past the checkpoint: nobody has it": Missing(
        [answer(10, 10)], "c", 12, "VK does not return the updates in between", new_key=10
    ),
    "VK has forgotten a part: the gap ends where it has something again": Missing(
        [answer(11, 12, "b", gap="forgotten")], "bc", 11, "forgotten"
    ),
    "VK has forgotten more than that: the gap never hides what is pending": Missing(
        [answer(99, 99, gap="forgotten")], "c", 12, NOT_ANSWERED
    ),
    "VK has restarted its numbering": Missing([answer(10, 3, "z")], "cd", 12, NOT_ANSWERED, restarts=True),
    "VK has restarted, and says that it has forgotten": Missing(
        [answer(3, 3, gap="forgotten")], "cd", 12, NOT_ANSWERED, restarts=True
    ),
}


@pytest.mark.parametrize("case", MISSING.values(), ids=MISSING)
def test_missing_updates_are_requested_from_vk(
    behind: Fetcher, store: Store, case: Missing, caplog: pytest.LogCaptureFixture
) -> None:
    """VK is polled at the checkpoint with a short wait; what it does not have becomes a gap, and order is kept."""
    behind.vk.script = case.script.copy()
    behind.vk.renewals = [case.new_key] if case.new_key else []
    if case.restarts:
        behind.history.begin_at(3)
        behind.history.push("d")
    behind.settle()
    assert behind.vk.polls[0][1:] == (10, 1)
    assert "".join(store.ids) == case.ids
    assert store.dead[:1] == ([gap(10, case.gap_to, case.error)] if case.gap_to else [])
    assert len(store.dead) == bool(case.gap_to) + case.restarts
    assert [line for line in caplog.messages if line.startswith("VK's long poll")] == [case.logged] * bool(case.logged)
    assert store.checkpoint == (place(4, epoch=1) if case.restarts else place(13))


def test_missing_updates_are_requested_while_the_next_epoch_is_pending(behind: Fetcher) -> None:
    """What is missing belongs to the epoch of the oldest pending update, so VK can still be polled for it."""
    behind.bus.failure = REDIS_DOWN
    behind.history.begin_at(3)
    behind.history.push("d")
    behind.run(lambda: behind.held == 2)
    behind.bus.failure = None
    behind.vk.polls.clear()
    behind.settle()
    assert 10 in behind.vk.polled_at


def test_missing_updates_of_an_earlier_epoch_become_a_gap(behind: Fetcher, store: Store) -> None:
    """VK no longer has any of it, so it becomes a gap at once, without a poll."""
    behind.history.begin_at(3)
    behind.history.push("d")
    behind.bus.failure = REDIS_DOWN
    behind.poll(3)  # a gap to epoch 1, and "d"
    behind.restart()
    store.checkpoint = place(3, epoch=1)
    behind.poll()
    hold(behind, "e")
    forget(store, place(10))
    behind.bus.disconnect()
    behind.vk.polls.clear()
    behind.settle()
    assert store.ids == ["d", "e"]
    assert store.dead == [gap(10, "1:3", "VK restarted its numbering")]
    assert 10 not in behind.vk.polled_at


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (place(15), [gap(10, 15)]),  # VK has the rest
        (place(15, part=1), [gap(10, 15)]),
        (place(25), [gap(10, 25)]),
    ],
)
def test_another_fetcher_has_filled_a_gap(
    begun: Fetcher, store: Store, at: Position, expected: list[dict[str, str]]
) -> None:
    """It has recorded part of the gap, or more than the gap: only the rest is requested from VK."""
    begun.history.begin_at(15)
    begun.history.push(*numbers(10, 16))
    begun.vk.script = [answer(20, 21, "21", gap="forgotten")]
    moved: list[bool] = []

    def fill(commit: Any) -> None:
        if commit.kind == "gap" and not moved:
            moved.append(True)
            store.redis.dead.extend(map(Record, expected))
            store.checkpoint = at

    begun.bus.on_commit = fill
    begun.settle()
    assert store.dead == expected
    first = 16 if at.ts == 15 else 26
    assert [id for id in store.ids if int(id) >= first] == numbers(26 - first, first)
    assert len(set(store.ids)) == len(store.ids)


def test_another_fetcher_was_further_in_the_previous_epoch(begun: Fetcher, store: Store) -> None:
    """The rest of that epoch becomes a gap up to the restart, with the reason."""
    begun.history.begin_at(3)

    def advance(commit: Any) -> None:
        if commit.kind == "gap" and store.checkpoint == place(10):
            store.checkpoint = place(15)

    begun.bus.on_commit = advance
    begun.settle()
    assert store.dead == [gap(15, "1:3")]


# Redis fails


def test_batches_are_held_while_redis_is_down(begun: Fetcher, store: Store) -> None:
    """VK is polled all the time, with short waits, and names are looked up before Redis is back."""
    begun.bus.failure = REDIS_DOWN
    begun.bus.disconnect()
    begun.poll()
    begun.history.push(*numbers(3))
    begun.poll(3)
    assert set(begun.vk.waits[2:]) == {1}
    begun.vk.names_failure = VK_DOWN
    begun.bus.failure = None
    begun.poll(2)
    assert store.ids == numbers(3)
    assert set(store.users) == {f"name of {PERSON}"}


def test_a_reply_is_lost(begun: Fetcher, store: Store) -> None:
    """The bus already has everything, so nothing is published twice."""
    begun.history.push(*numbers(3))
    begun.bus.lost_replies = 2
    begun.settle()
    assert store.ids == numbers(3)
    assert not store.dead


def test_only_what_the_bus_lacks_is_sent_again(begun: Fetcher, store: Store) -> None:
    """A broken connection costs the ids of the latest commits; a failover also costs what the replica lacks."""
    begun.history.push(*(update(id, size=10_000) for id in numbers(400)))
    begun.settle()
    replica = store.copy()
    begun.history.push(*(update(id, size=10_000) for id in numbers(50, 400)))
    begun.settle()
    sent = len(begun.bus.commits)
    for _ in range(20):
        begun.bus.disconnect()
        begun.poll()
    assert len(begun.bus.commits) == sent
    assert begun.bus.reads[-1] == numbers(450)
    fail_over(store, replica, begun)
    begun.settle()
    assert store.ids == numbers(450)
    assert sum(commit.count for commit in begun.bus.commits[sent:]) == 50
    assert sum(commit.size for commit in begun.bus.commits[sent:]) < 51 * 10_500


def test_commits_advance_over_a_link_whose_connections_break(begun: Fetcher, store: Store) -> None:
    """Each connection can carry 2 s of 128 KB/s; what is committed is not sent again, however often they break."""
    begun.bus.failure = REDIS_DOWN
    begun.history.push(*(update(id, size=1000) for id in numbers(3000)))
    begun.run(lambda: begun.held == 3000)
    begun.bus.failure = None
    left = [0.0]  # bytes that the current connection can still carry

    def transfer(commit: Any) -> None:
        if begun.bus.reads and left[0] < commit.size:
            begun.clock.now += left[0] / 131072
            left[0] = 2 * 131072
            raise REDIS_DOWN
        left[0] -= commit.size
        begun.clock.now += commit.size / 131072

    begun.bus.on_commit = transfer
    started = begun.clock.now
    begun.settle()
    assert store.ids == numbers(3000)
    assert begun.clock.now - started < 200, "30 are needed"
    assert sum(commit.count for commit in begun.bus.commits) == 3000


@pytest.mark.parametrize(("count", "size", "minimum", "maximum"), [(3000, 0, 1000, 1499), (300, 200_000, 79, 90)])
def test_the_replay_buffer_is_bounded(
    begun: Fetcher, store: Store, count: int, size: int, minimum: int, maximum: int
) -> None:
    """The replay buffer has the latest 1,000 updates, or 16 MiB of them if that is fewer."""
    begun.history.push(*(update(id, size=size) for id in numbers(count)))
    begun.settle()
    begun.bus.disconnect()
    begun.poll()
    ids = begun.bus.reads[-1]
    assert minimum <= len(ids) <= maximum
    assert ids == numbers(len(ids), count - len(ids))


def test_an_empty_redis_that_takes_no_writes(begun: Fetcher, store: Store) -> None:
    """The checkpoint is stored again once, however often that failed before; memory does not grow meanwhile."""
    begun.history.push("a")
    begun.settle()
    store.become(Store())
    begun.bus.disconnect()
    begun.bus.commit_failure = REDIS_DOWN
    begun.run_for(60)
    begun.bus.commit_failure = None
    commits = len(begun.bus.commits)
    begun.settle()
    assert [commit.kind for commit in begun.bus.commits[commits:]] == ["restore", "batch"]
    assert store.ids == ["a"]


def test_the_checkpoint_was_deleted(begun: Fetcher, other: Fetcher, store: Store) -> None:
    """Two fetchers restore the checkpoint, and there is one record of that."""
    other.poll()
    begun.history.push("a")
    settle(begun, other)
    begun.history.push("b")
    store.checkpoint = None
    settle(begun, other)
    assert store.ids == ["a", "b"]
    assert store.dead == [gap(11, 11, "Redis had lost the checkpoint")]


@pytest.mark.parametrize(
    ("stored", "published", "committed"),
    [(14, "", "abcd"), (12, "ab", "cd"), (13, "abc", "d"), (14, "abcd", ""), (99, "abcd", ""), (99, "ab", "cd")],
)
def test_another_fetcher_is_further(begun: Fetcher, store: Store, stored: int, published: str, committed: str) -> None:
    """Its checkpoint hides nothing: held updates that are not on the bus are published, and none is published twice."""
    hold(begun, *"abcd")
    store.remember(*published)
    store.checkpoint = place(stored)
    begun.history.ts = max(begun.history.ts, stored)
    begun.settle()
    assert "".join(store.ids) == committed
    assert store.checkpoint == place(max(stored, 14))
    assert not store.dead


def test_two_fetchers_commit_the_same(begun: Fetcher, other: Fetcher, store: Store) -> None:
    """Each event is on the bus once, and counted once."""
    other.poll()
    begun.history.push(*numbers(300), update("x", malformed="why"), *numbers(300, 300))
    for _ in range(10):
        begun.poll()
        other.poll()
    settle(begun, other)
    assert store.ids == numbers(600)
    events = [one.metrics.events.labels(type="message").values for one in (begun, other)]
    assert sum(map(sum, events)) == 600
    assert sum(sum(one.metrics.dead_letters.values) for one in (begun, other)) == 1


def test_batches_that_come_too_late(
    begun: Fetcher, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are left out, because they might be repetitions; that is recorded and logged once, and not tried again."""
    monkeypatch.setattr("fetcher.bus.bus.DEDUP_WINDOW", 20)
    hold(begun, "a", "b")
    store.remember(*(f"old {number}" for number in range(20)))
    store.checkpoint = place(30)
    begun.history.ts = 30
    for _ in range(3):
        begun.settle()
        begun.bus.disconnect()
    error = "2 updates came so late that they may be on the bus already"
    assert store.ids == []
    assert store.dead == [gap(10, 12, error)]
    assert [one for one in caplog.messages if "late" in one] == [
        "2 updates from ts 10 to 12 came so late that they may be on the bus already: they are left out"
    ]
    assert sum(begun.metrics.dead_letters.values) == 1
    assert not sum(begun.metrics.events.labels(type="message").values)


def test_a_new_connection_inside_a_step(begun: Fetcher, store: Store) -> None:
    """If the client replaces a closed connection while it reads names, what the server lacks is published first."""
    begun.history.push("a", "b")
    begun.settle()
    replica = store.copy()
    replica.become(Store())
    replica.checkpoint = place(10)
    begun.history.push(update("c", user=77))

    def replace() -> None:
        begun.bus.on_read_names = lambda: None
        fail_over(store, replica, begun)
        raise ConnectionReplaced

    begun.bus.on_read_names = replace
    begun.history.kept = 1
    begun.settle()
    assert store.ids == ["a", "b", "c"]
    assert not store.dead


def test_a_new_connection_at_a_heartbeat(begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """It is not a failure: what the server lacks is published, and the heartbeat is set after the next poll."""
    begun.history.push("a", "b")
    begun.settle()
    replica = store.copy()
    replica.become(Store())
    replica.checkpoint = place(10)
    begun.history.kept = 1
    begun.clock.now += HEARTBEAT_INTERVAL
    begun.poll()
    beats = len(begun.bus.beats)

    def replace() -> None:
        begun.bus.on_beat = lambda: None
        fail_over(store, replica, begun)
        raise ConnectionReplaced

    begun.bus.on_beat = replace
    begun.run_for(60)
    assert store.ids == ["a", "b"]
    assert len(begun.bus.beats) > beats
    assert not caplog.messages


def drop_during_polls(fetcher: Fetcher) -> None:
    """Put Redis far away, behind a link that drops idle connections, so that no connection survives a poll."""
    survivors: list[bool] = []  # has an item once the connection has been dropped after the latest poll

    def answer_late() -> None:
        was_connected = fetcher.bus.is_connected
        if not survivors:
            survivors.append(True)
            fetcher.bus.disconnect()
            if was_connected:
                raise ConnectionReplaced
        fetcher.clock.now += 1.2

    fetcher.bus.on_request = answer_late
    fetcher.vk.before_poll.append(survivors.clear)


def test_connections_that_break_during_polls(begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Updates are published, although the lookup on each new connection takes longer than a step has for commits."""
    begun.settle()
    drop_during_polls(begun)
    for number in range(20):
        begun.history.push(f"a{number}")
        begun.run_for(3)
        assert begun.held < 10
    begun.settle()
    assert store.ids == [f"a{number}" for number in range(20)]
    assert not caplog.messages


def test_connections_that_break_at_each_commit(begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A step connects at most twice, so VK is still polled; the log says once a minute that nothing is committed."""
    begun.settle()

    def replace() -> None:
        if begun.bus.is_connected:
            begun.bus.disconnect()
            raise ConnectionReplaced

    begun.bus.on_request = replace
    begun.history.push("a")
    begun.run_for(5)
    assert begun.held == 1
    polls, reads = len(begun.vk.polls), len(begun.bus.reads)
    begun.run_for(60)
    assert 0 < len(begun.bus.reads) - reads <= 2 * (len(begun.vk.polls) - polls + 1)
    begun.run_for(60)
    assert ["1 updates are held, and none has reached the bus" in one for one in caplog.messages] == [True] * 2
    begun.bus.on_request = lambda: None
    begun.settle()
    assert store.ids == ["a"]


def test_heartbeats_on_connections_that_break_during_polls(begun: Fetcher) -> None:
    """A heartbeat is set after each poll, even if nothing else is sent to Redis."""
    begun.settle()
    drop_during_polls(begun)
    beats, polls = len(begun.bus.beats), len(begun.vk.polls)
    begun.run_for(300)
    assert len(begun.bus.beats) - beats >= len(begun.vk.polls) - polls - 1 > 5


@pytest.mark.parametrize("commit_time", [0.5, 1.0, 2.0])
def test_vk_and_redis_are_far_away(begun: Fetcher, store: Store, commit_time: float) -> None:
    """VK is polled more than once between two commits; otherwise it would forget updates meanwhile."""
    begun.settle()

    def delay_poll() -> None:
        begun.clock.now += 1

    begun.vk.before_poll.append(delay_poll)
    begun.bus.cost = lambda commit: commit_time
    begun.history.batch, begun.history.kept = 100, 256
    begun.history.flow(rate=40)
    begun.run_for(120)
    assert not store.dead
    assert len(store.ids) > 40 * 110


def test_connections_that_live_for_two_requests(begun: Fetcher, store: Store) -> None:
    """Two requests are enough for events and heartbeats: on a distant link, no connection may live for three."""
    begun.settle()
    requests = 0  # on the current connection

    def fail_from_the_third_on() -> None:
        nonlocal requests
        requests = requests + 1 if begun.bus.is_connected else 1
        if requests > 2:
            raise REDIS_DOWN

    begun.bus.on_request = fail_from_the_third_on
    beats = len(begun.bus.beats)
    for number in range(5):
        begun.history.push(update(str(number), user=number + 1))
        begun.run_for(30)
    assert store.ids == [str(number) for number in range(5)]
    assert len(begun.bus.beats) >= beats + 5


def test_a_slow_heartbeat_holds_up_no_commit(begun: Fetcher, store: Store) -> None:
    """It may take longer than a step has for commits, but what is pending is still published before the next poll."""
    begun.settle()
    held: list[str | int] = []  # how many updates are held, at each slow heartbeat and each poll

    def beat_slowly() -> None:
        held.extend(["beat", begun.held])
        begun.clock.now += 1.5

    begun.bus.on_beat = beat_slowly
    begun.vk.before_poll.append(lambda: held.append(begun.held))
    begun.clock.now += HEARTBEAT_INTERVAL
    begun.history.push("a")
    begun.settle()
    begun.poll()
    assert held[held.index("beat") :][:3] == ["beat", 1, 0]


def test_redis_fails_while_an_old_backlog_is_built(
    begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis may have lost something meanwhile, even if the next request succeeds, so the fetcher reads what it has."""
    begun.vk.names_failure = VK_DOWN
    begun.history.push(update("a", user=77))
    begun.poll()

    def fail() -> None:
        begun.bus.on_read_names = lambda: None
        raise REDIS_DOWN

    begun.bus.on_read_names = fail
    begun.clock.now += NAMES_TIMEOUT
    begun.settle()
    assert store.ids == ["a"]
    assert f"{REDIS_DOWN}: trying again" in caplog.messages


# Redis is down at the start


@pytest.mark.parametrize(
    ("checkpoint", "restarts", "epoch"),
    [
        (None, 0, 0),  # no fetcher has run before
        (place(50), 0, 0),
        (place(90), 0, 0),  # another fetcher is further ahead
        (place(50, epoch=3), 0, 3),
        (place(5000), 0, 1),  # VK has restarted its numbering since then
        (place(5000, epoch=2), 0, 3),
        (place(50), 1, 1),  # …or while updates were held
        (place(50, epoch=2), 1, 3),
        (place(5000), 1, 1),  # …or both: these cases cannot be distinguished, and one new epoch is enough for the order
    ],
)
def test_a_start_without_redis(
    fetcher: Fetcher, store: Store, checkpoint: Position | None, restarts: int, epoch: int
) -> None:
    """VK is polled from its latest ts, and everything is held.

    Once the bus can be read, the fetcher continues its count of epochs.
    """
    fetcher.history.begin_at(50)
    fetcher.bus.failure = REDIS_DOWN
    fetcher.poll(2)
    fetcher.history.push(*numbers(20))
    fetcher.poll(2)
    for _ in range(restarts):
        fetcher.history.begin_at(3)
        fetcher.history.push("after")
        fetcher.poll(3)
    store.checkpoint = checkpoint
    if checkpoint and checkpoint.ts == 90:
        fetcher.history.ts = 90
    fetcher.bus.failure = None
    fetcher.settle()
    assert [id for id in store.ids if id != "after"] == numbers(20)
    assert store.ids[20:] == ["after"] * restarts
    assert store.checkpoint == place(fetcher.history.ts, epoch=epoch)


def test_vk_fails_at_the_first_connection(fetcher: Fetcher, store: Store) -> None:
    """VK's ts shows whether it has restarted its numbering, so nothing is committed until VK returns its ts."""
    fetcher.bus.failure = REDIS_DOWN
    fetcher.poll(2)
    fetcher.history.push("a")
    fetcher.poll(2)
    store.checkpoint = place(5000)
    renew = fetcher.vk.renew

    def fail() -> int:
        raise VK_DOWN

    fetcher.vk.renew = fail  # type: ignore[method-assign]
    fetcher.bus.failure = None
    fetcher.poll(3)
    assert store.ids == []
    fetcher.vk.renew = renew  # type: ignore[method-assign]
    fetcher.settle()
    assert store.ids == ["a"]


def test_vks_ts_is_requested_only_if_something_is_held(fetcher: Fetcher, store: Store) -> None:
    """It is also requested only if the bus has another checkpoint, so that a start costs one request."""
    store.checkpoint = place(5)
    fetcher.history.oldest = 5
    fetcher.poll(2)
    fetcher.restart()
    fetcher.bus.failure = REDIS_DOWN
    fetcher.poll(2)
    fetcher.history.push("a")
    fetcher.poll()
    store.checkpoint = None
    fetcher.bus.failure = None
    fetcher.settle()
    assert fetcher.vk.renewed == 1


def test_vk_is_polled_without_a_pause_while_redis_is_down(begun: Fetcher) -> None:
    """VK forgets soon, so there is no pause, however small its answers are."""
    begun.bus.failure = REDIS_DOWN
    begun.bus.disconnect()
    begun.poll(2)
    first = len(begun.vk.polls)
    begun.vk.script = [answer(10, 15, *"abcde"), answer(15, 18, *"fgh"), answer(18, 20, *"ij"), answer(20, 21, "k")]
    begun.run(lambda: not begun.vk.script)
    assert begun.held == 11
    assert sum(pauses(begun, first)) < 0.1


# Memory


@pytest.mark.parametrize(("limit", "value", "held"), [("MAX_PENDING", 150, 200), ("MAX_PENDING_BYTES", 150_000, 200)])
def test_memory_is_bounded(
    begun: Fetcher,
    store: Store,
    limit: str,
    value: int,
    held: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Updates and bytes are limited: at the limit VK is not polled, the log says so, and what is held is published."""
    assert (limits.MAX_PENDING, limits.MAX_PENDING_BYTES) == (10_000, 256 * 2**20)
    monkeypatch.setattr(limits, limit, value)
    begun.bus.failure = REDIS_DOWN
    begun.vk.names_failure = VK_DOWN  # so that VK's answers are held unbuilt
    begun.history.push(*numbers(500))
    begun.run_for(20)
    assert begun.held == held
    full = f"Memory is full with {held} updates: VK is not polled"
    assert caplog.messages.count(full) == 1
    assert begun.vk.polled_at[-1] == 110
    begun.run_for(61)
    assert sum("Memory is full" in message for message in caplog.messages) == 2
    begun.bus.failure = begun.vk.names_failure = None
    begun.settle()
    assert store.ids == numbers(500)


def test_memory_that_fills_again_and_again(
    begun: Fetcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If VK has more than Redis takes, the log says once a minute that VK is not polled; that is no failure."""
    monkeypatch.setattr(limits, "MAX_PENDING", 1500)
    begun.bus.failure = REDIS_DOWN
    begun.history.kept = 1_000_000
    begun.history.flow(rate=2000)
    begun.run_for(10)
    begun.bus.failure = None
    begun.bus.cost = lambda commit: 0.6
    caplog.clear()
    begun.run_for(110)
    assert ["Memory is full" in one for one in caplog.messages] == [False, True]
    assert caplog.messages[0] == "Recovered"


# Neither polls nor commits wait for long


def pauses(begun: Fetcher, first: int) -> list[float]:
    """Return the seconds between successive polls."""
    return [later[0] - earlier[0] for earlier, later in itertools.pairwise(begun.vk.polls[first:])]


@pytest.mark.parametrize(
    ("failing", "commit_time", "room", "counts", "polls"),
    [
        (True, 0.0, 500, [1, 1, 0, 0], 3),  # until VK has no more
        (True, 0.0, 500, [0, 0], 1),
        (True, 0.0, 2, [1, 1, 1, 1, 0], 5),  # however much is held
        (True, 0.0, 500, [1] * 50, 9),  # or for a second after the first answer
        (False, 1.0, 500, [4, 3, 1, 4], 3),  # until an answer is smaller than half of the largest
        (False, 1.0, 500, [4, 1, 4], 2),
        (False, 1.0, 500, [1, 4, 0, 4], 3),
        (False, 1.0, 500, [0, 4], 1),
        (False, 1.0, 500, [4] * 50, 9),
        (False, 1.0, 8, [4, 4, 4], 2),  # until there are as many as are built at once
        (False, 0.125, 500, [4, 4], 1),  # or until an answer takes as long as the commits
        (False, 0.0, 500, [4, 4], 1),
    ],
)
def test_successive_polls_keep_up_with_vk(
    begun: Fetcher,
    failing: bool,
    commit_time: float,
    room: int,
    counts: list[int],
    polls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """VK is read faster than it forgets, without useless polls."""
    begun.vk.before_poll.append(lambda: begun.clock.sleep(0.125))
    monkeypatch.setattr("fetcher.core.relay.MAX_UNBUILT", room)
    assert poll(begun, counts, commit_time, failing) == polls


def poll(begun: Fetcher, counts: list[int], commit_time: float, failing: bool = False) -> int:
    """Return how many polls follow each other if VK's answers have these sizes; commit the updates."""
    ts, before = begun.relay.backlog.next.ts, len(begun.vk.polls)
    begun.vk.script.clear()
    for count in counts:
        begun.vk.script.append(answer(ts, ts + count, *numbers(count, ts)))
        ts += count
    begun.relay.poll(failing, commit_time)
    begun.relay.commit()
    return len(begun.vk.polls) - before


def test_a_failed_poll_makes_no_event_late(begun: Fetcher) -> None:
    """The next poll waits briefly, and its updates are committed before VK is polled again, because Redis works."""
    begun.relay.failures = 1
    assert poll(begun, [1, 1, 1], commit_time=0.0) == 1
    assert begun.vk.waits[-1] == 1
    assert not begun.held


def test_successive_polls_go_on_while_vk_has_more(begun: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """VK may put little into an answer: even with Redis nearby, it is read faster than new updates arrive."""
    monkeypatch.setattr("fetcher.core.relay.MAX_UNBUILT", 10_000)
    begun.vk.before_poll.append(lambda: begun.clock.sleep(0.005))
    assert 190 < poll(begun, [1] * 500, commit_time=0.03) <= 210


@pytest.mark.parametrize("size", [1, 2])
def test_a_burst_is_not_delayed_by_a_further_poll(begun: Fetcher, size: int) -> None:
    """That holds even if it is as large as any before: a poll that VK holds would delay it by a second."""
    bursts = {f"{number}": [f"{number}-{one}" for one in range(size)] for number in range(10)}
    begun.bus.cost = lambda commit: 0.05
    begun.bus.on_commit = lambda commit: begun.history.push(*bursts.pop(commit.entries[0].id, []))  # type: ignore[union-attr]
    for first in list(bursts):
        begun.history.push(first)
        start = begun.clock.now
        begun.settle()
        assert begun.clock.now - start < 0.5
        begun.run_for(60)  # VK holds its answer until the next burst
    assert not bursts


def test_the_end_of_a_storm_is_not_delayed_by_a_further_poll(begun: Fetcher) -> None:
    """Full answers suggest that there is more, but the last one is full as well, and no poll waits for the next."""
    begun.history.batch = 50
    begun.bus.cost = lambda commit: 0.3
    polls = len(begun.vk.polls)
    begun.history.push(*numbers(500))
    begun.settle()
    assert set(begun.vk.waits[polls:]) == {0, begun.relay.poll_wait}


def test_a_gap_is_progress() -> None:
    """Skipping a gap is progress, whatever VK answers at its end."""
    require_progress(10, answer(20, 20, "a", gap="forgotten"))
    with pytest.raises(TransientError):
        require_progress(20, answer(20, 20, "a"))


def test_a_batch_waits_for_names_until_the_timeout(begun: Fetcher) -> None:
    """A batch waits for NAMES_TIMEOUT; meanwhile `doing` says what is being tried, in case the log reports it."""
    begun.vk.names_failure = VK_DOWN
    hold(begun, "a")
    begun.bus.failure = None
    begun.relay.connect()
    with pytest.raises(TransientError):
        begun.relay.build()
    assert begun.relay.reports.doing == "looking up names"
    (held,) = begun.relay.backlog.pending
    begun.clock.now += NAMES_TIMEOUT
    begun.relay.build()
    assert held.entries


def test_an_old_backlog_is_built_as_fast_as_vk_answers(begun: Fetcher, store: Store) -> None:
    """One request resolves the names for everything that is held, not only for batches that have waited too long."""
    begun.bus.failure, begun.vk.names_failure = REDIS_DOWN, VK_DOWN
    for id in "abc":
        begun.history.push(update(id, user=1000 + ord(id)))
        begun.run_for(NAMES_TIMEOUT / 4)
    begun.clock.now += NAMES_TIMEOUT / 2  # the first has waited for longer than NAMES_TIMEOUT, the last one has not
    begun.bus.failure = begun.vk.names_failure = None
    begun.vk.looked_up.clear()
    begun.settle()
    assert store.ids == ["a", "b", "c"]
    assert len(begun.vk.looked_up) == 1


@pytest.mark.usefixtures("untraced")
def test_an_old_backlog_waits_for_a_slow_vk(begun: Fetcher, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing lacks a name while VK returns some at each request, even if all of them take longer than 30 s."""

    def names(ids: set[int]) -> tuple[dict[int, Name], TransientError | None]:
        begun.clock.now += 2 * bool(ids)
        first = sorted(ids)[:300]
        return {id: Name(f"name of {id}") for id in first}, VK_DOWN if len(ids) > len(first) else None

    begun.settle()
    monkeypatch.setattr(begun.vk, "names", names)
    begun.history.batch, begun.history.kept = 500, 10_000
    begun.history.push(*(update(str(number), user=1000 + number) for number in range(8000)))
    started = begun.clock.now
    begun.settle()
    assert begun.clock.now > started + 40
    assert store.users == [f"name of {1000 + number}" for number in range(8000)]


@pytest.mark.usefixtures("untraced")
def test_polls_never_starve(begun: Fetcher, store: Store) -> None:
    """Redis is back but slow, and much is held: VK is polled every second or two, so it need not keep much."""
    begun.history.kept = 256
    begun.history.flow(rate=40)
    begun.bus.failure = REDIS_DOWN
    begun.run_for(30)
    assert begun.held > 1000
    begun.bus.failure = None
    begun.bus.cost = lambda commit: 0.3 + len(commit.entries) / 600
    first = len(begun.vk.polls)
    begun.run_for(40)
    assert max(pauses(begun, first)) < 2.5
    assert begun.held < 100
    begun.history.rate = 0
    begun.settle()
    assert store.ids == numbers(begun.history.flowed)
    assert not store.dead


@pytest.mark.usefixtures("untraced")
def test_commits_never_starve(begun: Fetcher, store: Store) -> None:
    """Even if every answer of VK brings something, forever, there is a commit every second or two."""
    begun.history.batch = 10
    begun.history.push(*numbers(20_000))
    commits: list[float] = []
    begun.bus.on_commit = lambda commit: commits.append(begun.clock.now)
    begun.bus.failure = REDIS_DOWN
    begun.poll(5)
    begun.bus.failure = None
    begun.run_for(10)
    assert max(later - earlier for earlier, later in itertools.pairwise(commits)) < 1.5
    assert store.ids == numbers(len(store.ids))
    assert begun.held <= 1000


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(("page", "rate", "cost"), [(50, 90, 0.3), (20, 40, 1.2), (50, 90, 0.02), (1, 10, 0.3)])
def test_small_pages_and_a_slow_redis(begun: Fetcher, store: Store, page: int, rate: float, cost: float) -> None:
    """However little VK puts into an answer, it is read faster than it forgets."""
    begun.history.batch, begun.history.kept = page, 300
    begun.bus.cost = lambda commit: cost
    begun.history.flow(rate)
    begun.run_for(60)
    behind = begun.history.flowed - len(store.ids)
    assert behind < rate * (4 * cost + 2) + page
    assert not store.dead
    assert store.ids == numbers(len(store.ids))


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(("first", "smallest", "largest"), [(100, 10, 10), (10, 5, 15), (50, 5, 60), (1, 100, 100)])
def test_pages_of_any_size(begun: Fetcher, store: Store, first: int, smallest: int, largest: int) -> None:
    """VK's limit may be in bytes, or may change: the fetcher keeps up all the same."""
    rng = random.Random(first)
    begun.history.batch, begun.history.kept = first, 1000
    begun.history.push(*numbers(first))
    begun.settle()
    begun.vk.before_poll.append(lambda: vars(begun.history).update(batch=rng.randint(smallest, largest)))
    begun.bus.cost = lambda commit: 0.6
    begun.history.flowed = first
    begun.history.rate, begun.history.flows_since = 90, begun.clock.now - first / 90
    begun.run_for(60)
    assert begun.history.flowed - len(store.ids) < 300
    assert not store.dead
    assert store.ids == numbers(len(store.ids))


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("limit", [200, 3_000, 50_000])
def test_commits_get_through_a_slow_link(begun: Fetcher, store: Store, limit: int) -> None:
    """Commits above a size time out: pieces shrink, down to one event, and grow again on a better link."""
    begun.bus.failure = REDIS_DOWN
    begun.history.push(*numbers(400))
    begun.run(lambda: begun.held == 400)
    begun.run_for(3)
    begun.bus.failure = None
    begun.bus.cost = lambda commit: 9 if commit.size > limit and commit.count > 1 else 0.1
    before = len(begun.bus.commits)
    begun.run_for(60)
    assert begun.bus.commits[-1].count < begun.bus.commits[before].count == 400
    begun.bus.cost = lambda commit: 0.01
    begun.settle()
    assert store.ids == numbers(400)
    begun.history.batch = 1000
    for first in range(400, 4000, 400):
        begun.history.push(*numbers(400, first))
        begun.settle()
    assert begun.bus.commits[-1].count == 400


def test_a_slow_redis_is_not_an_outage(begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """With replies after 0.8 to 1.5 s at 40 updates a second, pieces do not shrink and nothing fails."""
    seconds = itertools.cycle([0.8, 1.5, 1.1])
    begun.bus.cost = lambda commit: next(seconds)
    begun.history.flow(rate=40)
    begun.run_for(60)
    assert begun.history.flowed - len(store.ids) < 300
    assert not caplog.messages


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("rate", [2, 20, 50])
def test_steady_traffic_is_published_at_once(begun: Fetcher, store: Store, rate: float) -> None:
    """VK answers as soon as there is an update, and no update waits for the next one."""
    begun.history.flow(rate)
    ages: list[float] = []
    started = begun.clock.now

    def measure(commit: Any) -> None:
        ages.extend(begun.clock.now - started - (int(entry.id) + 1) / rate for entry in commit.entries)

    begun.bus.on_commit = measure
    begun.run_for(30)
    assert sorted(ages)[len(ages) // 2] < 1 / rate + 0.05
    assert max(ages) < 1 / rate + 0.1


# Names


def test_a_failed_lookup_does_not_affect_redis(begun: Fetcher, store: Store) -> None:
    """Redis counts as up, heartbeats are set, nothing is read from the bus again, and polling continues."""
    for failure in (VK_DOWN, VK_FATAL):
        begun.vk.names_failure = failure
        beats, reads, polls = len(begun.bus.beats), len(begun.bus.reads), len(begun.vk.polls)
        begun.history.push(update(str(failure), user=len(store.ids) + 1))
        begun.run_for(25)
        assert begun.held == 1
        assert set(begun.metrics.redis_up.values) == {1}
        assert len(begun.bus.beats) - beats >= 2
        assert len(begun.bus.reads) == reads
        assert set(begun.vk.waits[polls + 1 :]) == {1}
        begun.vk.names_failure = None
        begun.settle()
    assert len(begun.bus.commits) == 2


@pytest.mark.parametrize("kind", ["names_failure", "full_failure"])
def test_failing_lookups_delay_events_by_at_most_30_s(begun: Fetcher, store: Store, kind: str) -> None:
    """Events are published within 30 s, with the names that are known, and VK is polled all the time."""
    begun.history.push("known")
    begun.settle()
    setattr(begun.vk, kind, VK_DOWN)
    begun.vk.unnamed = {77}
    begun.history.push(update("unknown", user=77))
    started, first = begun.clock.now, len(begun.vk.polls)
    begun.run(lambda: len(store.ids) == 2 or begun.clock.now > started + 100)
    assert 29 < begun.clock.now - started < 34
    assert len(begun.vk.polls) - first > 15
    assert store.users == [f"name of {PERSON}", ""]
    assert 77 not in store.names
    setattr(begun.vk, kind, None)
    begun.vk.unnamed = set()
    begun.history.push(update("later", user=77))
    begun.settle()
    assert store.users[-1] == "name of 77"


def test_one_object_that_fails(begun: Fetcher, store: Store) -> None:
    """VK fails for one person for minutes, but no event waits for longer than 30 s."""
    begun.vk.unnamed = {77}
    for number in range(70):
        begun.history.push(update(str(number), user=77 if number % 2 else PERSON))
        begun.run_for(1)
        assert number + 1 - len(store.ids) <= 33
    begun.run_for(35)
    assert store.ids == numbers(70)
    assert set(store.users[1::2]) == {""}
    assert set(store.users[::2]) == {f"name of {PERSON}"}


def test_an_outage_of_names_delays_one_batch(begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The others are published at once for a while, and the log says once a minute what they lack.

    Then one batch waits again.
    """
    begun.vk.names_failure = VK_DOWN
    lacking = f"{VK_DOWN}: events are published without the names or full messages that VK does not return"
    sent = 0

    def is_late(id: str) -> bool:
        nonlocal sent
        begun.history.push(update(id, user=77))
        sent += 1
        begun.run_for(5)
        return len(store.ids) < sent

    for round in range(2):
        assert is_late(f"waits {round}")
        begun.run_for(NAMES_TIMEOUT)
        caplog.clear()
        until = begun.clock.now + 3.5 * REMIND_INTERVAL
        while begun.clock.now < until:
            assert not is_late(f"at {begun.clock.now}")
        assert caplog.messages == [lacking] * 3
        assert {record.levelname for record in caplog.records} == {"WARNING"}
        begun.run_for(IMPATIENT_TIME - 3.5 * REMIND_INTERVAL)


def test_a_batch_long_after_an_outage_of_names_waits_again(begun: Fetcher, store: Store) -> None:
    """Even if it is the first one since then."""
    for id in "ab":
        begun.vk.names_failure = VK_DOWN
        begun.history.push(update(id, user=ord(id)))
        begun.run_for(3)
        assert id not in store.ids
        begun.run_for(NAMES_TIMEOUT + 5 if id == "a" else 0)
        begun.vk.names_failure = None
        begun.run_for(IMPATIENT_TIME + NAMES_TIMEOUT)
    assert store.ids == ["a", "b"]
    assert store.users == ["", f"name of {ord('b')}"]


@pytest.mark.parametrize("kind", ["names_failure", "full_failure"])
def test_a_token_that_is_refused_in_lookups(
    begun: Fetcher, store: Store, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Events are published within 30 s; then the fetcher ends, but not while it holds any."""
    setattr(begun.vk, kind, VK_FATAL)
    hold(begun, "a")
    started = begun.clock.now
    begun.bus.failure = REDIS_DOWN
    begun.run_for(40)
    begun.bus.failure = None
    with pytest.raises(FatalError):
        begun.run_for(5)
    assert store.ids == ["a"]
    lacking = f"{VK_FATAL}: events are published without the names or full messages that VK does not return"
    assert [record.levelname for record in caplog.records if record.message == lacking] == ["CRITICAL"]
    assert begun.clock.now - started < 45


def test_names_given_up_while_redis_is_down(begun: Fetcher, store: Store) -> None:
    """The 30 s begin with the first try, even while Redis is down, so the batch does not wait again when it is back."""
    begun.vk.names_failure = VK_DOWN
    hold(begun, "a")
    begun.bus.failure = REDIS_DOWN
    begun.run_for(40)
    begun.bus.failure = None
    begun.poll(2)
    assert store.ids == ["a"]


def test_recovered_is_not_logged_while_names_fail(
    begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, when an event has its names again; also after an outage that follows soon."""
    given_up = f"{VK_DOWN}: events are published without the names or full messages that VK does not return"
    for user in (101, 102):
        caplog.clear()
        begun.vk.names_failure = VK_DOWN
        begun.history.push(update(f"without {user}", user=user))
        begun.run_for(REMIND_INTERVAL)
        assert store.ids[-1] == f"without {user}"
        assert given_up in caplog.messages
        assert "Recovered" not in caplog.messages
        begun.vk.names_failure = None
        begun.history.push(update(f"with {user}", user=user))
        begun.run_for(REMIND_INTERVAL)
        assert store.ids[-1] == f"with {user}"
        assert caplog.messages.count("Recovered") == 1


# What is fatal, and bugs


@pytest.mark.parametrize("failure", [REDIS_FATAL, BUG])
@pytest.mark.parametrize("has_begun", [False, True])
def test_a_fatal_error_ends_it_while_nothing_is_held(fetcher: Fetcher, has_begun: bool, failure: Exception) -> None:
    """The fetcher does not poll again, because it could lose what the poll brings."""
    if has_begun:
        fetcher.poll(3)
    fetcher.bus.failure = failure
    fetcher.bus.disconnect()
    polls = len(fetcher.vk.polls)
    with pytest.raises(type(failure), match=str(failure)):
        fetcher.relay.run()
    assert len(fetcher.vk.polls) == polls


@pytest.mark.parametrize("failure", [VK_FATAL, BUG])
def test_a_fatal_poll_ends_it_while_nothing_is_held(begun: Fetcher, failure: Exception) -> None:
    """It ends the fetcher, whatever else has failed before."""
    begun.bus.failure = REDIS_DOWN
    begun.bus.disconnect()
    begun.vk.script = [failure]
    with pytest.raises(type(failure), match=str(failure)):
        begun.relay.run()


AGAIN = "trying again, because memory holds what is not on the bus yet"


def test_a_fatal_error_does_not_end_it_while_the_checkpoint_is_lost(
    begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the fetcher still has the checkpoint, so it keeps running, although it holds no update."""
    store.become(Store())
    begun.bus.disconnect()
    begun.bus.commit_failure = REDIS_FATAL
    begun.run_for(150)
    sentence = f"{REDIS_FATAL}: {AGAIN}"
    assert caplog.messages.count(sentence) == 3
    begun.bus.commit_failure = None
    begun.history.push("a")
    begun.settle()
    assert store.ids == ["a"]


@pytest.mark.parametrize(
    ("failure", "logged", "has_traceback", "is_up"),
    [
        (REDIS_FATAL, f"{REDIS_FATAL}: {AGAIN}", False, 0),
        (VK_FATAL, f"{VK_FATAL}: {AGAIN}", False, 1),
        (BUG, f"A bug in the fetcher; please report it: {AGAIN}", True, 1),
    ],
    ids=["Redis", "VK", "bug"],
)
def test_a_fatal_error_does_not_end_it_while_updates_are_held(
    begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture,
    failure: Exception, logged: str, has_traceback: bool, is_up: int,
) -> None:  # fmt: skip
    """While updates are held, it is logged as CRITICAL once a minute, a bug with its traceback, and tried again.

    With nothing held, it ends the fetcher.
    """
    begun.history.push("a", "b")
    begun.bus.commit_failure = failure
    begun.run_for(150)
    critical = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert [record.getMessage() for record in critical] == [logged] * 3
    assert [bool(record.exc_info) for record in critical] == [has_traceback] * 3
    assert begun.metrics.redis_up.values[-1] == is_up
    begun.history.push("c")
    begun.run_for(5)
    begun.bus.commit_failure = None
    begun.settle()
    begun.poll(2)
    assert store.ids == ["a", "b", "c"]
    assert "Recovered" in caplog.messages
    begun.vk.script = [failure]
    with pytest.raises(type(failure)):
        begun.relay.run()


# The log, and pauses


def test_a_failure_is_logged_once_a_minute(begun: Fetcher, caplog: pytest.LogCaptureFixture) -> None:
    """One line says when it is over; another failure meanwhile is logged as well, and so is the next one."""
    begun.bus.failure = REDIS_DOWN
    begun.bus.disconnect()
    begun.run_for(150)
    assert caplog.messages == [f"{REDIS_DOWN}: trying again"] * 3
    begun.vk.script = [VK_DOWN]
    begun.run_for(5)
    assert caplog.messages[3:] == [f"{VK_DOWN}: trying again"]
    begun.bus.failure = None
    begun.run_for(30)
    assert caplog.messages[4:] == ["Recovered"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    begun.vk.script = [VK_DOWN]
    begun.run_for(3)
    assert caplog.messages[5:] == [f"{VK_DOWN}: trying again", "Recovered"], "it is logged again"
    begun.bus.failure = REDIS_DOWN
    begun.bus.disconnect()
    begun.run_for(110)
    assert caplog.messages[7:] == [f"{REDIS_DOWN}: trying again"] * 2


def test_an_error_whose_text_changes_each_time(begun: Fetcher, caplog: pytest.LogCaptureFixture) -> None:
    """It counts as the same error, logged once a minute; an error with another code is logged at once."""
    texts = [f"VK error 10 in execute: request {number}" for number in range(20)]
    begun.vk.script = [TransientError(text) for text in (*texts, "VK error 1 in execute: request 20")]
    begun.run(lambda: not begun.vk.script)
    assert caplog.messages == [f"{texts[0]}: trying again", "VK error 1 in execute: request 20: trying again"]


def test_nothing_retries_forever_in_silence(begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """If updates are held for over 30 s, a line a minute says how many, for how long, and what is being tried.

    One line says when that ends.
    """
    begun.history.push("a", "b")
    begun.bus.commit_failure = REDIS_DOWN
    begun.run_for(29)
    assert not [one for one in caplog.messages if "held" in one]
    begun.run_for(110)
    stalled = [record for record in caplog.records if "held" in record.getMessage()]
    assert len(stalled) == 2
    assert {record.levelname for record in stalled} == {"WARNING"}
    assert "2 updates are held, and none has reached the bus for 3" in stalled[0].getMessage()
    assert stalled[0].getMessage().rpartition(": ")[2]
    begun.bus.commit_failure = None
    caplog.clear()
    begun.settle()
    begun.poll(2)
    assert caplog.messages.count("Updates reach the bus again") == 1


@pytest.mark.parametrize(
    ("failing", "doing"),
    [
        ("commit_failure", "committing 1 updates, "),
        ("read_failure", "asking Redis which of the latest updates it has"),
    ],
)
def test_the_log_says_what_is_being_tried(
    begun: Fetcher, failing: str, doing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log line about held updates says it in words."""
    hold(begun, "a")
    setattr(begun.bus, failing, REDIS_DOWN)
    begun.run_for(45)
    stalled = [one for one in caplog.messages if "1 updates are held" in one]
    assert len(stalled) == 1
    assert doing in stalled[0]


def test_the_log_says_that_missing_updates_are_requested(behind: Fetcher, caplog: pytest.LogCaptureFixture) -> None:
    """If VK does not answer, the log says that the fetcher is requesting what is missing."""
    behind.vk.script = [VK_DOWN] * 1000
    behind.run_for(45)
    assert "asking VK for what is missing after ts 10" in caplog.text


def test_a_long_poll_is_not_a_stall(history: History, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """With POLL_WAIT=90 the first update may arrive after a minute of silence, in which none was held."""
    fetcher = Fetcher(history, store, poll_wait=90)
    fetcher.poll(2)
    history.flow(rate=1 / 80)
    fetcher.run(lambda: len(store.ids) == 2)
    assert not caplog.messages


def test_the_first_poll_after_a_failure_is_short(begun: Fetcher, caplog: pytest.LogCaptureFixture) -> None:
    """The log therefore soon says that VK answers again."""
    begun.vk.script = [VK_DOWN]
    begun.poll(3)
    assert begun.vk.waits[1:] == [25, 1, 25]
    assert caplog.messages == [f"{VK_DOWN}: trying again", "Recovered"]


def test_pauses_grow(begun: Fetcher) -> None:
    """They grow from 0.2 s to 2 s; half of each is random, and the time that the step took is part of it."""
    begun.vk.script = [VK_DOWN] * 20
    first = len(begun.vk.polls)
    begun.run(lambda: not begun.vk.script)
    times = pauses(begun, first)
    assert 0.1 <= times[0] <= 0.4
    assert all(1 <= pause <= 2 for pause in times[-10:])


def test_a_long_step_is_followed_at_once(begun: Fetcher) -> None:
    """There is no pause if the step took longer than the pause."""
    begun.vk.script = [VK_DOWN] * 20
    first = len(begun.vk.polls)

    def slow() -> None:
        begun.clock.now += 3

    begun.vk.before_poll.insert(0, slow)
    begun.run(lambda: not begun.vk.script)
    assert pauses(begun, first) == pytest.approx([3] * 19)


# The heartbeat, and what operators count


def test_no_heartbeat_without_an_answer(fetcher: Fetcher) -> None:
    """A failed poll sets none."""
    fetcher.vk.script = [VK_DOWN] * 10
    fetcher.poll(10)
    assert not fetcher.bus.beats
    fetcher.poll()
    assert len(fetcher.bus.beats) == 1


def test_heartbeats_end_when_vk_does_not_answer(begun: Fetcher) -> None:
    """One more may be set, for the last poll that VK answered."""
    begun.run(lambda: bool(begun.bus.beats))
    before = len(begun.bus.beats)
    begun.vk.script = [VK_DOWN] * 100
    begun.run(lambda: not begun.vk.script)
    assert len(begun.bus.beats) <= before + 1


def test_heartbeats_are_spaced(begun: Fetcher) -> None:
    """One is set every ten seconds, not for each of many batches or connections."""
    begun.history.flow(rate=20)
    begun.run_for(60)
    beats = begun.bus.beats
    assert 5 <= len(beats) <= 8
    begun.bus.disconnect()
    begun.run_for(20)
    assert min(later - earlier for earlier, later in itertools.pairwise(beats)) >= 10


def test_each_event_is_counted_once(begun: Fetcher, store: Store) -> None:
    """Each event counts once, even if it is in a piece, refused at first or committed again.

    Ages are only measured for events that have VK's date.
    """
    date = int(begun.clock.now) - 7
    begun.history.push(update("a", date=date), "b", update("x", malformed="why"))
    begun.bus.lost_replies = 1
    begun.settle()
    begun.history.begin_at(20)
    begun.history.push("c")
    begun.settle()
    begun.bus.disconnect()
    begun.poll(2)
    counted = begun.metrics.events.labels(type="message").values
    assert sum(counted) in (1, 3), "what was recorded when a reply was lost cannot be counted"
    assert sum(begun.metrics.gaps.values) == 1
    assert all(7 <= age < 300 for age in begun.metrics.publish_age.values)
    assert begun.metrics.commit_seconds.values == pytest.approx([0.001] * len(begun.metrics.commit_seconds.values))


def test_held_updates_are_counted(begun: Fetcher) -> None:
    """The metrics also show whether Redis is up, and when VK was last polled."""
    begun.poll()
    assert (begun.metrics.redis_up.values[-1], begun.metrics.held_updates.values[-1]) == (1, 0)
    assert begun.clock.now - begun.metrics.last_poll.values[-1] < 1
    hold(begun, "a", "b")
    begun.bus.failure = REDIS_DOWN
    begun.poll(2)
    assert (begun.metrics.redis_up.values[-1], begun.metrics.held_updates.values[-1]) == (0, 2)
    moved = len(begun.metrics.checkpoint.values)
    begun.bus.failure = None
    begun.poll(3)
    assert (begun.metrics.redis_up.values[-1], begun.metrics.held_updates.values[-1]) == (1, 0)
    assert len(begun.metrics.checkpoint.values) == moved + 1


# Two faults at once: what is in memory is never lost


def test_an_outage_and_then_a_failover(begun: Fetcher, store: Store) -> None:
    """Redis is down for 30 s, then a replica takes over that lacks the latest writes; VK keeps 200 updates."""
    begun.history.kept = 200
    begun.history.push(*numbers(160))
    begun.settle()
    replica = store.copy()
    begun.history.push(*numbers(40, 160))
    begun.settle()
    begun.bus.failure = REDIS_DOWN
    for number in range(30):
        begun.history.push(*numbers(20, 200 + 20 * number))
        begun.run_for(1)
    fail_over(store, replica)
    begun.bus.failure = None
    begun.settle()
    assert store.ids == numbers(800)
    assert not store.dead


def test_a_restart_while_redis_is_down(begun: Fetcher, store: Store) -> None:
    """The one update that nobody has any more becomes a recorded gap; everything after the restart is published."""
    begun.history.push(*numbers(219))
    begun.settle()
    begun.history.kept = 100
    begun.bus.failure = REDIS_DOWN
    begun.history.push("nobody has it")
    begun.poll(2)
    begun.restart()
    begun.bus.failure = REDIS_DOWN
    for number in range(30):
        begun.poll(2)
        begun.history.push(*numbers(10, 220 + 10 * number))
    begun.poll(2)
    begun.bus.failure = None
    begun.settle()
    assert store.ids == numbers(219) + numbers(300, 220)
    assert [(letter["since"], letter["until"]) for letter in store.dead] == [("229", "230")]


def test_two_fetchers_one_restarted_during_the_outage(begun: Fetcher, other: Fetcher, store: Store) -> None:
    """The restarted fetcher is back first, and its gap hides nothing that the other one holds."""
    begun.history.kept = 100
    other.poll()
    begun.history.push(*numbers(100))
    settle(begun, other)
    for one in (begun, other):
        one.bus.failure = REDIS_DOWN
    for number in range(18):
        begun.history.push(*numbers(10, 100 + 10 * number))
        for one in (begun, other):
            one.poll(2)
    other.restart()
    other.bus.failure = REDIS_DOWN
    other.poll()
    for number in range(18):
        begun.history.push(*numbers(10, 280 + 10 * number))
        for one in (begun, other):
            one.poll(2)
    other.bus.failure = None
    other.settle()
    begun.bus.failure = None
    settle(begun, other)
    assert sorted(store.ids, key=int) == numbers(460)
    begun.history.push("x")
    settle(begun, other)
    assert store.ids[-1] == "x"


def test_two_fetchers_and_an_empty_redis(begun: Fetcher, other: Fetcher, store: Store) -> None:
    """One of them starts meanwhile and stores VK's latest ts; the other's updates are published all the same."""
    begun.history.push(*numbers(40))
    begun.settle()
    begun.bus.failure = REDIS_DOWN
    begun.history.push(*numbers(60, 40))
    begun.poll(3)
    fail_over(store, Store())
    other.poll()
    begun.bus.failure = None
    settle(begun, other)
    begun.history.push("x")
    settle(other, begun)
    assert store.ids == [*numbers(100), "x"]


def test_a_lost_reply_and_then_a_failover(begun: Fetcher, store: Store) -> None:
    """The first server has the commit and the second does not, so it is published there."""
    replica = store.copy()
    begun.history.push(*numbers(3))
    begun.bus.lost_replies = 1
    begun.run(lambda: not begun.bus.lost_replies)
    fail_over(store, replica, begun)
    begun.settle()
    assert store.ids == numbers(3)


@pytest.mark.parametrize("what", ["failover", "kill"])
def test_a_fault_between_two_pieces(begun: Fetcher, store: Store, what: str) -> None:
    """Acknowledged pieces are published again if they were lost, and skipped if not."""
    begun.history.batch = 2000
    replica = store.copy()
    begun.history.push(*numbers(1300))
    begun.bus.cost = lambda commit: 1.1
    begun.run(lambda: store.checkpoint == place(10, part=500))
    if what == "kill":
        begun.restart()
    else:
        fail_over(store, replica, begun)
    begun.settle()
    assert store.ids == numbers(1300)


def test_vk_and_redis_fail_together(begun: Fetcher, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is lost, whichever of them is back first."""
    hold(begun, *numbers(5))
    begun.bus.failure = REDIS_DOWN
    begun.vk.script = [VK_DOWN] * 10
    begun.run(lambda: len(begun.vk.script) == 5)
    assert {f"{REDIS_DOWN}: trying again", f"{VK_DOWN}: trying again"} <= set(caplog.messages)
    begun.bus.failure = None
    begun.run(lambda: not begun.vk.script)
    assert store.ids == numbers(5)
