"""The bus: the commit as one step, the cache, and what redis-py's errors mean."""

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import redis
from fakeredis import FakeServer, FakeStrictRedis
from redis import exceptions

from fetcher.bus.bus import Bus, translate_errors
from fetcher.core.backlog import DEDUP_WINDOW
from fetcher.core.batch import Commit, DeadLetter, Entry
from fetcher.core.names import Name
from fetcher.errors import FatalError, RedisTimeout, RedisUnavailable
from tests.servers import Proxy, Server, address, cluster, wait_until

TS, SEEN, DEAD, STREAM = "{events}:ts:7", "{events}:seen:7", "{events}:dead-letter", "events"
LETTER = DeadLetter("x", {"update": "{}", "error": "why"})


def bus_at(url: str, **more: Any) -> Bus:
    usual: dict[str, Any] = {"bus": "events", "group": 7, "stream_maxlen": 100, "names_ttl": 600, "alive_ttl": 55}
    return Bus(url, **usual | more)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a fakeredis in the place of every server, and return a client of it."""
    one = FakeServer()

    def connect(url: str, on_connect: Callable[[], None], **options: Any) -> Any:
        on_connect()
        return FakeStrictRedis(server=one, decode_responses=True, encoding_errors="replace")

    monkeypatch.setattr("fetcher.bus.bus.connect", connect)
    return FakeStrictRedis(server=one, decode_responses=True)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake(monkeypatch)


@pytest.fixture
def bus(client: Any) -> Bus:
    bus = bus_at("redis://nowhere")
    assert bus.checkpoint("10") == "10"
    return bus


def commit(since: Any, until: Any, *ids: str, kind: Any = "batch", letters: Any = (), keep: int = 100) -> Commit:
    """Make a commit that publishes these ids; it completes what is pending, unless it keeps nothing."""
    entries = [Entry(id, "message", f"json {id}".encode()) for id in ids]
    return Commit(kind, str(since), str(until), [*entries, *letters], int(keep > 0), keep, 0)


def marked(commit: Commit, id: str) -> Commit:
    """Let a commit begin with the last entry of the part before, without its text."""
    return commit._replace(entries=[Entry(id, "message", b""), *commit.entries])


def stream(client: Any) -> str:
    return "".join(str(entry["event"]).removeprefix("json ") for _, entry in client.xrange(STREAM))


def dead_letters(client: Any) -> list[dict[str, str]]:
    return [entry for _, entry in client.xrange(DEAD)]


def seen(client: Any) -> list[str]:
    return list(client.zrange(SEEN, 0, -1))


# The checkpoint


def test_the_checkpoint_is_made_once(bus: Bus, client: Any) -> None:
    """Only the first start sets it; every other one reads it back, and who knows one only asks."""
    assert bus.checkpoint("99") == "10"
    assert bus.checkpoint() == "10"
    assert client.get(TS) == "10"
    client.delete(TS)
    assert bus.checkpoint() == ""
    assert not client.exists(TS)


def test_a_checkpoint_that_is_none(bus: Bus, client: Any) -> None:
    """Somebody has written there: the operator must say what is to be done."""
    for value in ("yesterday", "-5", "1.5", "٣"):
        client.set(TS, value)
        with pytest.raises(FatalError, match="delete this key"):
            bus.checkpoint("10")
    client.set(TS, "yesterday")
    with pytest.raises(FatalError, match="delete this key"):
        bus.commit(commit(10, 11, "a", kind="gap"))


def test_a_checkpoint_that_is_no_text(server: Server) -> None:
    """Nor are bytes that no UTF-8 knows a traceback."""
    with server.client() as client:
        client.flushall()
        client.set(TS, b"\xff1")
        with pytest.raises(FatalError, match="delete this key"):
            bus_at(server.url).checkpoint("10")


# The commit


class Row(NamedTuple):
    """What is committed to a bus whose checkpoint is 10, with "s" in seen, and what is there afterwards."""

    commit: Commit
    answer: str
    stream: str = ""
    letters: int = 0
    stored: str | None = "10"


ROWS = {
    "any kind, no checkpoint": Row(commit(10, 11, "a"), "", stored=None),
    "a gap, no checkpoint": Row(commit(10, 11, kind="gap", letters=[LETTER]), "", stored=None),
    "late, no checkpoint": Row(commit(10, 11, "a", kind="late"), "", stored=None),
    "restore, no checkpoint": Row(commit(9, 9, kind="restore", letters=[LETTER]), "9", letters=1, stored="9"),
    "restore, another was first": Row(commit(9, 9, kind="restore", letters=[LETTER]), "10"),
    "a batch begins after the checkpoint": Row(commit(11, 12, "a", letters=[LETTER]), "10"),
    "so much after that text compares wrong": Row(commit(9999, 10000, "a"), "10"),
    "a batch begins at the checkpoint": Row(commit(10, 12, "a", "s", "b"), "12", "ab", stored="12"),
    "a batch begins before the checkpoint": Row(commit(8, 12, "a", "s", "b"), "12", "ab", stored="12"),
    "a batch ends at the checkpoint": Row(commit(8, 10, "a", "s"), "10", "a"),
    "a batch ends before the checkpoint": Row(commit(8, 9, "a", "s"), "10", "a"),
    "the checkpoint is compared as a number": Row(commit(9, 100, "a"), "100", "a", stored="100"),
    "a batch without events": Row(commit(10, 12), "12", stored="12"),
    "a batch of dead letters": Row(commit(10, 12, letters=[LETTER, LETTER]), "12", letters=1, stored="12"),
    "an id twice in one batch": Row(commit(10, 12, "a", "a"), "12", "a", stored="12"),
    "a dead letter that was published": Row(
        commit(10, 12, letters=[DeadLetter("s", {"error": "why"})]), "12", stored="12"
    ),
    "dead letters without id": Row(
        commit(10, 12, letters=[DeadLetter("", {"error": "why"})] * 2), "12", letters=2, stored="12"
    ),
    "a part of a batch": Row(commit(10, 12, "a", "s", keep=0), "10", "a"),
    "a part that begins after the checkpoint": Row(commit(11, 12, "a", keep=0), "10"),
    "a further part": Row(marked(commit(10, 12, "a", keep=0), "s"), "10", "a"),
    "the last part": Row(marked(commit(10, 12, "a"), "s"), "12", "a", stored="12"),
    "a further part that begins after the checkpoint": Row(marked(commit(11, 12, "a", keep=0), "s"), "10"),
    "a repeat": Row(commit(8, 12, "a", "s", kind="repeat"), "12", "a", stored="12"),
    "a repeat begins after the checkpoint": Row(commit(11, 12, "a", kind="repeat"), "10"),
    "late, after the checkpoint": Row(commit(90, 95, "a", "s", kind="late", letters=[LETTER]), "10", "a", 1),
    "late, at the checkpoint": Row(commit(10, 95, "a", kind="late"), "10", "a"),
    "a gap at the checkpoint": Row(commit(10, 20, kind="gap", letters=[LETTER]), "20", letters=1, stored="20"),
    "a gap backwards": Row(commit(10, 3, kind="gap", letters=[LETTER]), "3", letters=1, stored="3"),
    "a gap before the checkpoint": Row(commit(9, 20, kind="gap", letters=[LETTER]), "10"),
    "a gap after the checkpoint": Row(commit(11, 20, kind="gap", letters=[LETTER]), "10"),
}


@pytest.mark.parametrize("real", [False, True], ids=["fakeredis", "server"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_table_of_the_theory(row: Row, real: bool, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """`seen` decides what goes out, the checkpoint where VK is asked: each row of backlog.py's table, and more."""
    with server.client() if real else fake(monkeypatch) as client:
        client.flushall()
        bus = bus_at(server.url)
        client.zadd(SEEN, {"s": 1})
        if row.stored is not None and row.answer:
            client.set(TS, "10")
        if row.commit.kind == "restore" and row.letters:
            client.delete(TS)
        before = seen(client)
        assert bus.commit(row.commit) == row.answer
        assert stream(client) == row.stream
        assert len(dead_letters(client)) == row.letters
        assert client.get(TS) == row.stored
        if not row.stream and not row.letters:
            assert seen(client) == before


def test_a_commit_moves_everything_in_one_step(bus: Bus, client: Any) -> None:
    """Stream, dead letters, seen, checkpoint and channels, each in VK's order."""
    live = client.pubsub()
    live.psubscribe("events:*")
    live.get_message()
    batch = Commit(
        "batch",
        "10",
        "13",
        [Entry("a", "message", b"json a"), LETTER, Entry("b", "command", "json я".encode())],
        1,
        100,
        0,
    )
    assert bus.commit(batch) == "13"
    assert [entry for _, entry in client.xrange(STREAM)] == [{"event": "json a"}, {"event": "json я"}]
    assert dead_letters(client) == [LETTER.fields]
    assert set(seen(client)) == {"a", "b", "x"}
    heard = [(item["channel"], item["data"]) for item in iter(live.get_message, None)]
    assert heard == [("events:message", "json a"), ("events:command", "json я")]


def test_what_was_seen_goes_out_once(bus: Bus, client: Any) -> None:
    """In one batch, in two, again after a failover, and dead letters too."""
    bus.commit(commit(10, 12, "a", "b", letters=(LETTER, LETTER)))
    bus.commit(commit(12, 15, "c", "a", "x", letters=(LETTER, DeadLetter("b", {"error": "why"}))))
    bus.commit(commit(10, 12, "a", "b", kind="repeat"))
    bus.commit(commit(90, 95, "c", "d", kind="late"))
    assert stream(client) == "abcd"
    assert dead_letters(client) == [LETTER.fields]


@pytest.mark.parametrize("kind", ["batch", "repeat", "late"])
def test_the_part_before_is_lost(server: Server, kind: str) -> None:
    """A failover took it away: nothing is written, and the fetcher begins with the first part again."""
    with server.client() as client:
        client.flushall()
        bus = bus_at(server.url)
        bus.checkpoint("10")
        client.zadd(SEEN, {"other": 1})
        before = contents(server)
        for keep in (0, 100):
            with pytest.raises(RedisUnavailable, match="LOST"):
                bus.commit(marked(commit(10, 12, "a", kind=kind, keep=keep), "s"))
            assert contents(server) == before


def test_dead_letters_that_hold_the_same(bus: Bus, client: Any) -> None:
    """Without an id they are known by what they hold: each counts where nobody has offered the batch before."""
    same = [DeadLetter("sha256:5", {"error": "why"})] * 2
    for _ in range(2):
        bus.commit(commit(10, 12, letters=same))
        assert len(dead_letters(client)) == 2
    bus.commit(commit(8, 12, letters=same, kind="repeat"))
    assert len(dead_letters(client)) == 2
    bus.commit(commit(12, 13, letters=same[:1]))
    assert len(dead_letters(client)) == 3
    bus.commit(commit(12, 14, letters=same[:1]))
    assert len(dead_letters(client)) == 3


@pytest.mark.parametrize(
    ("since", "until", "answer", "stored"),
    [
        (10**25, 10**25 + 1, 10**25 + 1, 10**25 + 1),
        (10**25 + 1, 10**25 + 2, 10**25, 10**25),
        (10**24, 10**25 - 1, 10**25, 10**25),
    ],
)
def test_a_ts_longer_than_a_double(bus: Bus, client: Any, since: int, until: int, answer: int, stored: int) -> None:
    """It is compared digit by digit: two neighbours are one double."""
    client.set(TS, 10**25)
    assert bus.commit(commit(since, until, "a")) == str(answer)
    assert client.get(TS) == str(stored)
    assert stream(client) == ("" if since > 10**25 else "a")


def test_half_a_surrogate_pair_is_replaced(server: Server) -> None:
    """No UTF-8 can carry it: not in an id, a type, a dead letter or a name."""
    with server.client() as client:
        client.flushall()
        bus = bus_at(server.url)
        bus.checkpoint("10")
        letter = DeadLetter("\ud83d", {"error": "\udfff"})
        bus.commit(Commit("batch", "10", "11", [Entry("\udc00", "t\ud83d", b"x"), letter], 1, 100, 0))
        bus.cache_names({5: Name("\ud83d")})
        assert stream(client) == "x"
        assert seen(client) == ["\ufffd"]
        assert dead_letters(client) == [], "by its id it is known now"
        assert bus.names([5]) == {5: Name("\ud83d")}


def test_the_stream_is_trimmed(server: Server) -> None:
    """About stream_maxlen entries are kept, by a real server's reckoning, and so many dead letters as they should."""
    with server.client() as client:
        client.flushall()
        bus = bus_at(server.url, stream_maxlen=1)
        bus.checkpoint("10")
        bus.commit(commit(10, 11, *map(str, range(1000)), letters=[DeadLetter("", {"error": "e"})] * 1000))
        assert client.xlen(STREAM) < 300
        assert stream(client).endswith("998999")
        assert client.xlen(DEAD) == 1000


# What the bus remembers


def test_seen_keeps_the_latest(server: Server) -> None:
    """As many as the commit says, and a few hundred more; a part of a batch lets it forget none."""
    with server.client() as client:
        client.flushall()
        bus = bus_at(server.url)
        bus.checkpoint("0")
        for first in range(0, 1000, 10):
            bus.commit(commit(first, first + 10, *map(str, range(first, first + 10)), keep=50))
            kept = seen(client)
            assert kept == [str(number) for number in range(first + 10 - len(kept), first + 10)]
            assert min(50, first + 10) <= len(kept) <= 50 + 256 + 10
        bus.commit(commit(1000, 2000, *map(str, range(1000, 2000)), keep=0))
        assert len(seen(client)) == len(kept) + 1000
        bus.commit(commit(1000, 2000, *map(str, range(1000, 2256)), keep=50))
        assert seen(client) == [str(number) for number in range(2206, 2256)]


def test_thirty_thousand_ids_are_kept(server: Server) -> None:
    """What a fetcher may hold and more: nothing of it goes out twice, from the first to the last."""
    with server.client() as client:
        client.flushall()
        bus = bus_at(server.url, stream_maxlen=10**6)
        bus.checkpoint("0")
        keep = DEDUP_WINDOW
        assert keep == 30_000
        all_ids = [str(number) for number in range(keep + 500)]
        for first in range(0, len(all_ids), 5000):
            bus.commit(commit(first, first + 5000, *all_ids[first : first + 5000], keep=keep))
        assert keep <= client.zcard(SEEN) < keep + 500
        bus.commit(commit(20_000, 30_500, *all_ids[500:], keep=keep))
        assert client.xlen(STREAM) == len(all_ids)


class Late(NamedTuple):
    until: int  # where the batch ends; the checkpoint stands at 100, and seen, of 8 ids at least, holds so many
    held: int
    kind: str
    events: str
    stream: str
    letters: int


LATE = {
    "not far behind": Late(97, 8, "batch", "ab", "ab", 0),
    "as far as seen may reach": Late(96, 8, "batch", "ab", "", 1),
    "seen has forgotten nothing yet": Late(20, 7, "batch", "ab", "ab", 0),
    "a repeat needs no dead letter": Late(20, 8, "repeat", "ab", "", 0),
    "nothing is left out": Late(20, 8, "batch", "", "", 0),
}


@pytest.mark.parametrize("case", LATE.values(), ids=LATE)
def test_what_may_be_a_repetition(case: Late, bus: Bus, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch so far behind that seen may have forgotten it is not published; a dead letter tells, once."""
    monkeypatch.setattr("fetcher.bus.bus.DEDUP_WINDOW", 8)
    client.set(TS, "100")
    client.zadd(SEEN, {f"old {number}": number for number in range(case.held)})
    for _ in range(1 + case.letters):
        assert bus.commit(commit(10, case.until, *case.events, kind=case.kind)) == "100"
    assert stream(client) == case.stream
    reason = "2 events and 0 dead letters came so late that they may be on the bus already"
    letter = {"since": "10", "until": str(case.until), "error": reason}
    assert dead_letters(client) == [letter] * case.letters
    assert client.get(TS) == "100"


# What is refused leaves nothing behind


def contents(server: Server) -> dict[str, Any]:
    """Dump all keys of a server."""
    with server.client(decode_responses=False) as client:
        return {key: client.dump(key) for key in client.scan_iter()}


def full_commit() -> Commit:
    return commit(10, 12, "a", "b", letters=[LETTER])


@pytest.mark.parametrize("key", [TS, SEEN, STREAM, DEAD])
def test_a_key_of_another_type(server: Server, key: str) -> None:
    """It is told before anything is written."""
    with server.client() as client:
        client.flushall()
        bus = bus_at(server.url)
        bus.checkpoint("10")
        client.delete(key)
        client.rpush(key, "x")
        before = contents(server)
        with pytest.raises(FatalError, match="another type"):
            bus.commit(full_commit())
        assert contents(server) == before


@pytest.mark.parametrize(
    "rule", ["-set", "-zadd", "-zremrangebyrank", "-xadd", "-publish", "resetchannels &other:*", "resetkeys ~other",
             "-type", "-zrevrange"],
)  # fmt: skip
def test_a_permission_is_missing(rule: str) -> None:
    """Whichever it is, nothing is written without it, and one sentence tells the operator."""
    with Server(acl=[f"user limited on >x ~* &* +@all {rule}"]) as server, server.client() as client:
        client.set(TS, "10")
        client.zadd(SEEN, {"one more, and it is trimmed": 255})
        before = contents(server)
        with pytest.raises(FatalError, match="permission"):
            bus_at(address(server.port, "x", "limited")).commit(full_commit())
        assert contents(server) == before


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"maxmemory": 1}, "OutOfMemoryError|OOM"), ({"min_replicas_to_write": 1}, "NOREPLICAS|NoReplicas")],
)
def test_redis_takes_no_writes(setting: dict[str, Any], said: str) -> None:
    """Out of memory, too few replicas: nothing is written, and it passes."""
    with Server() as server, server.client() as client:
        bus = bus_at(server.url)
        bus.checkpoint("10")
        before = contents(server)
        server.config(**setting)
        with pytest.raises(RedisUnavailable, match=said):
            bus.commit(full_commit())
        assert contents(server) == before
        server.config(**dict.fromkeys(setting, 0))
        assert bus.commit(full_commit()) == "12"
        assert stream(client) == "ab"


def test_a_replica_takes_no_writes() -> None:
    """After a failover the address may be that of a replica: it passes."""
    with Server() as primary, Server() as replica:
        bus = bus_at(replica.url)
        bus.checkpoint("10")
        with primary.client() as client:
            client.set(TS, "10")
        replica.replica_of(primary)
        before = contents(replica)
        with pytest.raises(RedisUnavailable, match=r"READONLY|ReadOnly"):
            bus.commit(full_commit())
        assert contents(replica) == before
        replica.replica_of(None)
        assert bus.commit(full_commit()) == "12"


def test_a_password_that_redis_refuses(server: Server) -> None:
    """The sentence holds neither the password nor the address."""
    with (
        Server(password="right") as locked,
        pytest.raises(FatalError, match="refuses the user or the password") as told,
    ):
        bus_at(address(locked.port, "wrong")).checkpoint("10")
    assert "wrong" not in str(told.value)


def test_a_database_that_redis_does_not_have(server: Server) -> None:
    """Only the operator can choose another one."""
    with pytest.raises(FatalError, match="does not have the database"):
        bus_at(server.url.removesuffix("/0") + "/99").checkpoint("10")


# Time-outs and connections


def test_redis_is_too_slow(server: Server) -> None:
    """A time-out is told apart from an outage, for the next commit to be smaller."""
    with server.client() as client:
        client.flushall()
    bus = bus_at(server.url)
    bus.checkpoint("10")
    server.pause()
    try:
        with pytest.raises(RedisTimeout):
            bus.commit(full_commit())
    finally:
        server.resume()
    wait_until(lambda: bus.commit(commit(10, 12, "a")) == "12", what="the answer")


def test_an_outage_is_no_time_out(server: Server) -> None:
    """Refused or cut connections say nothing about the size of a commit."""
    with server.client() as client:
        client.flushall()
    with Proxy(server.port) as proxy:
        bus = bus_at(proxy.url)
        bus.checkpoint("10")
        proxy.down()
        for _ in range(2):
            with pytest.raises(RedisUnavailable) as told:
                bus.commit(full_commit())
            assert not isinstance(told.value, RedisTimeout)


def test_a_commits_time_out_allows_for_its_size(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second, and at least as long as a link of 128 KB/s takes; few different ones, for each has its connection."""
    timeouts: list[float] = []

    def connect(*_: Any, socket_timeout: float, **__: Any) -> Any:
        timeouts.append(socket_timeout)
        return client

    monkeypatch.setattr("fetcher.bus.bus.connect", connect)
    bus = bus_at("redis://nowhere")
    bus.checkpoint("10")
    sizes = [0, 1000, 2**17 - 1, 2**17, 2**18, 2**20, 5 * 2**20]
    needed = []
    for size in sizes * 2:
        bus.commit(commit(10, 11, "a")._replace(size=size))
        needed.append(size / 2**17)
        assert max(timeouts) >= max(1, needed[-1])
        assert max(timeouts) <= max(1, 4 * max(needed))
    assert len(timeouts) == len(set(timeouts)) <= 5


def test_a_new_connection_is_noted(server: Server) -> None:
    """At the start, and whenever one replaces another: Redis may have failed over. The checkpoint is asked then."""
    with server.client() as client:
        client.flushall()
    with Proxy(server.port) as proxy:
        bus = bus_at(proxy.url)
        assert bus.reconnected
        bus.checkpoint("10")
        assert not bus.reconnected
        bus.commit(commit(10, 11, "a"))
        bus.beat()
        assert not bus.reconnected
        bus.commit(commit(11, 12, "b")._replace(size=2**18))
        assert not bus.reconnected, "the first connection of a further client replaces none"
        for large in (0, 2**18):
            proxy.cut()
            with contextlib.suppress(RedisUnavailable):  # redis-py may find out before it sends anything
                bus.commit(commit(12, 13, "c")._replace(size=large))
            bus.commit(commit(12, 13, "c")._replace(size=large))
            assert bus.reconnected
            bus.reconnected = False


def test_the_first_connection_of_a_further_client(server: Server) -> None:
    """It may be the first one to the server after a failover: whether the other one still holds is asked."""
    with server.client() as client:
        client.flushall()
    with Proxy(server.port) as proxy:
        bus = bus_at(proxy.url)
        bus.checkpoint("10")
        proxy.cut()
        refused = False
        try:
            bus.commit(commit(10, 11, "a")._replace(size=2**18))
        except RedisUnavailable:
            refused = True  # redis-py may find out only after it has asked
        assert refused or bus.reconnected


def test_a_script_that_redis_has_forgotten(server: Server) -> None:
    """A restart, or SCRIPT FLUSH: it is loaded again."""
    with server.client() as client:
        client.flushall()
        bus = bus_at(server.url)
        bus.checkpoint("10")
        bus.commit(commit(10, 11, "a"))
        client.script_flush()
        assert bus.commit(commit(11, 12, "b")) == "12"


@pytest.mark.parametrize(
    ("error", "meaning", "said"),
    [
        (exceptions.AuthenticationError("invalid username-password pair"), FatalError, "refuses the user or the pass"),
        (exceptions.ResponseError("WRONGPASS invalid"), FatalError, "refuses the user or the password"),
        (exceptions.AuthenticationError("NOAUTH Authentication required."), FatalError, "refuses the user or the pass"),
        (exceptions.NoPermissionError("this user has no permissions"), FatalError, "permission"),
        (exceptions.ResponseError("ACL failure in script: secret"), FatalError, "permission"),
        (exceptions.ResponseError("WRONGTYPE events is a list"), FatalError, "another type"),
        (exceptions.ResponseError("DB index is out of range"), FatalError, "database"),
        (exceptions.ResponseError("SELECT is not allowed in cluster mode"), FatalError, "database"),
        (exceptions.ConnectionError("Error 111 connecting to secret:6379"), RedisUnavailable, r"\(ConnectionError\)"),
        (exceptions.BusyLoadingError("loading"), RedisUnavailable, r"\(BusyLoadingError\)"),
        (exceptions.ReadOnlyError("secret"), RedisUnavailable, r"\(ReadOnlyError\)"),
        (exceptions.ResponseError("MISCONF errors writing"), RedisUnavailable, r"\(MISCONF\)"),
        (exceptions.ResponseError("BUSY running a script"), RedisUnavailable, r"\(BUSY\)"),
        (exceptions.ResponseError("secret"), RedisUnavailable, r"\(ResponseError\)"),
        (exceptions.RedisClusterException("secret"), RedisUnavailable, r"\(RedisClusterException\)"),
        (exceptions.ClusterDownError("CLUSTERDOWN secret"), RedisUnavailable, r"\(\w+\)"),
        (exceptions.TimeoutError("secret"), RedisTimeout, r"\(TimeoutError\)"),
        (OSError("secret"), RedisUnavailable, r"\(OSError\)"),
    ],
)
def test_errors(error: Exception, meaning: type[Exception], said: str) -> None:
    """Each becomes a sentence without the library's text."""
    with pytest.raises(meaning, match=said) as told, translate_errors():
        raise error
    assert type(told.value) is meaning
    assert "secret" not in str(told.value)
    assert told.value.__suppress_context__


# The cache and the heartbeat


def test_names_are_cached(bus: Bus, client: Any) -> None:
    """For so long as they should; whom VK does not tell for a minute."""
    bus.cache_names({5: Name("Ann", "Ann"), -3: Name()})
    assert bus.names([5, -3, 8]) == {5: Name("Ann", "Ann"), -3: Name()}
    assert 590 < client.ttl("{events}:name:5") <= 600
    assert 50 < client.ttl("{events}:name:-3") <= 60
    short = bus_at("redis://nowhere", names_ttl=5)
    short.cache_names({6: Name()})
    assert 0 < client.ttl("{events}:name:6") <= 5


def test_nobody_costs_nothing(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is not asked for no names."""
    monkeypatch.setattr(bus, "client", partial(pytest.fail, "asked"))
    assert bus.names([]) == {}
    bus.cache_names({})


def test_names_that_are_no_names_are_asked_for_again(bus: Bus, client: Any) -> None:
    """Whatever somebody else puts there."""
    client.set("{events}:name:1", '["a"]')
    for value in ("no json", "5", "[1, 2, 3, 4, 5]", "[1], [2]"):
        client.set("{events}:name:2", value)
        assert bus.names([1, 2, 3]) == {}
    client.set("{events}:name:2", "")
    assert bus.names([1, 2, 3]) == {1: Name("a")}


def test_without_a_cache(client: Any) -> None:
    """NAMES_TTL=0 keeps no name and asks for none."""
    bus = bus_at("redis://nowhere", names_ttl=0)
    bus.cache_names({5: Name("Ann")})
    assert not client.keys("*name*")
    client.set("{events}:name:5", json.dumps(["Ann", "", "", ""]))
    assert bus.names([5]) == {}


def test_a_heartbeat(bus: Bus, client: Any) -> None:
    """It lives as long as it should."""
    assert not bus.alive()
    bus.beat()
    assert bus.alive()
    assert 50 < client.ttl(bus.alive_key) <= 55


def test_a_cluster() -> None:
    """All keys of a bus are in one slot, so the same commit runs there; the cache does, too."""
    with cluster(3) as nodes:
        bus = bus_at(nodes[1].url)
        bus.checkpoint("10")
        assert bus.commit(full_commit()) == "12"
        assert isinstance(bus.client(), redis.RedisCluster)
        bus.cache_names({5: Name("Ann"), 6: Name("Bob")})
        assert bus.names([5, 6, 7]) == {5: Name("Ann"), 6: Name("Bob")}
        bus.beat()
        assert bus.alive()
