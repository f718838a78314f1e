"""The bus on a real server: the atomic commit, what Redis refuses, and what is read on a new connection."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import redis
from fakeredis import FakeStrictRedis

from fetcher.bus.bus import Bus
from fetcher.core.backlog import DEDUP_WINDOW, Pending
from fetcher.core.history import DeadLetter, Entry, Name, Outcome, Position
from fetcher.errors import ConnectionReplaced, RedisFatalError, RedisTimeout, RedisUnavailable
from fetcher.fastjson import dumps
from tests.fakes import Store
from tests.servers import Proxy, Server, address, bus_at, cluster, entries, wait_until

TS, SEEN, DEAD, STREAM = "{events}:ts:7", "{events}:seen:7", "{events}:dead-letter", "events"
KEYS = [TS, SEEN, STREAM, DEAD]
WINDOW = 8  # event_ids that `seen` remembers in the tests that make it small


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    """A client of the server, which is empty."""
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def bus(server: Server, client: Any) -> Bus:
    """A bus whose checkpoint is 10."""
    bus = bus_at(server.url)
    bus.read([], Position(0, 10))
    return bus


def text_of(id: str) -> bytes:
    return dumps({"event_id": id})


def commit(since: Any, until: Any, *ids: str, kind: Any = "batch") -> Pending:
    """Make a commit of these ids; "!x" is a dead letter with the id "x", and "!" alone is one without an id."""
    fields = {"update": "{}", "error": "why"}
    found = [DeadLetter(id[1:], fields) if id[0] == "!" else Entry(id, "message", text_of(id)) for id in ids]
    return Pending(kind, Position.parse(str(since)), Position.parse(str(until)), entries=[*found])


def gap(since: Any, until: Any) -> Pending:
    return commit(since, until, "!", kind="gap")


def restore(place: Any) -> Pending:
    return commit(place, place, "!", kind="restore")


def stream(client: Any) -> str:
    return "".join(json.loads(fields["event"])["event_id"] for fields in entries(client))


def contents(server: Server) -> dict[str, Any]:
    """Dump all keys of a server."""
    with server.client(decode_responses=False) as client:
        return {key: client.dump(key) for key in client.scan_iter()}


# The commit


class Row(NamedTuple):
    """A commit to a bus with this checkpoint and the id "s" in seen, and what the script answers."""

    stored: str | None
    commit: Pending
    checkpoint: str | None
    recorded: str = ""  # ids, "!" for a dead letter
    left_out: int = 0
    full: int = 0  # ids that seen has besides "s"; the window is 8


ROWS = {
    # There is no checkpoint
    "a batch, no checkpoint": Row(None, commit(10, 12, "a", "!x"), None),
    "a gap, no checkpoint": Row(None, gap(10, 12), None),
    "a lost checkpoint": Row(None, restore("1:9+5"), "1:9+5", "!"),
    "a lost checkpoint that another fetcher has restored": Row("10", restore(9), "10"),
    "a lost checkpoint that another fetcher has restored alike": Row("9", restore(9), "9"),
    # A batch
    "begins at the checkpoint": Row("10", commit(10, 12, "a", "s", "b"), "12", "ab"),
    "begins before it": Row("10", commit(8, 12, "a", "s"), "12", "a"),
    "begins after it": Row("10", commit(11, 12, "a", "!x"), "10"),
    "begins after it, and is less as text": Row("9", commit(10, 12, "a"), "9"),
    "begins before it, and is more as text": Row("10", commit(9, 100, "a"), "100", "a"),
    "ends at it": Row("10", commit(8, 10, "a", "s"), "10", "a"),
    "ends before it": Row("10", commit(8, 9, "a"), "10", "a"),
    "ends before it, and is more as text": Row("10", commit(8, 9, "a"), "10", "a"),
    "has no events": Row("10", commit(10, 12), "12"),
    "has nothing that is new": Row("10", commit(10, 12, "s"), "12"),
    "has an id twice": Row("10", commit(10, 12, "a", "a"), "12", "a"),
    "has dead letters, in VK's order": Row("10", commit(10, 14, "!x", "a", "!y", "b"), "14", "!a!b"),
    "has a dead letter twice": Row("10", commit(10, 12, "!x", "!x"), "12", "!"),
    "has a dead letter of a known id": Row("10", commit(10, 12, "!s"), "12"),
    "has an event of a dead letter's id": Row("10", commit(10, 12, "!x", "x"), "12", "!"),
    "has dead letters without id": Row("10", commit(10, 12, "!", "!"), "12", "!!"),
    # A piece of a batch
    "is the first piece": Row("10", commit(10, "10+2", "a", "b"), "10+2", "ab"),
    "is the next piece": Row("10+2", commit("10+2", "10+10", "c"), "10+10", "c"),
    "is the last piece": Row("10+10", commit("10+10", 12, "d"), "12", "d"),
    "is a piece again": Row("10+10", commit("10+2", "10+4", "a"), "10+10", "a"),
    "is a piece after a lost one": Row("10", commit("10+2", "10+4", "a"), "10"),
    "is a piece after a lost one, and less as text": Row("10+9", commit("10+10", 12, "a"), "10+9"),
    "is VK's answer again": Row("10+2", commit(10, 12, "s", "c"), "12", "c"),
    # A batch from another epoch
    "is of the same later epoch": Row("1:3", commit("1:3", "1:5", "a"), "1:5", "a"),
    "is of a later epoch": Row("10", commit("1:3", "1:5", "a"), "10"),
    "is of an earlier epoch": Row("1:3", commit(10, 12, "a"), "1:3", "a"),
    "is of an earlier epoch, and more as text": Row("10:3", commit("9:3", "9:5", "a"), "10:3", "a"),
    # A batch that is late
    "begins nearly too far before it": Row("100", commit(97, 98, "a"), "100", "a", full=8),
    "begins too far before it, and ends near it": Row("100", commit(96, 99, "a"), "100", left_out=1, full=8),
    "begins too far before it, and ends at it": Row("100", commit(96, 100, "a"), "100", left_out=1, full=8),
    "begins too far before it, and seen has forgotten nothing": Row("100", commit(96, 99, "a"), "100", "a", full=6),
    "is too old": Row("100", commit(10, 96, "a", "s", "!x", "b"), "100", left_out=3, full=8),
    "is too old, a single update": Row("100", commit(10, 96, "a"), "100", left_out=1, full=8),
    "is too old, and all is known": Row("100", commit(10, 96, "s"), "100", full=7),
    "is too old, and seen has forgotten nothing": Row("100", commit(10, 20, "a"), "100", "a", full=6),
    "is of an earlier epoch, of which nobody can tell": Row("1:100", commit(10, 20, "a"), "1:100", "a", full=8),
    "is far before the checkpoint, and reaches it": Row("100", commit(10, 101, "a"), "101", "a", full=8),
    # A gap
    "a gap at the checkpoint": Row("10", gap(10, 20), "20", "!"),
    "a gap from inside a batch": Row("10+2", gap("10+2", 20), "20", "!"),
    "a gap to the next epoch": Row("10", gap(10, "1:3"), "1:3", "!"),
    "a gap before the checkpoint": Row("10", gap(9, 20), "10"),
    "a gap after the checkpoint": Row("10", gap(11, 20), "10"),
    "a gap that others have filled in part": Row("10+2", gap(10, 20), "10+2"),
    "a gap where the bus was once": Row("100", gap(10, 20), "100"),
}


@pytest.fixture
def bus_of_row(server: Server, client: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Row], Bus]:
    """Return a function that prepares the bus for a row."""

    def make(row: Row) -> Bus:
        monkeypatch.setattr("fetcher.bus.bus.DEDUP_WINDOW", WINDOW)
        client.zadd(SEEN, {f"old {number}": number + 1 for number in range(row.full)} | {"s": 100})
        if row.stored:
            client.set(TS, row.stored)
        return bus_at(server.url)

    return make


def recorded(outcome: Outcome) -> str:
    return "".join(one.id if isinstance(one, Entry) else "!" for one in outcome.recorded)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_seen_and_the_checkpoint_decide_what_is_recorded(
    row: Row, bus_of_row: Callable[[Row], Bus], client: Any
) -> None:
    """`seen` decides what is published, the checkpoint whether anything is; the answer says what was recorded."""
    bus = bus_of_row(row)
    before = list(client.zrange(SEEN, 0, -1))
    outcome = bus.commit(row.commit)
    assert outcome.checkpoint == (Position.parse(row.checkpoint) if row.checkpoint else None)
    assert (recorded(outcome), outcome.left_out) == (row.recorded, row.left_out)
    assert client.get(TS) == row.checkpoint
    assert stream(client) == row.recorded.replace("!", "")
    letters = entries(client, DEAD)
    assert len(letters) == row.recorded.count("!") + bool(row.left_out)
    if row.left_out:
        error = f"{row.left_out} updates came so late that they may be on the bus already"
        assert letters == [{"since": str(row.commit.since), "until": str(row.commit.until), "error": error}]
    if not row.recorded and not row.left_out and row.checkpoint == row.stored:
        assert client.zrange(SEEN, 0, -1) == before


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_fake_store_behaves_like_the_script(row: Row, bus_of_row: Callable[[Row], Bus], client: Any) -> None:
    """The fake store of the other tests does what the script does, even if the same commit is repeated."""
    bus, store = bus_of_row(row), Store()
    store.remember(*client.zrange(SEEN, 0, -1))
    store.checkpoint = Position.parse(row.stored) if row.stored else None
    for _ in range(2):
        assert store.commit(row.commit) == bus.commit(row.commit)
        assert store.dead == entries(client, DEAD)
        assert "".join(store.ids) == stream(client)
        assert store.seen == client.zrange(SEEN, 0, -1)
    ids = ["s", "a", "nobody"]
    assert store.read(ids, None) == bus.read(ids)


def test_a_commit_moves_everything_in_one_step(bus: Bus, client: Any) -> None:
    """One step writes the stream, the dead letters, `seen` and the checkpoint, and publishes on the channels.

    So a subscriber that gets an event finds it in the stream.
    """
    live = client.pubsub()
    live.psubscribe("*")
    live.get_message(timeout=10)
    letter = DeadLetter("x", {"update": "{}", "error": "why"})
    events = Entry("a", "message", b"json a"), Entry("b", "command", "json я".encode())
    published: list[Entry | DeadLetter] = [events[0], letter, events[1]]
    outcome = bus.commit(replace(commit(10, 13), entries=[*published]))
    assert outcome == Outcome(Position(0, 13), published)
    assert entries(client) == [{"event": "json a"}, {"event": "json я"}]
    assert entries(client, DEAD) == [letter.fields]
    assert client.zrange(SEEN, 0, -1) == ["a", "x", "b"]
    heard = [live.get_message(timeout=10) for _ in range(2)]
    assert [(item["channel"], item["data"]) for item in heard] == [
        ("events:message", "json a"),
        ("events:command", "json я"),
    ]


def test_two_fetchers_count_each_event_once(server: Server, bus: Bus, client: Any) -> None:
    """Each event is counted only for the commit in which the script recorded it, even if batches overlap."""
    other = bus_at(server.url)
    batches = [
        commit(10, 12, "a", "!x", "b"),
        commit(12, 14, "c", "d"),
        commit(11, 15, "b", "c", "d", "e"),
        gap(15, 20),
    ]
    outcomes = [one.commit(offered) for offered in batches for one in (bus, other)]
    assert "".join(map(recorded, outcomes)) == "a!bcde!"
    assert stream(client) == "abcde"
    assert len(entries(client, DEAD)) == 2


BIG = 2**53  # from here on, adjacent integers may be the same double


@pytest.mark.parametrize("big", [BIG, 10**25])
@pytest.mark.parametrize(
    ("since", "until", "stored", "published"),
    [(0, 1, 1, "a"), (1, 2, 0, ""), (-1, 1, 1, "a"), (-2, -1, 0, "a"), (0, 0, 0, "a")],
)
def test_a_ts_longer_than_a_double(
    bus: Bus, client: Any, big: int, since: int, until: int, stored: int, published: str
) -> None:
    """A ts that no double can hold exactly is compared digit by digit."""
    client.set(TS, big)
    assert bus.commit(commit(big + since, big + until, "a")).checkpoint == Position(0, big + stored)
    assert client.get(TS) == str(big + stored)
    assert stream(client) == published


def test_half_a_surrogate_pair_is_replaced(bus: Bus, client: Any) -> None:
    """Half a surrogate pair, which UTF-8 cannot encode, is replaced in an id, a type and a dead letter."""
    letter = DeadLetter("\ud83d", {"error": "\udfff"})
    nameless = DeadLetter("", {"error": "\udfff"})
    published: list[Entry | DeadLetter] = [Entry("\udc00", "t\ud83d", b"x"), letter, nameless]
    outcome = bus.commit(replace(commit(10, 11), entries=[*published]))
    assert outcome.recorded == [published[0], nameless], "the letter is known by its id now"
    assert entries(client, DEAD) == [{"error": "\ufffd"}]
    assert client.zrange(SEEN, 0, -1) == ["\ufffd"]
    assert bus.read(["\udfff", "a"])[1] == {"a"}


def test_the_streams_are_trimmed(server: Server, client: Any) -> None:
    """About the latest `stream_maxlen` events and the latest 10,000 dead letters are kept."""
    bus = bus_at(server.url, stream_maxlen=1)
    bus.read([], Position(0, 10))
    bus.commit(commit(10, 11, *map(str, range(1000)), *["!"] * 11_000))
    assert client.xlen(STREAM) < 300
    assert stream(client).endswith("998999")
    assert 10_000 <= client.xlen(DEAD) < 10_300


def test_seen_remembers_the_latest_ids(bus: Bus, client: Any) -> None:
    """`seen` keeps just enough ids that nothing a fetcher may hold is published twice."""
    assert DEDUP_WINDOW == 30_000
    ids = [str(number) for number in range(DEDUP_WINDOW + 500)]
    for first in range(0, len(ids), 5000):
        bus.commit(commit(10, 11, *ids[first : first + 5000]))
    assert client.zrange(SEEN, 0, -1) == ids[500:]
    assert bus.commit(commit(10, 12, *ids[500:])).recorded == []
    assert client.xlen(STREAM) == len(ids)


def test_late_ids_do_not_displace_newer_ones(bus: Bus, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids from far behind the checkpoint do not make `seen` forget newer ones.

    Redis came back empty, and fetchers commit more than `seen` remembers: first the newest, then the oldest.
    """
    monkeypatch.setattr("fetcher.bus.bus.DEDUP_WINDOW", WINDOW)
    client.set(TS, "100")
    newest, oldest = commit(97, 100, "a", "b", "c"), commit(10, 20, *(f"old {number}" for number in range(WINDOW)))
    assert recorded(bus.commit(newest)) == "abc"
    assert len(bus.commit(oldest).recorded) == WINDOW
    assert bus.commit(newest).recorded == []
    assert len(client.zrange(SEEN, 0, -1)) == WINDOW
    assert bus.commit(oldest).left_out > 0


def test_updates_in_different_batches_are_published_once(
    bus: Bus, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates that two fetchers have cut into different batches are published once.

    One batch ends where `seen` may begin to forget; the other begins before that place and ends after it.
    """
    monkeypatch.setattr("fetcher.bus.bus.DEDUP_WINDOW", WINDOW)
    client.set(TS, "100")
    place = {ts: chr(ts) for ts in range(91, 99)}
    assert len(bus.commit(commit(90, 96, *(place[ts] for ts in range(91, 97)))).recorded) == 6
    assert len(bus.commit(commit(10, 20, *(f"z{number}" for number in range(WINDOW)))).recorded) == WINDOW
    assert bus.commit(commit(92, 98, *(place[ts] for ts in range(93, 99)))).recorded == []


def test_a_piece_is_as_old_as_its_answer(bus: Bus, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`seen` treats a piece as being as recent as the end of VK's answer.

    The ts of a piece is where the answer begins, but its updates may be at the end, where another batch has them, too.
    """
    monkeypatch.setattr("fetcher.bus.bus.DEDUP_WINDOW", WINDOW)
    client.set(TS, "100")
    piece = replace(commit(90, "90+6", *"abcdef"), end=Position(0, 98))
    assert recorded(bus.commit(piece)) == "abcdef"
    assert len(bus.commit(commit(10, 20, *(f"z{number}" for number in range(WINDOW)))).recorded) == WINDOW
    assert bus.commit(commit(97, 99, "f")).recorded == []


# A refused commit leaves nothing behind


@pytest.fixture
def full_commit() -> Pending:
    """A commit that writes to each key and channel; its first entry has no id."""
    return commit(10, 12, "!", "a", "b", "!x")


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_type(server: Server, bus: Bus, client: Any, full_commit: Pending, key: str) -> None:
    """If a key is of another type, nothing is written, and the operator gets one sentence."""
    client.delete(key)
    client.rpush(key, "x")
    before = contents(server)
    with pytest.raises(RedisFatalError, match="another type"):
        bus.commit(full_commit)
    assert contents(server) == before


@pytest.mark.parametrize(("key", "id"), [(STREAM, "a"), (DEAD, "!x")])
def test_only_the_keys_of_its_entries_matter(server: Server, bus: Bus, client: Any, key: str, id: str) -> None:
    """An event needs only the stream, and a dead letter only the dead letters' stream."""
    client.rpush(key, "x")
    before = contents(server)
    with pytest.raises(RedisFatalError, match="another type"):
        bus.commit(commit(10, 12, id))
    assert contents(server) == before
    other = {"a": "!x", "!x": "a"}[id]
    assert recorded(bus.commit(commit(10, 12, other))) == other[0]


@pytest.mark.parametrize(
    "rule",
    [
        *("-get", "-set", "-zadd", "-zremrangebyrank", "-zrevrange", "-type", "-xadd", "-publish"),
        *("resetchannels &other:*", "resetchannels &events:command"),
        *(f"resetkeys {' '.join('~' + key for key in KEYS if key != refused)}" for refused in KEYS),
        *(f"resetkeys {' '.join('~' + key for key in KEYS if key != one)} %R~{one}" for one in KEYS),
    ],
)
def test_a_permission_is_missing(full_commit: Pending, rule: str) -> None:
    """If a permission for a command, a key or a channel is missing, nothing is written."""
    with Server(acl=[f"user limited on >x ~* &* +@all {rule}"]) as server, server.client() as client:
        client.set(TS, "10")
        client.zadd(SEEN, {"old": 1})
        before = contents(server)
        with pytest.raises(RedisFatalError, match="permission"):
            bus_at(address(server.port, "x", "limited")).commit(full_commit)
        assert contents(server) == before


def test_only_the_channels_of_its_events_matter() -> None:
    """A user needs permission for no other channels, and for none if there are only dead letters."""
    users = ["user one on >x ~* +@all resetchannels &events:message", "user none on >x ~* +@all &* -publish"]
    users += ["user neither on >x ~* +@all &* -xadd"]
    with Server(acl=users) as server, server.client() as client:
        client.set(TS, "10")
        before = contents(server)
        for user in ("none", "neither"):
            with pytest.raises(RedisFatalError, match="permission"):
                bus_at(address(server.port, "x", user)).commit(commit(10, 12, "a"))
            assert contents(server) == before
        assert recorded(bus_at(address(server.port, "x", "none")).commit(commit(10, 12, "!x"))) == "!"
        assert recorded(bus_at(address(server.port, "x", "one")).commit(commit(12, 14, "a", "!y"))) == "a!"


@pytest.mark.parametrize(
    "rule", ["resetkeys ~events ~{events}:ts:7 ~{events}:seen:7 %R~{events}:dead-letter", "of another type"]
)
def test_a_late_batch_must_be_able_to_write_a_dead_letter(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late batch records a dead letter, so it is also checked first whether that can be written."""
    monkeypatch.setattr("fetcher.bus.bus.DEDUP_WINDOW", WINDOW)
    acl = "" if rule == "of another type" else rule
    with Server(acl=[f"user limited on >x ~* &* +@all {acl}"]) as server, server.client() as client:
        client.set(TS, "100")
        client.zadd(SEEN, {f"old {number}": number for number in range(WINDOW)})
        if not acl:
            client.rpush(DEAD, "x")
        before = contents(server)
        with pytest.raises(RedisFatalError):
            bus_at(address(server.port, "x", "limited")).commit(commit(10, 20, "a"))
        assert contents(server) == before


def test_permissions_are_not_checked_before_redis_7(monkeypatch: pytest.MonkeyPatch, full_commit: Pending) -> None:
    """Redis before version 7 cannot say what it permits, so nothing is checked."""
    with FakeStrictRedis(decode_responses=True) as fake:
        monkeypatch.setattr("fetcher.bus.bus.connect", lambda *_, **__: fake)
        bus = bus_at("redis://nowhere")
        bus.read([], Position(0, 10))
        assert recorded(bus.commit(full_commit)) == "!ab!"


@pytest.mark.parametrize(
    ("setting", "error"),
    [({"maxmemory": 1}, "OutOfMemoryError|OOM"), ({"min_replicas_to_write": 1}, "NOREPLICAS|NoReplicas")],
)
def test_redis_takes_no_writes(setting: dict[str, Any], error: str, full_commit: Pending) -> None:
    """If Redis is out of memory or has too few replicas, nothing is written, and the error is transient."""
    with Server() as server:
        bus = bus_at(server.url)
        bus.read([], Position(0, 10))
        before = contents(server)
        server.config(**setting)
        with pytest.raises(RedisUnavailable, match=error):
            bus.commit(full_commit)
        assert contents(server) == before
        server.config(**dict.fromkeys(setting, 0))
        assert bus.commit(full_commit).checkpoint == Position(0, 12)


def test_a_replica_takes_no_writes(full_commit: Pending) -> None:
    """After a failover the address may lead to a replica, which takes no writes: the error is transient."""
    with Server() as primary, Server() as replica:
        bus = bus_at(replica.url)
        with primary.client() as client:
            client.set(TS, "10")
        replica.replica_of(primary)
        before = contents(replica)
        with pytest.raises(RedisUnavailable, match=r"READONLY|ReadOnly"):
            bus.commit(full_commit)
        assert contents(replica) == before
        replica.replica_of(None)
        assert bus.commit(full_commit).checkpoint == Position(0, 12)


# What is read


def test_the_checkpoint_is_made_once(bus: Bus, client: Any) -> None:
    """Only the first start creates the checkpoint; later ones read it, and a read without `start` creates none."""
    assert bus.read([], Position(0, 99))[0] == Position(0, 10)
    client.delete(TS)
    assert bus.read([])[0] is None
    assert not client.exists(TS)


@pytest.mark.parametrize(
    ("stored", "position"),
    [("12345", (0, 12345, 0)), ("12345+500", (0, 12345, 500)), ("1:30", (1, 30, 0)), ("1:30+500", (1, 30, 500))],
)
def test_a_checkpoint_is_text(bus: Bus, client: Any, stored: str, position: tuple[int, int, int]) -> None:
    """A checkpoint is stored as text; those of versions 1.0 and 1.1 are positions in epoch 0."""
    client.set(TS, stored)
    assert bus.read([])[0] == position
    assert bus.commit(commit(stored, stored)).checkpoint == position
    assert client.get(TS) == stored


@pytest.mark.parametrize("value", ["yesterday", "-5", "1.5", "٣", b"\xff1", "1:", "+5", " 5"])
def test_an_invalid_checkpoint_is_fatal(bus: Bus, client: Any, value: Any) -> None:
    """If the key holds anything but a checkpoint, the operator must decide, and a commit changes nothing."""
    client.set(TS, value)
    for kind in ("batch", "gap", "restore"):
        with pytest.raises(RedisFatalError, match=r"\{events\}:ts:7 holds no ts of VK; delete this key"):
            bus.commit(commit(10, 11, "a", kind=kind))
    with pytest.raises(RedisFatalError, match="delete this key"):
        bus.read([])
    assert not client.exists(STREAM)


def test_ids_that_seen_lacks(bus: Bus) -> None:
    """`seen` has the ids of the events and dead letters that are on the bus, and lacks all others."""
    bus.commit(commit(10, 12, "a", "!x"))
    assert bus.read(["a", "b", "x", "c"]) == (Position(0, 12), {"b", "c"})
    assert bus.read([]) == (Position(0, 12), set())


def test_a_host_name_that_is_not_utf_8(server: Server, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "h\udcff")
    bus = bus_at(server.url)
    bus.beat()
    assert bus.alive()


def test_a_lookup_costs_few_bytes(bus: Bus, client: Any) -> None:
    """A lookup costs about 50 bytes per id, whatever the size of its event, and 1,000 ids take one round trip."""
    ids = [f"{number:040x}" for number in range(1000)]

    def traffic() -> tuple[int, int]:
        stats = client.info("stats")
        return stats["total_net_input_bytes"], stats["total_commands_processed"]

    bus.read([])
    before = traffic()
    assert len(bus.read(ids)[1]) == 1000
    sent, commands = (after - earlier for after, earlier in zip(traffic(), before, strict=True))
    assert sent < 52 * 1000
    assert commands <= 13


def test_an_address_may_set_another_timeout(server: Server, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit of one update that is too large for the link times out, unless REDIS_URL sets a longer timeout."""
    monkeypatch.setattr("fetcher.bus.connection.TIMEOUT", 0.5)
    bus.commit(commit(10, 11, "before"))  # now Redis has the script
    large = replace(commit(11, 12), entries=[Entry("a", "message", b"x" * 120_000)])
    with Proxy(server.port, bandwidth=100_000) as proxy:
        with pytest.raises(RedisTimeout):
            bus_at(proxy.url).commit(large)
        assert bus_at(f"{proxy.url}?socket_timeout=60").commit(large).checkpoint == Position(0, 12)


@pytest.mark.parametrize("rule", ["-set", "-get", "-zmscore", "resetkeys ~{events}:seen:7"])
def test_a_missing_permission_to_read_is_reported(rule: str) -> None:
    """Any permission that is missing for the read is reported."""
    with (
        Server(acl=[f"user limited on >x ~* &* +@all {rule}"]) as limited,
        pytest.raises(RedisFatalError, match="permission"),
    ):
        bus_at(address(limited.port, "x", "limited")).read(["a"], Position(0, 10))


def test_a_checkpoint_of_another_type(bus: Bus, client: Any) -> None:
    """A checkpoint of another type is reported when it is read, not only at the first commit."""
    client.delete(TS)
    client.rpush(TS, "x")
    with pytest.raises(RedisFatalError, match="another type"):
        bus.read(["a"])


# Connections


def test_a_timeout_has_its_own_exception(server: Server, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout has an exception of its own, because it makes the next commit smaller, unlike an outage."""
    monkeypatch.setattr("fetcher.bus.connection.TIMEOUT", 1)
    bus = bus_at(server.url)
    bus.read([], Position(0, 10))
    server.pause()
    try:
        with pytest.raises(RedisTimeout):
            bus.commit(commit(10, 12, "a"))
    finally:
        server.resume()
    wait_until(lambda: bus.commit(commit(10, 12, "a")).checkpoint == (0, 12, 0), 60, "the answer")
    assert stream(client) == "a"


def test_an_outage_is_not_a_timeout(server: Server, client: Any) -> None:
    """A refused or cut connection is not a timeout: it says nothing about the size of a commit."""
    with Proxy(server.port) as proxy:
        bus = bus_at(proxy.url)
        bus.read([], Position(0, 10))
        proxy.down()
        for _ in range(2):
            with pytest.raises(RedisUnavailable) as raised:
                bus.commit(commit(10, 12, "a"))
            assert not isinstance(raised.value, RedisTimeout)


def test_a_new_connection_is_noted(server: Server, client: Any) -> None:
    """A new connection may lead to another server, although nothing failed: the loop must read what that one has."""
    with Proxy(server.port) as proxy:
        bus = bus_at(proxy.url)
        assert not bus.is_connected
        bus.read([], Position(0, 10))
        bus.is_connected = True
        bus.commit(commit(10, 11, "a"))
        bus.beat()
        assert bus.is_connected
        proxy.cut()
        with contextlib.suppress(RedisUnavailable, ConnectionReplaced):  # redis-py may notice the cut first
            bus.commit(commit(11, 12, "b"))
        bus.commit(commit(11, 12, "b"))
        assert not bus.is_connected


def test_the_address_leads_to_another_server() -> None:
    """An old master that has become a replica keeps its connections: only a new one leads to the new master."""
    with Server() as old, Server() as master, Proxy(old.port) as proxy, old.client() as client:
        bus = bus_at(proxy.url)
        bus.read([], Position(0, 10))
        bus.is_connected = True
        client.replicaof("127.0.0.1", master.port)
        proxy.target_port = master.port
        for _ in range(2):
            with pytest.raises(RedisUnavailable, match="ReadOnlyError"):
                bus.commit(commit(10, 11, "a"))
        bus.disconnect()
        assert not bus.is_connected
        assert bus.read([], Position(0, 12)) == (Position(0, 12), set())


def test_disconnecting_opens_no_connection() -> None:
    """Disconnecting a client that never connected opens no connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        bus_at(f"redis://127.0.0.1:{listener.getsockname()[1]}").disconnect()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_lost_script_is_loaded_again(bus: Bus, client: Any) -> None:
    """If Redis has lost the script through a restart or SCRIPT FLUSH, it is loaded again."""
    bus.commit(commit(10, 11, "a"))
    client.script_flush()
    assert bus.commit(commit(11, 12, "b")).checkpoint == Position(0, 12)


# The heartbeat, and a cluster


def test_a_heartbeat(bus: Bus, client: Any) -> None:
    """A heartbeat lasts 30 seconds longer than a poll."""
    assert not bus.alive()
    bus.beat()
    assert bus.alive()
    assert 50 < client.ttl(bus.alive_key) <= 55


@pytest.mark.parametrize("clustered", [False, True])
def test_no_request_uses_a_replaced_connection(clustered: bool, full_commit: Pending) -> None:
    """No request uses a connection that the client has silently replaced.

    The server behind the new one may have lost writes, which must be committed again first.
    """
    with contextlib.ExitStack() as opened:
        nodes = opened.enter_context(cluster(1)) if clustered else [opened.enter_context(Server())]
        client = opened.enter_context(nodes[0].client())
        bus = bus_at(nodes[0].url)
        bus.read([], Position(0, 10))
        bus.is_connected = True
        client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(ConnectionReplaced):
            bus.commit(full_commit)
        assert not bus.is_connected
        assert stream(client) == ""
        assert bus.read(["a"]) == (Position(0, 10), {"a"})
        bus.is_connected = True
        assert recorded(bus.commit(full_commit)) == "!ab!"
        for request in (lambda: bus.read([]), lambda: bus.names([5]), lambda: bus.cache_names({5: Name("Anna")})):
            bus.is_connected = True
            client.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(ConnectionReplaced):
                request()
            assert not bus.is_connected
            bus.read([])


def test_a_cluster(full_commit: Pending) -> None:
    """All keys of a bus are in one slot, so the same commit runs on a cluster."""
    with cluster(3) as nodes:
        bus = bus_at(nodes[1].url)
        bus.read([], Position(0, 10))
        assert recorded(bus.commit(full_commit)) == "!ab!"
        assert bus.read(["a", "c"]) == (Position(0, 12), {"c"})
        assert isinstance(bus.client, redis.RedisCluster)
        bus.beat()
        assert bus.alive()
