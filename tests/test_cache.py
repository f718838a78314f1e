"""The cache of names beside the bus, on a real server."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fetcher.bus.bus import Bus
from fetcher.bus.cache import NameCache
from fetcher.core.ports import Name
from fetcher.errors import RedisFatalError, RedisUnavailable
from tests.servers import Server, address, cluster


def cache_at(url: str, ttl: int = 600) -> NameCache:
    """Make a cache whose bus is connected."""
    bus = Bus(url, "events", 7, 100, 55)
    bus.read([])
    bus.is_connected = True
    return NameCache(bus, ttl)


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
def cache(server: Server, client: Any) -> NameCache:
    return cache_at(server.url)


def test_names_are_cached(cache: NameCache, server: Server, client: Any) -> None:
    """For as long as they should be; an empty one, which VK may know soon, for a minute."""
    cache.cache_names({5: Name("Аня", "Аня"), -3: Name()})
    assert cache.names([5, -3, 8]) == {5: Name("Аня", "Аня"), -3: Name()}
    assert 590 < client.ttl("{events}:name:5") <= 600
    assert 50 < client.ttl("{events}:name:-3") <= 60
    cache_at(server.url, ttl=5).cache_names({6: Name()})
    assert 0 < client.ttl("{events}:name:6") <= 5


def test_half_a_surrogate_pair(cache: NameCache, client: Any) -> None:
    """No UTF-8 can carry it in a name either."""
    cache.cache_names({5: Name("\ud83d")})
    assert cache.names([5]) == {5: Name("\ufffd")}


@pytest.mark.parametrize("value", ["no json", "5", "[1, 2, 3, 4, 5]", "[1], [2]"])
def test_names_that_are_no_names(cache: NameCache, client: Any, value: str) -> None:
    """Whatever somebody else puts there, VK is asked, and its answer replaces it."""
    client.mset({"{events}:name:1": '["a"]', "{events}:name:2": value})
    assert cache.names([1, 2, 3]) == {}
    cache.cache_names({2: Name("b")})
    assert cache.names([1, 2, 3]) == {1: Name("a"), 2: Name("b")}


def test_a_name_of_nothing(cache: NameCache, client: Any) -> None:
    """Empty text is no name, and harms no other."""
    client.mset({"{events}:name:1": '["a"]', "{events}:name:2": ""})
    assert cache.names([1, 2]) == {1: Name("a")}


def is_asked(cache: NameCache, client: Any) -> bool:
    """Return whether the cache asks Redis for a name that is there, or writes another."""
    client.set("{events}:name:5", json.dumps(["Ann", "", "", ""]))
    found = cache.names([5])
    cache.cache_names({6: Name("Bob")})
    return bool(found) or bool(client.exists("{events}:name:6"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda cache: None, True),
        (lambda cache: setattr(cache, "ttl", 0), False),
        (lambda cache: cache.bus.disconnected(), False),
    ],
    ids=["usual", "NAMES_TTL=0", "not connected"],
)
def test_when_there_is_no_cache(
    cache: NameCache, client: Any, change: Callable[[NameCache], None], expected: bool
) -> None:
    """With NAMES_TTL=0; and while the bus is not connected, for nothing may delay the first request after an outage."""
    change(cache)
    assert is_asked(cache, client) is expected


def test_nobody_costs_nothing(cache: NameCache, server: Server) -> None:
    """Redis is not asked for no names."""
    server.pause()
    try:
        assert cache.names([]) == {}
        cache.cache_names({})
    finally:
        server.resume()


def test_redis_fails() -> None:
    """Errors are those of the bus."""
    with Server(acl=["user limited on >x ~* &* +@all -mget"]) as limited:
        cache = cache_at(address(limited.port, "x", "limited"))
        with pytest.raises(RedisFatalError, match="permission"):
            cache.names([5])
        limited.stop()
        with pytest.raises(RedisUnavailable):
            cache.cache_names({5: Name("Ann")})


def test_a_cluster() -> None:
    """Its keys are in the slot of the bus."""
    with cluster(3) as nodes:
        cache = cache_at(nodes[1].url)
        cache.cache_names({5: Name("Ann"), 6: Name("Bob")})
        assert cache.names([5, 6, 7]) == {5: Name("Ann"), 6: Name("Bob")}
