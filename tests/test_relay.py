"""The loop's decisions, with a VK that plays a script and a bus on fakeredis."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from fakeredis import FakeStrictRedis

from fetcher import relay
from fetcher.builders import command_pattern
from fetcher.bus import Bus
from fetcher.errors import Away, Trouble
from fetcher.names import Name
from fetcher.relay import Backoff, Relay
from fetcher.vk import Batch
from tests import vk
from tests.vk import GROUP, update

TS = f"{{events}}:ts:{GROUP}"


class ScriptedVK:
    """Answers polls from a list; an exception there is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.polls: list[tuple[str, int]] = []
        self.asked: list[set[int]] = []

    def newest(self) -> str:
        return "10"

    def hurry(self, needed: bool) -> None:
        pass

    def poll(self, ts: str, wait: int) -> Batch:
        self.polls.append((ts, wait))
        answer = self.answers.pop(0) if self.answers else Batch(ts, ts, [])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def names(self, ids: Iterable[int]) -> dict[int, Name]:
        self.asked.append(set(ids))
        return {id: Name(f"name of {id}") for id in ids}

    def whole(self, messages: Iterable[Any]) -> dict[Any, Any]:
        return {}


class FlakyBus(Bus):
    """Fails as often as it is told."""

    away = 0

    def commit(self, *arguments: Any) -> str:
        if self.away:
            self.away -= 1
            raise Away("Redis is away")
        return super().commit(*arguments)


@pytest.fixture
def client() -> FakeStrictRedis:
    return FakeStrictRedis(decode_responses=True)


def relay_of(client: FakeStrictRedis, *answers: Any) -> Relay:
    bus = FlakyBus("redis://nowhere", "events", GROUP, 100, 600, 55)
    bus.client = client
    return Relay(ScriptedVK(*answers), bus, command_pattern(GROUP, "/"), 25)


def batch(since: int, *texts: str) -> Batch:
    return Batch(str(since), str(since + len(texts)), [message(text, event_id=text) for text in texts])


def message(text: str, event_id: str) -> dict[str, Any]:
    return vk.message(text) | {"event_id": event_id}


def sent(client: FakeStrictRedis) -> list[str]:
    return client.zrange(f"{{events}}:seen:{GROUP}", 0, -1)


def test_a_batch_is_committed_in_the_next_step(client: FakeStrictRedis) -> None:
    """Poll from the confirmed ts, hold, commit, poll from there."""
    loop = relay_of(client, batch(10, "a", "b"))
    loop.step()
    assert client.get(TS) == "10"
    loop.step()
    assert sent(client) == ["a", "b"]
    assert client.get(TS) == "12"
    assert loop.vk.polls == [("10", 25), ("12", 25)]


def test_batches_are_held_while_redis_is_away(client: FakeStrictRedis) -> None:
    """Polling goes on, one batch after the other in a step, and names are known before Redis is back."""
    loop = relay_of(client, batch(10, "a"), batch(11, "b"), batch(12, "c"))
    loop.step()
    loop.bus.away = 1
    with pytest.raises(Away):
        loop.step()
    assert loop.vk.polls[:3] == [("10", 25), ("11", 1), ("12", 1)]
    assert len(loop.held) == 2  # what is not ready yet is one batch
    assert sent(client) == []
    loop.step()
    assert sent(client) == ["a", "b", "c"]
    assert client.get(TS) == "13"
    assert len(loop.vk.asked) == 2
    assert loop.vk.asked[1] == set()  # known from the batch before


def test_no_poll_past_the_limit(client: FakeStrictRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded."""
    monkeypatch.setattr(relay, "MOST_HELD", 2)
    loop = relay_of(client, batch(10, "a"), batch(11, "b"), batch(12, "c"))
    loop.step()
    loop.bus.away = 3
    for _ in range(3):
        with pytest.raises(Away):
            loop.step()
    assert [ts for ts, _ in loop.vk.polls] == ["10", "11"]
    loop.step()
    assert sent(client) == ["a", "b"]


@pytest.mark.parametrize(
    ("stored", "goes_out"),
    [("11", "bcd"), ("12", "cd"), ("13", "d"), ("14", ""), ("10", "abcd"), ("99", ""), ("3", "")],
)
def test_somebody_else_moved_the_checkpoint(client: FakeStrictRedis, stored: str, goes_out: str) -> None:
    """What ends before it is dropped; a place elsewhere drops all, and leads."""
    loop = relay_of(client, batch(10, "a", "b"), batch(12, "c"), batch(13, "d"))
    loop.step()
    loop.bus.away = 1
    with pytest.raises(Away):
        loop.step()
    for id in "abcd"[: max(0, int(stored) - 10)]:  # what somebody else has put there
        client.zadd(f"{{events}}:seen:{GROUP}", {id: 1})
    client.set(TS, stored)
    loop.step()
    assert [json.loads(entry["event"])["event_id"] for _, entry in client.xrange("events")] == [*goes_out]
    assert loop.vk.polls[-1][0] == (stored if not goes_out else "14")


def test_a_gap_has_no_place_inside(client: FakeStrictRedis) -> None:
    """Whoever moved the checkpoint into it leads."""
    loop = relay_of(client, Batch("10", "20", [], "forgotten"), batch(20, "a"))
    loop.step()
    client.set(TS, "15")
    loop.step()
    assert not client.exists("{events}:dead-letter")
    assert loop.vk.polls[-1][0] == "15"


def test_a_gap_is_recorded(client: FakeStrictRedis, caplog: pytest.LogCaptureFixture) -> None:
    """One dead letter, and one warning."""
    loop = relay_of(client, Batch("10", "20", [], "forgotten"), batch(20, "a"))
    for _ in range(3):
        loop.step()
    letters = [entry for _, entry in client.xrange("{events}:dead-letter")]
    assert letters == [{"since": "10", "until": "20", "error": "forgotten"}]
    assert [record.message for record in caplog.records] == ["A gap from ts 10 to 20: forgotten"]
    assert sent(client) == ["a"]


def test_no_gap_where_the_ts_stays(client: FakeStrictRedis) -> None:
    """VK has forgotten nothing."""
    loop = relay_of(client, Batch("10", "10", [], "forgotten"), batch(10, "a"))
    for _ in range(3):
        loop.step()
    assert not client.exists("{events}:dead-letter")
    assert sent(client) == ["a"]


def test_redis_came_back_empty(client: FakeStrictRedis, caplog: pytest.LogCaptureFixture) -> None:
    """The last confirmed ts is stored again, with a record, and nothing is lost."""
    loop = relay_of(client, batch(10, "a"), batch(11, "b"))
    loop.step()
    loop.step()
    client.flushall()
    loop.step()
    assert client.get(TS) == "12"
    assert sent(client) == ["b"]
    letters = [entry for _, entry in client.xrange("{events}:dead-letter")]
    assert letters == [{"since": "11", "until": "11", "error": "Redis had lost the checkpoint"}]
    assert "Redis had lost the checkpoint" in caplog.text


def test_another_fetcher_was_first_after_the_loss(client: FakeStrictRedis) -> None:
    """Then it leads, and there is one record only."""
    loop = relay_of(client, batch(10, "a"), batch(11, "b"))
    loop.step()
    loop.step()
    client.delete(TS)
    once = loop.bus.commit

    def beaten(expected: str, *more: Any) -> str:
        if not expected:
            client.set(TS, "11")
        return once(expected, *more)

    loop.bus.commit = beaten
    loop.step()
    assert client.get(TS) == "12"
    assert not client.exists("{events}:dead-letter")


def test_trouble_with_names_keeps_polling(client: FakeStrictRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """VK's API may be down while its polls are answered."""
    monkeypatch.setattr(relay, "POLL_ON", 0)
    loop = relay_of(client, batch(10, "a"), batch(11, "b"))
    loop.step()
    answer = loop.vk.names
    loop.vk.names = lambda ids: (_ for _ in ()).throw(Trouble("VK error 10"))
    with pytest.raises(Trouble, match="VK error 10"):
        loop.step()
    assert client.exists(loop.bus.alive_key)
    loop.vk.names = answer
    loop.step()
    assert sent(client) == ["a", "b"]


def test_no_heartbeat_without_an_answer(client: FakeStrictRedis) -> None:
    """A poll that failed is none."""
    loop = relay_of(client, Trouble("VK is away"), Batch("10", "10", []))
    with pytest.raises(Trouble):
        loop.step()
    loop.step()
    assert not client.exists(loop.bus.alive_key)
    loop.step()
    assert client.exists(loop.bus.alive_key)


def test_repeated_failures_back_off(client: FakeStrictRedis) -> None:
    """What VK told is held before trouble is raised."""
    loop = relay_of(client, Batch("10", "20", [], "forgotten", again=True))
    with pytest.raises(Trouble, match="does not get on"):
        loop.step()
    assert loop.held[0].batch.until == "20"


def test_trouble_is_logged_once_a_minute(
    client: FakeStrictRedis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one line tells that it is over."""
    monkeypatch.setattr(relay, "BACKOFF_MOST", 0)
    now = iter(range(10**6))
    monkeypatch.setattr(relay.time, "monotonic", lambda: next(now) / 10)
    failures = [Trouble("VK is away")] * 1100
    loop = relay_of(client, *failures, Batch("10", "10", []), RuntimeError("the end"))
    with pytest.raises(RuntimeError):
        loop.run()
    told = [record.message for record in caplog.records]
    assert told[-1] == "The trouble is over"
    assert set(told[:-1]) == {"VK is away: trying again"}
    assert next(now) // 10 // 60 <= len(told) <= next(now) // 10 // 60 + 2


def test_the_back_off_counts_what_the_step_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that took longer than its pause is followed at once."""
    now = 100.0
    monkeypatch.setattr(relay.time, "monotonic", lambda: now)
    backoff = Backoff()
    assert 0.2 <= backoff.compute(1) <= 0.4
    now = 110.0
    assert backoff.compute(5000) == 0
    backoff.reset()
    assert 1 <= backoff.compute(5000) <= 2


def test_one_update_cannot_hurt_its_neighbours(client: FakeStrictRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even through a bug in its builder."""

    def broken(*_: Any) -> Any:
        raise KeyError("a bug")

    monkeypatch.setitem(relay.builders.BUILDERS, "odd", broken)
    updates = [message("1", "a"), update("odd", {}, event_id="odd"), update("unknown", {}), message("2", "b")]
    loop = relay_of(client, Batch("10", "14", updates))
    loop.step()
    loop.step()
    assert sent(client) == ["a", "b", "odd"]
    assert [entry["error"] for _, entry in client.xrange("{events}:dead-letter")] == ["KeyError('a bug')"]


def test_vk_does_not_move_on(client: FakeStrictRedis) -> None:
    """Updates at an unchanged ts go out once, and VK is not asked in a tight loop."""
    stuck = Batch("10", "10", batch(10, "a").updates, again=True)
    loop = relay_of(client, stuck, stuck, batch(10, "a", "b"))
    for _ in range(2):
        with pytest.raises(Trouble, match="does not get on"):
            loop.step()
    loop.step()
    loop.step()
    assert sent(client) == ["a", "b"]
    assert client.get(TS) == "12"


def test_a_dead_letter_is_told_once(client: FakeStrictRedis, caplog: pytest.LogCaptureFixture) -> None:
    """However often its batch is tried."""
    loop = relay_of(client, Batch("10", "12", [{"type": "message_new"}, *batch(11, "a").updates]))
    loop.step()
    answer, loop.vk.names = loop.vk.names, lambda ids: (_ for _ in ()).throw(Trouble("VK error 10"))
    with pytest.raises(Trouble):
        loop.step()
    assert not caplog.records
    loop.vk.names = answer
    loop.step()
    assert [record.message for record in caplog.records] == ["Dead letter: missing where an object is due"]


def test_a_burst_is_named_at_once(client: FakeStrictRedis) -> None:
    """Full answers are polled one after the other, up to a limit, and one request names them all."""
    full = [batch(10 + 100 * number, *(f"{number}-{index}" for index in range(100))) for number in range(7)]
    loop = relay_of(client, *full)
    loop.step()
    assert [wait for _, wait in loop.vk.polls] == [25, 1, 1, 1, 1]
    assert len(loop.held) == 1
    loop.step()
    assert len(sent(client)) == 500
    assert len(loop.vk.asked) == 1
    assert client.get(TS) == "510"
    loop.step()
    assert sent(client) == [one["event_id"] for part in full for one in part.updates]


def test_names_stay_in_memory_for_a_while(client: FakeStrictRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """So long is the cache not asked; with no cache there is no memory either."""
    now = 100.0
    monkeypatch.setattr(relay.time, "monotonic", lambda: now)
    loop = relay_of(client, *(batch(10 + number, str(number)) for number in range(4)))
    asked: list[set[int]] = []
    monkeypatch.setattr(loop.bus, "names", lambda ids: asked.append(set(ids)) or {})
    for _ in range(5):
        loop.step()
    assert [bool(ids) for ids in asked] == [True, False, False, False]
    loop.bus.names_ttl = 0
    now += relay.REMEMBER
    loop.vk.answers = [batch(14, "5"), batch(15, "6"), batch(16, "7")]
    for _ in range(4):
        loop.step()
    assert [bool(ids) for ids in asked[4:]] == [True, True, True]


def test_names_are_forgotten_when_another_fetcher_was_first(client: FakeStrictRedis) -> None:
    """It may have been told a newer title, which is in the cache."""
    loop = relay_of(client, batch(10, "a"), batch(11, "b"), batch(13, "d"))
    for _ in range(2):
        loop.step()
    title = json.dumps(["new title", "", "", ""])
    client.set(f"{{events}}:name:{vk.PEER}", title)
    client.set(TS, "13")
    loop.step()
    loop.step()
    (entry,) = client.xrevrange("events", count=1)
    event = json.loads(entry[1]["event"])
    assert (event["event_id"], event["peer"]["name"]) == ("d", "new title")


def test_heartbeats_are_spaced(client: FakeStrictRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each of many batches costs one."""
    now = 100.0
    monkeypatch.setattr(relay.time, "monotonic", lambda: now)
    loop = relay_of(client)
    beats: list[float] = []
    monkeypatch.setattr(loop.bus, "beat", lambda: beats.append(now))
    for _ in range(30):
        loop.step()
        now += 0.1
    assert 2 <= len(beats) <= 4
