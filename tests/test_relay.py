"""The loop's decisions, with a VK in memory, a bus on a real server, and a clock of the test's own."""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from operator import itemgetter
from typing import Any

import pytest

from fetcher.bus.bus import Bus
from fetcher.core import backlog as backlog_limits
from fetcher.core import relay as limits
from fetcher.core.backlog import Backlog
from fetcher.core.batch import Batch, Commit, Gap
from fetcher.core.entries import EntryBuilder
from fetcher.core.names import Directory, Name
from fetcher.core.relay import Relay
from fetcher.errors import FatalError, RedisTimeout, RedisUnavailable, TransientError
from fetcher.vk.api import Api
from fetcher.vk.builders import BUILDERS, command_pattern
from fetcher.vk.longpoll import LongPoll
from fetcher.vk.lookups import Lookups
from tests import vk as stand_in
from tests.net import Clock
from tests.servers import Server
from tests.vk import GROUP, PEER, PERSON, TOKEN

TS = f"{{events}}:ts:{GROUP}"
DEAD = "{events}:dead-letter"
DOWN = RedisUnavailable("Redis is unavailable")
VK_DOWN = TransientError("VK is unavailable")
END = RuntimeError("the end")


class Log:
    """VK's updates, as a log that keeps the latest; a poll at its end takes all the time that it may."""

    def __init__(self, clock: Clock, history: int = 10**6) -> None:
        self.clock, self.history = clock, history
        self.ts, self.oldest = 10, 10
        self.log: list[tuple[int, Any]] = []

    def push(self, *ids: Any) -> None:
        for id in ids:
            self.ts += 1
            self.log.append((self.ts, stand_in.message(str(id)) | {"event_id": str(id)}))
        if forgotten := self.log[: max(0, len(self.log) - self.history)]:
            self.oldest = forgotten[-1][0]
            del self.log[: len(forgotten)]

    def answer(self, ts: str, wait: int) -> Batch | Gap:
        if not self.oldest <= int(ts) <= self.ts:
            return Gap(ts, str(self.oldest if int(ts) < self.oldest else self.ts), "forgotten")
        first = bisect_right(self.log, int(ts), key=itemgetter(0))
        found = self.log[first : first + 100]
        self.clock.now += 0.01 if found else wait
        return Batch(ts, str(found[-1][0]) if found else ts, [update for _, update in found], 1000 * len(found))


class Poll(LongPoll):
    """Plays what is scripted, and then answers from the log; an exception in the script is raised."""

    def __init__(self, log: Log) -> None:
        super().__init__(Api(TOKEN), GROUP, 3600, BUILDERS)
        self.log = log
        self.script: list[Batch | Gap | Exception] = []
        self.polls: list[tuple[str, int]] = []
        self.times: list[float] = []
        self.short: list[bool] = []
        self.renewed: list[str] = []  # what a new key tells as the latest ts, before the log does
        self.while_polling: Callable[[], None] = lambda: None

    def latest_ts(self) -> str:
        return str(self.log.ts)

    def renew(self) -> str:
        return self.renewed.pop(0) if self.renewed else str(self.log.ts)

    def shorten_timeouts(self, short: bool) -> None:
        self.short.append(short)

    def poll(self, ts: str, wait: int) -> Batch | Gap:
        self.polls.append((ts, wait))
        self.times.append(self.log.clock.now)
        self.while_polling()
        answer = self.script.pop(0) if self.script else self.log.answer(ts, wait)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Names(Lookups):
    """Tells a name of everybody, but of `failing`; `failure` is of the whole request."""

    def __init__(self) -> None:
        super().__init__(Api(TOKEN))
        self.failing: set[int] = set()
        self.failure: TransientError | FatalError | None = None
        self.asked: list[set[int]] = []

    def names(self, ids: Iterable[int]) -> tuple[dict[int, Name], TransientError | FatalError | None]:
        self.asked.append(set(ids))
        if self.failure:
            return {}, self.failure
        failing = self.asked[-1] & self.failing
        told = {id: Name(f"name of {id}") for id in self.asked[-1] - failing}
        return told, TransientError("VK error 10") if failing else None


class FlakyBus(Bus):
    """A bus that fails, loses replies, and takes its time, as it is told."""

    def __init__(self, clock: Clock) -> None:
        super().__init__("redis://nowhere", "events", GROUP, 10**6, 600, 55)
        self.clock = clock
        self.failure: Exception | None = None
        self.lost_replies = 0
        self.cost: Callable[[Commit], float] = lambda commit: 0.001  # seconds that a commit takes
        self.timeout = 10**6  # seconds; what takes longer is done all the same
        self.commits: list[Commit] = []
        self.beats: list[float] = []

    def checkpoint(self, start_ts: str = "") -> str:
        self.fail()
        return super().checkpoint(start_ts)

    def beat(self) -> None:
        self.fail()
        self.beats.append(self.clock.now)
        super().beat()

    def names(self, ids: Iterable[int]) -> dict[int, Name]:
        self.fail()
        return super().names(ids)

    def fail(self) -> None:
        if self.failure:
            self.clock.now += 0.01
            raise self.failure

    def commit(self, commit: Commit) -> str:
        self.fail()
        self.commits.append(commit)
        answer = super().commit(commit)
        took = self.cost(commit)
        self.clock.now += min(took, self.timeout)
        if took > self.timeout:
            raise RedisTimeout("Redis is unavailable (TimeoutError)")
        if self.lost_replies:
            self.lost_replies -= 1
            raise DOWN
        return answer


class Loop:
    """A fetcher's loop and all around it; several share a log, a server and a clock."""

    def __init__(self, log: Log) -> None:
        self.log, self.clock = log, log.clock
        self.start()

    def start(self) -> None:
        """Begin anew, as a process does: nothing is in memory."""
        self.vk, self.names, self.bus = Poll(self.log), Names(), FlakyBus(self.clock)
        entries = EntryBuilder(self.names, Directory(self.bus, self.names), command_pattern(GROUP, "/"), False)
        self.relay = Relay(self.vk, entries, self.bus, 25)

    def play(self, *answers: Batch | Gap) -> None:
        """Let VK answer these, and then be where they end."""
        self.vk.script = list(answers)
        self.log.ts = self.log.oldest = int(answers[-1].until)
        self.log.log.clear()

    @property
    def backlog(self) -> Backlog:
        return self.relay.backlog

    def step(self, times: int = 1) -> list[str]:
        """Step, and return what failed in the last one."""
        for _ in range(times):
            errors = self.relay.step()
            self.clock.now += 0.01
        return [str(error) for error in errors]

    def run(self, seconds: float) -> None:
        """Run for so long."""
        end = self.clock.now + seconds

        def stop() -> None:
            if self.clock.now >= end:
                raise END

        self.vk.while_polling = stop
        with pytest.raises(RuntimeError, match="the end"):
            self.relay.run()
        self.vk.while_polling = lambda: None

    def settle(self) -> None:
        """Step until all that VK has is on the bus."""
        for _ in range(200):
            self.step()
            if not self.backlog.pending and self.backlog.next_ts == str(self.log.ts):
                return
        pytest.fail("it does not settle")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("core.relay", "core.names", "bus.bus"):
        monkeypatch.setattr(f"fetcher.{module}.time", clock)
    return clock


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the server, which is empty; the buses have such ones, too: only the test's clock matters."""

    def connect(url: str, on_connect: Callable[[], None], **_: Any) -> Any:
        on_connect()
        return server.client()

    monkeypatch.setattr("fetcher.bus.bus.connect", connect)
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def log(clock: Clock) -> Log:
    return Log(clock)


@pytest.fixture
def loop(log: Log, client: Any) -> Loop:
    return Loop(log)


def batch(since: int, *ids: str) -> Batch:
    return Batch(str(since), str(since + len(ids)), [stand_in.message(id) | {"event_id": id} for id in ids])


def gap(since: int, until: int) -> Gap:
    return Gap(str(since), str(until), "forgotten")


def sent(client: Any) -> list[str]:
    return [json.loads(entry["event"])["event_id"] for _, entry in client.xrange("events")]


def user_names(client: Any) -> list[str]:
    return [json.loads(entry["event"])["user"]["name"] for _, entry in client.xrange("events")]


def dead_letters(client: Any) -> list[dict[str, str]]:
    return [entry for _, entry in client.xrange(DEAD)]


def ids(count: int, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, first + count)]


def copy(client: Any) -> list[str]:
    """Copy all that the bus holds, as a replica does; return the names of the copies."""
    keys = [key for key in client.scan_iter() if not key.startswith("replica:")]
    for key in keys:
        client.copy(key, f"replica:{key}", replace=True)
    return keys


def fail_over(client: Any, replica: list[str], *loops: Loop) -> None:
    """Make the replica the server; all connections break."""
    client.delete(*(key for key in client.scan_iter() if not key.startswith("replica:")))
    for key in replica:
        client.copy(f"replica:{key}", key)
    for loop in loops:
        loop.bus.reconnected = True


# One step after the other


def test_a_batch_is_committed_in_the_next_step(loop: Loop, client: Any) -> None:
    """Poll from the checkpoint, hold, commit, poll from there."""
    loop.log.push("a", "b")
    client.set(TS, "10")
    loop.step()
    assert client.get(TS) == "10"
    assert loop.step() == []
    assert sent(client) == ["a", "b"]
    assert client.get(TS) == "12"
    assert loop.vk.polls == [("10", 25), ("12", 25)]


def test_the_first_start(loop: Loop, client: Any) -> None:
    """The checkpoint is made before the first poll, of VK's ts at that moment; VK is asked for it once."""
    loop.log.push("before")
    seen: list[str] = []
    loop.vk.while_polling = lambda: seen.append(client.get(TS))
    loop.step()
    assert seen == ["11"]
    loop.log.push("a")
    loop.settle()
    assert sent(client) == ["a"]
    assert loop.backlog.start_ts == "11"


def test_vk_is_down_at_the_start(loop: Loop, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is done before its ts is known."""

    def fail() -> str:
        raise VK_DOWN

    with monkeypatch.context() as patch:
        patch.setattr(loop.vk, "latest_ts", fail)
        assert loop.step() == ["VK is unavailable"]
    assert not loop.vk.polls
    assert not client.keys("*")
    assert loop.step() == []


def test_a_burst_is_named_at_once(loop: Loop, client: Any) -> None:
    """Full answers are polled one after the other, up to a limit, and one request names them all."""
    client.set(TS, "10")
    loop.log.push(*ids(700))
    loop.step()
    assert [wait for _, wait in loop.vk.polls] == [25, 1, 1, 1, 1]
    assert len(loop.backlog.pending) == 1
    loop.step()
    assert sent(client) == ids(500)
    assert len(loop.names.asked) == 1
    loop.settle()
    assert sent(client) == ids(700)


def test_one_update_cannot_hurt_its_neighbours(
    loop: Loop, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A malformed one is a dead letter, told once however often its batch is tried."""
    loop.step()
    loop.play(Batch("10", "13", [*batch(10, "a").updates, {"type": "message_new"}, *batch(12, "b").updates]))
    loop.names.failure = VK_DOWN
    loop.step(3)
    assert not caplog.records
    loop.names.failure = None
    loop.step()
    assert sent(client) == ["a", "b"]
    assert len(dead_letters(client)) == 1
    assert [record.getMessage() for record in caplog.records] == ["Dead letter: missing where an object is due"]


def test_names_are_forgotten_when_another_fetcher_was_first(loop: Loop, client: Any) -> None:
    """It may have been told a newer title, which is in the cache."""
    loop.step()
    loop.log.push("a", "b")
    loop.step(2)
    client.set(f"{{events}}:name:{PEER}", json.dumps(["new title", "", "", ""]))
    loop.log.push("c", "d")
    loop.step()
    client.set(TS, "99")
    loop.step()
    client.set(TS, "14")
    loop.log.push("e")
    loop.step(3)
    assert json.loads(client.xrevrange("events", count=1)[0][1]["event"])["peer"]["name"] == "new title"


# Gaps


def test_a_gap_is_recorded(loop: Loop, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One dead letter, and one warning."""
    loop.step()
    loop.play(gap(10, 20), batch(20, "a"))
    loop.step(3)
    assert dead_letters(client) == [{"since": "10", "until": "20", "error": "forgotten"}]
    assert [record.getMessage() for record in caplog.records] == ["A gap from ts 10 to 20: forgotten"]
    assert sent(client) == ["a"]


def test_vks_ts_goes_back(loop: Loop, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """VK has begun anew and does not say so: that is told like any gap, and what came with it goes out."""
    loop.step()
    loop.play(Batch("10", "3", batch(2, "a").updates), batch(3, "b"))
    loop.step(3)
    assert dead_letters(client) == [{"since": "10", "until": "3", "error": "VK's ts went back"}]
    assert [record.getMessage() for record in caplog.records] == ["A gap from ts 10 to 3: VK's ts went back"]
    assert sent(client) == ["a", "b"]
    assert client.get(TS) == "4"


def test_no_gap_where_the_ts_stays(loop: Loop, client: Any) -> None:
    """VK has forgotten nothing, but to ask again at once would be a tight loop."""
    loop.step()
    loop.play(gap(10, 10), batch(10, "a"))
    assert loop.step() == ["VK's long poll repeats itself without progress"]
    loop.step(2)
    assert not dead_letters(client)
    assert sent(client) == ["a"]


def test_vk_does_not_move_on(loop: Loop, client: Any) -> None:
    """Updates at an unchanged ts go out once, and VK is not asked in a tight loop."""
    stuck = Batch("10", "10", batch(10, "a").updates)
    loop.step()
    loop.play(stuck, stuck, batch(10, "a", "b"))
    for _ in range(2):
        assert loop.step() == ["VK's long poll repeats itself without progress"]
    loop.step(2)
    assert sent(client) == ["a", "b"]
    assert client.get(TS) == "12"


def test_behind_vks_memory_and_under_traffic(loop: Loop, client: Any) -> None:
    """Each gap moves on, so none is a failure: the fetcher catches up."""
    loop.step()
    loop.play(gap(10, 20), gap(20, 30), gap(30, 40), batch(40, "a"))
    for _ in range(5):
        assert loop.step() == []
    assert sent(client) == ["a"]
    assert [(letter["since"], letter["until"]) for letter in dead_letters(client)] == [
        ("10", "20"),
        ("20", "30"),
        ("30", "40"),
    ]


# What is missing before what is pending


def held(loop: Loop, *ids: str) -> None:
    """Let the loop hold these updates, and the bus know nothing of them."""
    loop.log.push(*ids)
    loop.bus.failure = DOWN
    loop.step()
    loop.bus.failure = None


def test_what_is_missing_is_taken_from_vk(loop: Loop, client: Any) -> None:
    """An older checkpoint, stored by another fetcher: VK is asked there, and order is kept."""
    loop.step()
    loop.log.push("a", "b")
    loop.settle()
    loop.backlog.recent.clear()
    held(loop, "c")
    client.delete("events", f"{{events}}:seen:{GROUP}")
    client.set(TS, "10")
    loop.bus.reconnected = False
    loop.step()
    loop.settle()
    assert sent(client) == ["a", "b", "c"]
    assert not dead_letters(client)


def test_a_gap_never_hides_what_is_pending(loop: Loop, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """VK has forgotten what is missing and more; the gap ends where what is held begins, and the log says so."""
    loop.step()
    loop.log.push("a", "b")
    loop.settle()
    held(loop, "c", "d")
    client.delete("events", f"{{events}}:seen:{GROUP}")
    client.set(TS, "5")
    loop.backlog.recent.clear()
    loop.bus.reconnected = False
    loop.vk.script = [gap(5, 14)]
    caplog.clear()
    loop.settle()
    assert sent(client) == ["c", "d"]
    assert dead_letters(client) == [{"since": "5", "until": "12", "error": "forgotten"}]
    told = [record.getMessage() for record in caplog.records if "gap" in record.getMessage()]
    assert told == ["A gap from ts 5 to 12: forgotten"]


def test_vk_has_begun_anew(loop: Loop, client: Any) -> None:
    """What is pending is of another time: it goes out late, and then VK is polled where it is now."""
    loop.step()
    loop.log.push(*ids(5))
    loop.settle()
    held(loop, "a")
    client.set(TS, "3")
    loop.backlog.recent.clear()
    loop.bus.reconnected = False
    loop.log.log, loop.log.ts, loop.log.oldest = [], 3, 3
    loop.step()
    assert sent(client)[-1] == "a"
    assert client.get(TS) == "3"
    loop.log.push("b")
    loop.settle()
    assert sent(client)[-2:] == ["a", "b"]


def test_vk_says_more_with_a_new_key(loop: Loop, client: Any) -> None:
    """An empty answer where VK is further proves nothing: it is asked again."""
    loop.step()
    loop.log.push("a", "b")
    loop.settle()
    held(loop, "c")
    client.delete("events", f"{{events}}:seen:{GROUP}")
    client.set(TS, "10")
    loop.backlog.recent.clear()
    loop.bus.reconnected = False
    loop.vk.script = [Batch("10", "10", [])]
    loop.vk.renewed = ["13"]
    loop.settle()
    assert sent(client) == ["a", "b", "c"]
    assert not dead_letters(client)


def test_vk_fails_where_something_is_missing(loop: Loop, client: Any) -> None:
    """Nothing is decided then."""
    loop.step()
    loop.log.push("a")
    loop.settle()
    held(loop, "b")
    client.delete("events", f"{{events}}:seen:{GROUP}")
    client.set(TS, "10")
    loop.backlog.recent.clear()
    loop.bus.reconnected = False
    loop.vk.script = [VK_DOWN]
    assert loop.step() == ["VK is unavailable"]
    loop.settle()
    assert sent(client) == ["a", "b"]


# Redis fails


def test_batches_are_held_while_redis_is_down(loop: Loop, client: Any) -> None:
    """Polling goes on, for a second in each step, and names are known before Redis is back."""
    loop.step()
    loop.bus.failure = DOWN
    for number in range(3):
        loop.log.push(number)
        assert loop.step() == ["Redis is unavailable"]
    assert {wait for _, wait in loop.vk.polls[1:]} == {1}
    assert loop.vk.short[-1]
    loop.step()
    loop.bus.failure, loop.names.failure = None, VK_DOWN
    loop.step()
    assert sent(client) == ids(3)
    assert client.get(TS) == "13"
    assert len(loop.names.asked) == 1, "all of one person in one chat"
    assert not loop.vk.short[-1]


def test_a_reply_is_lost(loop: Loop, client: Any) -> None:
    """The bus had it all: it goes out once."""
    loop.step()
    loop.log.push(*ids(3))
    loop.bus.lost_replies = 2
    loop.settle()
    assert sent(client) == ids(3)
    assert not dead_letters(client)


def test_redis_came_back_empty(loop: Loop, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The last known checkpoint is stored again, with a record, and all that is remembered goes out."""
    loop.step()
    loop.log.push("a", "b")
    loop.settle()
    loop.log.push("c")
    loop.step()
    fail_over(client, [], loop)
    loop.settle()
    assert client.get(TS) == "13"
    assert sent(client) == ["a", "b", "c"]
    assert dead_letters(client) == [{"since": "12", "until": "12", "error": "Redis had lost the checkpoint"}]
    assert "Redis had lost the checkpoint" in caplog.text


@pytest.mark.parametrize(
    ("stored", "published", "goes_out"),
    [(14, "", "abcd"), (12, "ab", "cd"), (13, "abc", "d"), (14, "abcd", ""), (99, "abcd", ""), (99, "ab", "cd")],
)
def test_another_fetcher_is_further(loop: Loop, client: Any, stored: int, published: str, goes_out: str) -> None:
    """Its checkpoint takes nothing away: what is held and is not on the bus goes out, and nothing twice."""
    loop.step()
    held(loop, *"abcd")
    for id in published:
        client.zadd(f"{{events}}:seen:{GROUP}", {id: 1})
    client.set(TS, stored)
    loop.log.ts = max(stored, 14)
    loop.step()
    assert "".join(sent(client)) == goes_out
    assert client.get(TS) == str(max(stored, 14))
    assert not dead_letters(client)
    assert loop.backlog.next_ts == str(max(stored, 14))


def test_the_checkpoint_was_deleted(loop: Loop, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """No connection broke; another fetcher restores it first: then there is one record only."""
    other = Loop(loop.log)
    loop.step()
    other.step()
    loop.log.push("a")
    for one in (loop, other):
        one.step()
    client.delete(TS)
    for _ in range(3):
        for one in (loop, other):
            one.step()
    assert client.get(TS) == "11"
    assert sent(client) == ["a"]
    assert len(dead_letters(client)) == 1
    assert caplog.text.count("Redis had lost the checkpoint") == 1


def test_what_is_committed_lately_survives_a_failover(loop: Loop, client: Any) -> None:
    """Acknowledged writes that the replica lacks are written again, though VK has forgotten them all."""
    loop.step()
    loop.log.push(*ids(50))
    loop.settle()
    replica = copy(client)
    loop.log.push(*ids(50, 50))
    loop.settle()
    loop.log.history = 0
    loop.log.push()
    fail_over(client, replica, loop)
    loop.settle()
    assert sent(client) == ids(100)
    assert not dead_letters(client)


def test_a_broken_connection_is_taken_for_a_failover(loop: Loop, client: Any) -> None:
    """Also where the next commit goes through: nobody knows what the server lost."""
    loop.step()
    loop.log.push(*ids(5))
    loop.settle()
    replica = copy(client)
    loop.log.push(*ids(5, 5))
    loop.settle()
    loop.bus.failure = DOWN
    loop.log.push("x")
    loop.step()
    fail_over(client, replica)
    loop.bus.failure = None
    loop.settle()
    assert sent(client) == [*ids(10), "x"]


def test_memory_is_bounded_by_number(loop: Loop, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """VK is not polled past it, and what was held goes out."""
    monkeypatch.setattr(backlog_limits, "MAX_PENDING", 150)
    loop.step()
    loop.bus.failure = DOWN
    loop.log.push(*ids(500))
    loop.step(5)
    assert loop.backlog.count == 200
    assert loop.vk.polls[-1][0] == "110"
    loop.bus.failure = None
    loop.settle()
    assert sent(client) == ids(500)


def test_memory_is_bounded_by_bytes(loop: Loop, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few long messages fill it as well."""
    monkeypatch.setattr(backlog_limits, "MAX_PENDING_BYTES", 150_000)
    loop.step()
    loop.bus.failure = DOWN
    loop.names.failure = VK_DOWN  # so that VK's answers themselves are held
    loop.log.push(*ids(500))
    loop.step(5)
    assert loop.backlog.count == 200
    loop.bus.failure = loop.names.failure = None
    loop.settle()
    assert sent(client) == ids(500)


def test_vk_is_polled_while_a_backlog_drains(loop: Loop, client: Any) -> None:
    """Redis is back and slow: at least a poll a second, so VK need not keep much; nothing is lost."""
    loop.log.history = 256
    loop.step()
    loop.bus.failure = DOWN
    for number in range(30):
        loop.log.push(*ids(40, 40 * number))
        loop.step()
    loop.bus.failure, loop.bus.cost = None, lambda commit: 0.1 + len(commit.entries) / 400
    first = len(loop.vk.times)
    for number in range(30, 70):
        loop.log.push(*ids(40, 40 * number))
        loop.step()
    times = loop.vk.times[first:]
    assert max(later - earlier for earlier, later in pairwise(times)) < 2.5
    loop.settle()
    assert sent(client) == ids(2800)
    assert not dead_letters(client)


def test_pieces_get_through_a_slow_link(loop: Loop, client: Any) -> None:
    """A commit that times out is halved, down to a single event if need be, and grows again on a better link."""
    loop.step()
    loop.bus.failure = DOWN
    loop.log.push(*ids(400))
    loop.step(3)
    loop.bus.failure = None
    loop.bus.timeout, loop.bus.cost = 1, lambda commit: len(commit.entries) / 4
    errors = Counter(error for _ in range(12) for error in loop.step())
    assert set(errors) == {"Redis is unavailable (TimeoutError)"}
    sizes = [len(commit.entries) for commit in loop.bus.commits]
    assert sizes[0] > 50
    assert min(sizes) <= 4
    first = len(loop.bus.commits)
    loop.bus.cost = lambda commit: 0.01
    loop.settle()
    assert sent(client) == ids(400)
    assert max(len(commit.entries) for commit in loop.bus.commits[first:]) > 30


def test_a_slow_commit_makes_the_next_one_smaller(loop: Loop, client: Any) -> None:
    """It did not time out, but polls waited for it."""
    loop.step()
    loop.bus.failure = DOWN
    loop.log.push(*ids(2000))
    loop.step(20)
    loop.bus.failure, loop.bus.cost = None, lambda commit: len(commit.entries) / 100
    loop.step(20)
    assert len(loop.bus.commits[-1].entries) <= 100
    loop.settle()
    assert sent(client) == ids(2000)


# Names


def test_names_fail_and_polls_go_on(loop: Loop, client: Any) -> None:
    """VK's API may be down while its polls are answered; the fetcher is alive."""
    loop.step()
    loop.names.failure = TransientError("VK error 10")
    loop.log.push("a")
    for _ in range(5):
        loop.step()
        loop.log.push("b")
    assert loop.step() == ["VK error 10"]
    assert {wait for _, wait in loop.vk.polls[2:]} == {1}
    assert len(loop.bus.beats) > 1
    assert client.exists(loop.bus.alive_key)
    loop.names.failure = None
    loop.settle()
    assert sent(client)[0] == "a"


@pytest.mark.parametrize("failure", [TransientError("VK error 29"), FatalError("VK refuses the token")])
def test_names_never_block_for_longer(loop: Loop, client: Any, failure: Any) -> None:
    """However VK fails, events go out within 30 s, with the names that are known; VK is polled all the time."""
    loop.step()
    loop.log.push("known")
    loop.settle()
    loop.names.failure = failure
    loop.vk.script = [Batch("11", "12", [stand_in.message("x", user=5) | {"event_id": "unknown"}])]
    begun, first = loop.clock.now, len(loop.vk.times)
    while len(sent(client)) < 2:
        loop.run(1)
    assert 29 < loop.clock.now - begun < 34
    assert len(loop.vk.times) - first > 25
    assert user_names(client) == [f"name of {PERSON}", ""]
    assert not client.exists("{events}:name:5")
    loop.names.failure = None
    loop.log.ts = 12
    loop.log.push("y")
    loop.settle()
    assert sent(client) == ["known", "unknown", "y"]


def test_one_object_that_fails(loop: Loop, client: Any) -> None:
    """VK fails for one person for minutes: whose batch has waited once delays nobody any more."""
    loop.step()
    loop.names.failing = {PERSON}
    for number in range(70):
        loop.log.push(number)
        loop.run(1)
        behind = number + 1 - len(sent(client))
        assert behind <= (33 if number < 40 else 3)
    assert set(user_names(client)) == {""}
    loop.names.failing = set()
    loop.log.push("named")
    loop.run(3)
    assert user_names(client)[-1] == f"name of {PERSON}"


def test_names_given_up_while_redis_is_down(loop: Loop, client: Any) -> None:
    """The 30 s begin when the batch comes, so it does not wait again when Redis is back."""
    loop.step()
    loop.names.failure = TransientError("VK error 10")
    loop.bus.failure = DOWN
    loop.log.push("a")
    loop.run(40)
    loop.bus.failure = None
    loop.step()
    assert sent(client) == ["a"]


# Fatal answers


FATAL = FatalError("Redis refuses the user or the password: fix REDIS_URL")


@pytest.mark.parametrize("place", ["start", "later"])
def test_a_fatal_answer_ends_it_while_nothing_is_pending(loop: Loop, place: str) -> None:
    """Only the operator can fix it, and memory holds nothing."""
    if place == "later":
        loop.step()
    loop.bus.failure = FATAL
    loop.bus.reconnected = True
    polls = len(loop.vk.polls)
    with pytest.raises(FatalError, match="password"):
        loop.relay.run()
    assert len(loop.vk.polls) == polls, "no poll brings more to lose"


def test_a_fatal_answer_of_vk_ends_it_while_nothing_is_pending(loop: Loop) -> None:
    """Whatever else failed before it."""
    loop.step()
    loop.bus.failure, loop.bus.reconnected = DOWN, True
    loop.vk.script = [FatalError("VK refuses the token")]
    with pytest.raises(FatalError, match="token"):
        loop.relay.run()


def test_a_fatal_answer_costs_no_memory(loop: Loop, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """While something is pending it is CRITICAL once a minute, tried again, and VK is polled; then it ends as ever."""
    loop.step()
    loop.log.push("a", "b")
    loop.step()
    loop.bus.failure = FATAL
    loop.run(150)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [("CRITICAL", f"{FATAL}: trying again, because 2 updates are not on the bus yet")] * 3
    loop.log.push("c")
    loop.run(5)
    loop.bus.failure = None
    loop.run(3)
    assert sent(client) == ["a", "b", "c"]
    assert caplog.messages[-1] == "Recovered"
    loop.bus.failure, loop.bus.reconnected = FATAL, True
    with pytest.raises(FatalError):
        loop.relay.run()


# Failures in the log, and pauses


def test_a_failure_is_logged_once_a_minute(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """And one line tells that it is over; another failure meanwhile is told as well."""
    loop.step()
    loop.bus.failure = DOWN
    loop.bus.reconnected = True
    loop.run(150)
    assert caplog.messages == ["Redis is unavailable: trying again"] * 3
    loop.vk.script = [VK_DOWN]
    loop.run(5)
    assert caplog.messages[3:] == ["VK is unavailable: trying again"]
    loop.bus.failure = None
    loop.run(30)
    assert caplog.messages[4:] == ["Recovered"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    loop.vk.script = [VK_DOWN]
    loop.run(30)
    assert caplog.messages[5:] == ["VK is unavailable: trying again", "Recovered"], "it is told again"


def test_pauses_grow(loop: Loop) -> None:
    """From a fifth of a second to two, half at random, and what the step took counts."""
    loop.step()
    loop.vk.script = [VK_DOWN] * 20
    first = len(loop.vk.times)
    loop.run(30)
    times = loop.vk.times[first:][:20]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert 0.1 <= pauses[0] <= 0.4
    assert all(1 <= pause <= 2 for pause in pauses[-10:])


def test_a_long_step_is_followed_at_once(loop: Loop) -> None:
    """It took longer than its pause."""
    loop.step()
    loop.vk.script = [VK_DOWN] * 20
    first = len(loop.vk.times)

    def slow() -> None:
        loop.clock.now += 3

    loop.vk.while_polling = slow
    end = loop.clock.now + 30

    def stop(seconds: float) -> None:
        assert seconds == 0
        if loop.clock.now > end:
            raise END

    loop.clock.sleep = stop  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the end"):
        loop.relay.run()
    assert len(loop.vk.times) - first == 11


# The heartbeat


def test_no_heartbeat_without_an_answer(loop: Loop, client: Any) -> None:
    """A poll that failed is none."""
    loop.vk.script = [VK_DOWN]
    loop.step(2)
    assert not client.exists(loop.bus.alive_key)
    loop.step()
    assert client.exists(loop.bus.alive_key)


def test_heartbeats_are_spaced(loop: Loop) -> None:
    """Not each of many batches costs one."""
    loop.step()
    for number in range(150):
        loop.log.push(number)
        loop.step()
    seconds = 150 * 0.02
    assert seconds / limits.HEARTBEAT_INTERVAL - 2 <= len(loop.bus.beats) <= seconds / limits.HEARTBEAT_INTERVAL + 2


# What operators count


class Count:
    """A counter, a gauge or a histogram: it keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[float] = []
        self.of_label: dict[Any, Count] = {}

    def labels(self, **labels: Any) -> "Count":
        return self.of_label.setdefault(next(iter(labels.values())), Count())

    def inc(self) -> None:
        self.told.append(1)

    set = observe = lambda self, value: self.told.append(value)


COUNTS = ("EVENTS", "DEAD_LETTERS", "GAPS", "HELD_UPDATES", "LAST_POLL", "COMMIT_SECONDS", "PUBLISH_AGE", "REDIS_UP")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Count]:
    counts = {name: Count() for name in COUNTS}
    for name, count in counts.items():
        monkeypatch.setattr(f"fetcher.metrics.{name}", count)
    return counts


def test_events_and_dead_letters_are_counted_once(loop: Loop, client: Any, counts: dict[str, Count]) -> None:
    """Whatever goes out in parts, or is refused the first time, or is committed again."""
    loop.step()
    loop.backlog.piece = 2
    updates = [*batch(10, "a", "b", "c").updates, {"type": "message_new"}, stand_in.button() | {"event_id": "d"}]
    loop.play(Batch("10", "15", updates), gap(15, 20))
    loop.step()
    client.delete(TS)
    loop.settle()
    assert sent(client) == ["a", "b", "c", "d"]
    loop.bus.reconnected = True
    loop.settle()
    assert {kind: sum(count.told) for kind, count in counts["EVENTS"].of_label.items()} == {"message": 3, "button": 1}
    assert len(counts["PUBLISH_AGE"].told) == 3, "VK tells when a message was sent"
    assert sum(counts["DEAD_LETTERS"].told) == 1
    assert sum(counts["GAPS"].told) == 1


def test_what_is_held_is_told(loop: Loop, counts: dict[str, Count]) -> None:
    """And whether Redis is up, when VK was polled, and how long commits take."""
    loop.step()
    assert (counts["REDIS_UP"].told[-1], counts["HELD_UPDATES"].told[-1]) == (1, 0)
    assert abs(counts["LAST_POLL"].told[-1] - loop.clock.now) < 30
    loop.bus.failure = DOWN
    loop.log.push("a", "b")
    loop.step()
    assert (counts["REDIS_UP"].told[-1], counts["HELD_UPDATES"].told[-1]) == (0, 2)
    loop.bus.failure, loop.bus.cost = None, lambda commit: 0.5
    loop.step()
    assert (counts["REDIS_UP"].told[-1], counts["HELD_UPDATES"].told[-1]) == (1, 0)
    assert counts["COMMIT_SECONDS"].told[-1] == pytest.approx(0.5)


# Two faults at once: what is in memory is never lost


def test_an_outage_and_then_a_failover(loop: Loop, client: Any) -> None:
    """Redis is down for 30 s, and the replica that follows lacks the latest writes; VK keeps 200 updates."""
    loop.log.history = 200
    loop.step()
    loop.log.push(*ids(160))
    loop.settle()
    replica = copy(client)
    loop.log.push(*ids(40, 160))
    loop.settle()
    loop.bus.failure = DOWN
    for number in range(30):
        loop.log.push(*ids(20, 200 + 20 * number))
        loop.step()
    fail_over(client, replica)
    loop.bus.failure = None
    loop.settle()
    assert sent(client) == ids(800)
    assert not dead_letters(client)


def test_a_restart_while_redis_is_down(loop: Loop, client: Any) -> None:
    """The one update that nobody has any more is a gap, told; all that came after the restart is there."""
    loop.step()
    loop.log.push(*ids(219))
    loop.settle()
    loop.log.history = 100
    loop.bus.failure = DOWN
    loop.log.push("nobody has it")
    loop.step()
    loop.start()
    loop.bus.failure = DOWN
    for number in range(30):
        loop.step()
        loop.log.push(*ids(10, 220 + 10 * number))
    loop.step()
    loop.bus.failure = None
    loop.settle()
    assert sent(client) == ids(219) + ids(300, 220)
    assert [(letter["since"], letter["until"]) for letter in dead_letters(client)] == [("229", "230")]


def test_two_fetchers_one_restarted_during_the_outage(loop: Loop, client: Any) -> None:
    """It is back first, and its gap takes nothing away from what the other holds."""
    loop.log.history = 100
    other = Loop(loop.log)
    for one in (loop, other):
        one.step()
    loop.log.push(*ids(100))
    for one in (loop, other):
        one.settle()
    for one in (loop, other):
        one.bus.failure = DOWN
    for number in range(18):
        loop.log.push(*ids(10, 100 + 10 * number))
        for one in (loop, other):
            one.step()
    other.start()
    other.bus.failure = DOWN
    other.step()
    for number in range(18):
        loop.log.push(*ids(10, 280 + 10 * number))
        for one in (loop, other):
            one.step()
    other.bus.failure = None
    other.settle()
    loop.bus.failure = None
    loop.settle()
    assert sorted(sent(client), key=int) == ids(460)
    assert len(sent(client)) == 460
    loop.log.push("x")
    for one in (loop, other):
        one.settle()
    assert sent(client)[-1] == "x"


def test_two_fetchers_and_an_empty_redis(loop: Loop, client: Any) -> None:
    """One was started meanwhile and stores VK's latest ts: the other's updates go out all the same, and it is told."""
    loop.step()
    loop.log.push(*ids(40))
    loop.settle()
    loop.bus.failure = DOWN
    loop.log.push(*ids(60, 40))
    loop.step(3)
    fail_over(client, [])
    newcomer = Loop(loop.log)
    newcomer.step()
    loop.bus.failure = None
    loop.settle()
    newcomer.settle()
    loop.log.push("x")
    newcomer.settle()
    loop.settle()
    assert sent(client) == [*ids(100), "x"]


def test_a_lost_reply_and_then_a_failover(loop: Loop, client: Any) -> None:
    """The first server had it, the second one does not: it goes out there."""
    loop.step()
    replica = copy(client)
    loop.log.push(*ids(3))
    loop.bus.lost_replies = 1
    loop.step(2)
    fail_over(client, replica, loop)
    loop.settle()
    assert sent(client) == ids(3)


def test_a_failover_while_a_large_batch_goes_out_in_parts(loop: Loop, client: Any) -> None:
    """The parts that were acknowledged go out again."""
    loop.step()
    replica = copy(client)
    loop.backlog.piece = 30
    loop.bus.cost = lambda commit: 0.6
    loop.log.push(*ids(100))
    loop.step(2)
    assert 0 < len(sent(client)) < 100
    fail_over(client, replica, loop)
    loop.settle()
    assert sent(client) == ids(100)


def test_a_kill_while_a_large_batch_goes_out_in_parts(loop: Loop, client: Any) -> None:
    """The checkpoint stands before it; the parts that are out are passed over."""
    loop.step()
    loop.backlog.piece = 30
    loop.bus.cost = lambda commit: 0.6
    loop.log.push(*ids(100))
    loop.step(2)
    assert 0 < len(sent(client)) < 100
    assert client.get(TS) == "10"
    loop.start()
    loop.settle()
    assert sent(client) == ids(100)


def test_vk_and_redis_fail_together(loop: Loop, client: Any) -> None:
    """Whatever is back first."""
    loop.step()
    loop.log.push(*ids(5))
    loop.step()
    loop.bus.failure = DOWN
    loop.vk.script = [VK_DOWN]
    assert loop.step() == ["Redis is unavailable", "VK is unavailable"]
    loop.bus.failure, loop.vk.script = None, [VK_DOWN]
    assert loop.step() == ["VK is unavailable"]
    assert sent(client) == ids(5)
