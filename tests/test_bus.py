"""The bus: the commit as one step, the cache, and what redis-py's errors mean."""

import json
from typing import Any

import pytest
import redis
from fakeredis import FakeStrictRedis
from redis import exceptions

from fetcher.bus import Bus, Entries, Letter, understood
from fetcher.errors import Away, Fatal
from fetcher.names import Name
from tests.servers import Server, cluster

TS, SEEN, DEAD = "{events}:ts:7", "{events}:seen:7", "{events}:dead-letter"


def bus_on(client: Any, **more: Any) -> Bus:
    bus = Bus("redis://nowhere", "events", 7, **{"stream_maxlen": 100, "names_ttl": 600, "alive_ttl": 55} | more)
    bus.client = client
    return bus


@pytest.fixture
def client() -> FakeStrictRedis:
    return FakeStrictRedis(decode_responses=True, encoding_errors="fetcher.replace")


@pytest.fixture
def bus(client: FakeStrictRedis) -> Bus:
    bus = bus_on(client)
    assert bus.checkpoint("10") == "10"
    return bus


def events(*ids: str, letters: tuple[Letter, ...] = (), names: dict[int, Name] | None = None) -> Entries:
    return Entries([(id, "message", f"json {id}") for id in ids], list(letters), names or {})


def stream(client: Any) -> list[str]:
    return [entry["event"] for _, entry in client.xrange("events")]


def test_the_checkpoint_is_made_once(bus: Bus, client: FakeStrictRedis) -> None:
    """Only the first start sets it; every other one reads it back."""
    assert bus.checkpoint("99") == "10"
    assert client.get(TS) == "10"


def test_a_commit_moves_everything_in_one_step(bus: Bus, client: FakeStrictRedis) -> None:
    """Stream, dead letters, seen, checkpoint, names and channels."""
    live = client.pubsub()
    live.psubscribe("events:*")
    live.get_message()
    letter = Letter("x", {"update": "{}", "error": "why"})
    assert (
        bus.commit("10", "13", events("a", "b", letters=(letter,), names={5: Name("Ann", "Ann"), -3: Name()})) == "13"
    )
    assert stream(client) == ["json a", "json b"]
    assert [entry for _, entry in client.xrange(DEAD)] == [{"update": "{}", "error": "why"}]
    assert client.zrange(SEEN, 0, -1) == ["a", "b", "x"]
    assert client.get(TS) == "13"
    assert bus.names([5, -3, 8]) == {5: Name("Ann", "Ann"), -3: Name()}
    assert 590 < client.ttl("{events}:name:5") <= 600
    assert 50 < client.ttl("{events}:name:-3") <= 60
    heard = [(item["channel"], item["data"]) for item in iter(live.get_message, None)]
    assert heard == [("events:message", "json a"), ("events:message", "json b")]


def test_a_commit_from_another_ts_changes_nothing(bus: Bus, client: FakeStrictRedis) -> None:
    """It answers the ts that is stored."""
    before = client.keys()
    assert bus.commit("9", "12", events("a", names={5: Name("Ann")})) == "10"
    assert client.keys() == before


def test_a_commit_finds_no_checkpoint(bus: Bus, client: FakeStrictRedis) -> None:
    """It is refused; one that expects none makes it."""
    client.delete(TS)
    assert bus.commit("10", "12", events("a")) == ""
    assert not client.exists("events", TS)
    assert bus.commit("", "10", Entries([], [Letter("", {"since": "10"})], {})) == "10"
    assert client.get(TS) == "10"
    assert client.xlen(DEAD) == 1
    assert not client.exists(SEEN)


def test_what_was_seen_goes_out_once(bus: Bus, client: FakeStrictRedis) -> None:
    """In one batch, in two, and dead letters too."""
    letter = Letter("x", {"error": "why"})
    bus.commit("10", "12", events("a", "a", letters=(letter, letter)))
    bus.commit("12", "15", events("b", "a", "x", letters=(letter, Letter("b", {"error": "why"}))))
    assert stream(client) == ["json a", "json b"]
    assert client.xlen(DEAD) == 1


def test_seen_keeps_the_latest(bus: Bus, client: FakeStrictRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many, and a whole batch more."""
    monkeypatch.setattr("fetcher.bus.SEEN", 3)
    bus.commit("10", "11", events(*"abcdefgh"))
    assert client.zrange(SEEN, 0, -1) == [*"abcdefgh"]
    bus.commit("11", "12", events("i"))
    assert client.zrange(SEEN, 0, -1) == [*"fghi"]
    bus.commit("12", "13", events("f"))
    assert stream(client)[-1] == "json i"


def test_half_a_surrogate_pair_is_replaced() -> None:
    """No UTF-8 can carry it."""
    with Server() as server, server.client() as client:
        bus = Bus(server.url, "events", 7, 100, 600, 55)
        bus.checkpoint("10")
        bus.commit("10", "11", Entries([("\udc00", "message", "x\ud83dyя")], [], {5: Name("\ud83d")}))
        assert stream(client) == ["x\ufffdyя"]
        assert client.zrange(SEEN, 0, -1) == ["\ufffd"]


def test_the_stream_is_trimmed() -> None:
    """About stream_maxlen entries are kept, by a real server's reckoning."""
    with Server() as server, server.client() as client:
        bus = bus_on(client, stream_maxlen=1)
        bus.checkpoint("10")
        bus.commit("10", "11", events(*map(str, range(1000))))
        assert client.xlen("events") < 300
        assert stream(client)[-1] == "json 999"


def test_names_that_are_no_names_are_asked_for_again(bus: Bus, client: FakeStrictRedis) -> None:
    """Whatever somebody else puts there."""
    client.set("{events}:name:1", '["a"]')
    for value in ("no json", "5", "[1, 2, 3, 4, 5]", "[1], [2]"):
        client.set("{events}:name:2", value)
        assert bus.names([1, 2, 3]) == {}
    client.set("{events}:name:2", "")
    assert bus.names([1, 2, 3]) == {1: Name("a")}


def test_without_a_cache(client: FakeStrictRedis) -> None:
    """NAMES_TTL=0 keeps no name and asks for none."""
    bus = bus_on(client, names_ttl=0)
    bus.checkpoint("10")
    bus.commit("10", "11", events("a", names={5: Name("Ann")}))
    assert bus.names([5]) == {}
    assert not client.keys("*name*")


def test_a_heartbeat(bus: Bus, client: FakeStrictRedis) -> None:
    """It lives as long as it should."""
    assert not bus.alive()
    bus.beat()
    assert bus.alive()
    assert 50 < client.ttl(bus.alive_key) <= 55


@pytest.mark.parametrize("key", [TS, SEEN, "events", DEAD])
def test_a_key_of_another_type(key: str) -> None:
    """It is told before anything is written."""
    with Server() as server, server.client() as client:
        bus = bus_on(client)
        bus.checkpoint("10")
        client.delete(key)
        client.rpush(key, "x")
        with pytest.raises(Fatal, match="another type"):
            bus.commit("10", "11", events("a", letters=(Letter("x", {"error": "why"}),)))
        assert client.keys() == [key] if key == TS else set(client.keys()) == {key, TS}


def test_a_checkpoint_that_is_none(bus: Bus, client: FakeStrictRedis) -> None:
    """Somebody has written there: the operator must say what is to be done."""
    client.set(TS, "yesterday")
    with pytest.raises(Fatal, match="delete this key"):
        bus.checkpoint("10")
    with pytest.raises(Fatal, match="delete this key"):
        bus.commit("10", "11", events("a"))


@pytest.mark.parametrize(
    ("error", "meaning", "said"),
    [
        (exceptions.AuthenticationError("invalid username-password pair"), Fatal, "refuses the user or the password"),
        (exceptions.ResponseError("WRONGPASS invalid"), Fatal, "refuses the user or the password"),
        (exceptions.NoPermissionError("this user has no permissions"), Fatal, "permission"),
        (exceptions.ResponseError("ACL failure in script: secret"), Fatal, "permission"),
        (exceptions.ResponseError("WRONGTYPE events is a list"), Fatal, "another type"),
        (exceptions.ConnectionError("Error 111 connecting to secret:6379"), Away, r"\(ConnectionError\)"),
        (exceptions.BusyLoadingError("loading"), Away, r"\(BusyLoadingError\)"),
        (exceptions.ResponseError("MISCONF errors writing"), Away, r"\(MISCONF\)"),
        (exceptions.ResponseError("secret"), Away, r"\(ResponseError\)"),
        (exceptions.RedisClusterException("secret"), Away, r"\(RedisClusterException\)"),
        (TimeoutError("secret"), Away, r"\(TimeoutError\)"),
    ],
)
def test_errors(error: Exception, meaning: type[Exception], said: str) -> None:
    """Each becomes a sentence without the library's text."""
    with pytest.raises(meaning, match=said) as told, understood():
        raise error
    assert "secret" not in str(told.value)
    assert told.value.__suppress_context__


def test_the_client_is_a_clusters_where_one_answers() -> None:
    """INFO tells; who may not ask has none."""
    with Server(acl=["user shy on >x ~* &* +@all -info"]) as server:
        shy = f"redis://shy:x@127.0.0.1:{server.port}/0"
        for url in (server.url, shy):
            assert type(Bus(url, "events", 7, 1, 1, 1).client) is redis.Redis
    with cluster(3) as nodes:
        bus = Bus(nodes[1].url, "events", 7, 100, 600, 55)
        assert isinstance(bus.client, redis.RedisCluster)
        bus.checkpoint("10")
        assert bus.commit("10", "11", events("a", names={5: Name("Ann")})) == "11"
        assert bus.names([5, 6]) == {5: Name("Ann")}
        assert json.loads(bus.client.get("{events}:name:5")) == ["Ann", "", "", ""]


def test_a_checkpoint_that_is_no_text() -> None:
    """Nor are bytes that no UTF-8 knows a traceback."""
    with Server() as server, server.client() as client:
        client.set(TS, b"\xff1")
        with pytest.raises(Fatal, match="delete this key"):
            Bus(server.url, "events", 7, 100, 600, 55).checkpoint("10")
