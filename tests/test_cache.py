"""The cache of names on the bus: what it holds, for how long, and what waits while the bus is not connected."""

import json

import pytest

from fetcher.bus.bus import Bus
from fetcher.core.history import Name
from tests.servers import Server, bus_at

ANNA, CHAT = Name("Анна Черных", "Анна", "Черных", "anna"), Name("Беседа")
KEY = "{events}:name:"


@pytest.fixture
def bus(server: Server) -> Bus:
    bus = bus_at(server.url)
    bus.client.ping()
    bus.is_connected = True
    return bus


def test_a_name_is_cached_with_its_ttl(bus: Bus, server: Server) -> None:
    """A name is cached as a list of its parts for NAMES_TTL; one that VK does not know, for at most a minute."""
    client = server.client()
    assert bus.names([5, 2_000_000_007]) == {}
    bus.cache_names({5: ANNA, 2_000_000_007: CHAT, 6: Name()})
    assert json.loads(str(client.get(KEY + "5"))) == [*ANNA]
    assert bus.names([5, 6, 7, 2_000_000_007]) == {5: ANNA, 6: Name(), 2_000_000_007: CHAT}
    assert 590 <= client.ttl(KEY + "5") <= 600
    assert 50 <= client.ttl(KEY + "6") <= 60
    bus.names_ttl = 10
    bus.cache_names({6: Name()})
    assert client.ttl(KEY + "6") <= 10


def test_names_wait_until_redis_is_connected(bus: Bus, server: Server) -> None:
    """Names that arrive while the bus is not connected are cached, the latest of each, by the first call after that."""
    client = server.client()
    bus.is_connected = False
    bus.cache_names({5: ANNA, 2_000_000_007: Name("Старая")})
    bus.cache_names({2_000_000_007: CHAT})
    assert bus.names([5]) == {}
    assert not client.keys(KEY + "*")
    bus.is_connected = True
    bus.cache_names({})
    assert bus.names([5, 2_000_000_007]) == {5: ANNA, 2_000_000_007: CHAT}
    bus.is_connected = False
    assert bus.names([5]) == {}, "Redis may be another one"
    bus.is_connected = True
    client.flushall()
    bus.cache_names({})
    assert not client.keys(KEY + "*"), "once"


def test_no_cache(bus: Bus, server: Server) -> None:
    """With NAMES_TTL=0 nothing is cached, and nothing waits."""
    bus.names_ttl = 0
    for bus.is_connected in (True, False, True):
        bus.cache_names({5: ANNA})
        assert bus.names([5]) == {}
    assert not server.client().keys("*")
    bus.names_ttl = 600
    bus.cache_names({5: ANNA})
    bus.names_ttl = 0
    assert bus.names([5]) == {}


@pytest.mark.parametrize("text", ["no JSON", "5", "[1, 2, 3, 4, 5]", '{"a": 1}'])
def test_a_foreign_value_is_replaced(bus: Bus, server: Server, text: str) -> None:
    """A value that something else has written is not an error, and VK's answer replaces it."""
    server.client().set(KEY + "5", text)
    assert bus.names([5]).keys() <= {5}
    bus.cache_names({5: ANNA})
    assert bus.names([5]) == {5: ANNA}
