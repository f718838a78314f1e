"""Clients for every kind of address, on real servers, clusters and sentinels."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.sentinel
from redis.backoff import NoBackoff
from redis.connection import SSLConnection
from redis.retry import Retry

from fetcher.bus.connection import check, connect, passwords
from tests import HOST, free_port
from tests.sentinels import Watched, sentinels
from tests.servers import Server, cluster, wait_until

OPTIONS: dict[str, Any] = {  # as the fetcher connects
    "decode_responses": True,
    "protocol": 2,
    "socket_timeout": 1.0,
    "socket_connect_timeout": 1.0,
    "retry": Retry(NoBackoff(), 0),
    "single_connection_client": True,
}


def connected(url: str, **more: Any) -> tuple[Any, list[str]]:
    """Return a client, and the list that grows with each new connection."""
    new: list[str] = []
    return connect(url, functools.partial(new.append, "connection"), **OPTIONS | more), new


# --- What an address may be ----------------------------------------------------------------------------------

USABLE = [
    "redis://localhost:6379/0", "redis://", "redis://:secret@[::1]:6379/0", "redis://host?db=3&socket_timeout=2",
    "rediss://user:p%40ss@host:6380/1", "rediss://host?ssl_ca_certs=/run/ca.pem", "unix:///run/redis.sock?db=2",
    "unix://user:secret@/run/redis.sock", "redis://пример.рф:6379", "redis://a_b-c.internal:6379",
    "redis+sentinel://one:26379,two:26379,three/mymaster/0", "redis+sentinel://one/mymaster",
    "redis+sentinel://user:p%40ss@one:1,[::1]:2/mymaster/3?sentinel_username=u&sentinel_password=p&socket_timeout=2",
    "rediss+sentinel://:secret@one,two/mymaster?ssl_ca_certs=/run/ca.pem",
]  # fmt: skip


@pytest.mark.parametrize("url", USABLE)
def test_addresses_that_can_be_used(url: str) -> None:
    """Every kind that the documentation names passes."""
    check(url)


WRONG = [
    ("http://secret@my-host", "the scheme"), ("my-host:6379", "the scheme"), ("", "the scheme"),
    ("REDIS://my-host", "the scheme"), ("unix+sentinel://my-host/mymaster", "the scheme"),
    ("redis://:secret@my-host:port/0", "a port"), ("redis://:secret@my-host:65536/0", "a port"),
    ("redis://:secret@[::1/0", "a port or a host"), ("redis+sentinel://one:port/mymaster", "a port"),
    ("redis://:secret@my..host:6379/0", "a host"), (f"redis://{64 * 'a'}.my-host/0", "a host"),
    ("redis+sentinel://one,my..host/mymaster", "a host"), ("redis://:secret@my host", "a blank"),
    ("redis://:secret@my-host%00", "a control character"), ("redis://one:6379,my-host:6379", "redis\\+sentinel"),
    ("redis://my-host?secret=1", "TypeError"), ("redis://my-host?socket_timeout=secret", "ValueError"),
    ("redis+sentinel://one/mymaster?secret=1", "TypeError"), ("redis+sentinel://one/mymaster?db=secret", "ValueError"),
    ("redis+sentinel://:secret@one,two", "name of their master"), ("redis+sentinel://one//0", "name of their master"),
    ("redis+sentinel://one,,two/mymaster", "sentinels need hosts"), ("redis+sentinel:///mymaster", "need hosts"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "reason"), WRONG)
def test_addresses_that_can_never_be_used(url: str, reason: str) -> None:
    """It is said why, in words that hold nothing of the address."""
    with pytest.raises(ValueError, match=reason) as raised:
        check(url)
    assert "secret" not in str(raised.value)
    assert "my-host" not in str(raised.value)
    assert raised.value.__suppress_context__ or not raised.value.__context__


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("redis://host", []),
        ("redis://user@host", []),
        ("redis://:p%40ss@host", ["p@ss", "p%40ss"]),
        ("redis://user:a:b@c@host", ["a:b@c"]),
        ("unix://:secret@/socket?password=se%20cond", ["secret", "se cond", "se%20cond"]),
        ("redis+sentinel://u:m%23@one,two/m?sentinel_password=s%2F", ["m#", "s/", "m%23", "s%2F"]),
        ("rediss://host?ssl_password=key", ["key"]),
        ("no address", []),
    ],
)
def test_passwords_are_found_in_both_spellings(url: str, hidden: list[str]) -> None:
    """The log hides them as they are and as the address spells them."""
    assert passwords(url) == hidden


# --- Servers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["", "p@ss/w#rd%"])
def test_every_new_connection_is_told(password: str) -> None:
    """The first one, and each that replaces a broken one; user, password and database are set on all of them."""
    with Server(password=password or None) as server:
        client, new = connected(server.url.removesuffix("0") + "2")
        assert client.set("name", "value")
        assert len(new) == 1
        with server.client(db=2) as owner:
            owner.client_kill_filter(_type="normal", skipme=True)
            with contextlib.suppress(redis.ConnectionError):  # redis-py may notice before it asks, or when it asks
                client.get("name")
            assert client.get("name") == owner.get("name") == "value"
        assert len(new) == 2


def test_a_socket_is_an_address() -> None:
    """unix:// does all that redis:// does."""
    with Server() as server:
        path = server.directory / "socket"
        with Server(unixsocket=path) as reached:
            client, new = connected(f"unix://{path}")
            assert client.set("name", "value")
            assert len(new) == 1
            with reached.client() as owner:
                assert owner.get("name") == "value"


def test_nobody_need_be_told() -> None:
    """Without a callback the client is the same."""
    with Server() as server:
        assert connect(server.url, **OPTIONS).ping()


def test_whoever_may_not_ask_for_a_cluster_has_none() -> None:
    """The question may be forbidden by ACL rules: the server is taken as it is."""
    rules = "user limited on >secret ~* resetchannels -@all +get"
    with Server(acl=[rules]) as server:
        client, _ = connected(f"redis://limited:secret@{HOST}:{server.port}")
        assert client.get("name") is None


def test_a_server_that_is_away_is_an_exception() -> None:
    """The caller decides when to try again."""
    with pytest.raises(redis.ConnectionError):
        connect(f"redis://{HOST}:{free_port()}", **OPTIONS)


def test_a_node_of_a_cluster_leads_to_all_of_it() -> None:
    """Keys of every node are served, and each node's new connection is told once."""
    with cluster() as nodes:
        client, new = connected(nodes[0].url)
        assert isinstance(client, redis.RedisCluster)
        keys = ["a", "b", "c", "d", "e", "f"]
        for key in keys:
            client.set(key, key)
        assert [client.get(key) for key in keys] == keys
        told = len(new)
        assert told >= 1 + len(nodes)
        for node in nodes:
            with node.client() as owner:
                owner.client_kill_filter(_type="normal", skipme=True)
        for key in keys:
            wait_until(functools.partial(client.get, key), what="the cluster's answer")
        assert len(new) >= told + len(nodes)
        assert connect(nodes[0].url, **OPTIONS).get("a") == "a"


# --- Sentinels -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """Passwords for servers and sentinels, each their own; the tests leave three sentinels and two servers behind."""
    with sentinels("p@ss", "w#tch") as watched:
        yield watched


SENTINEL = "?sentinel_password=w%23tch"


def test_sentinels_lead_to_the_primary(watched: Watched) -> None:
    """The database of the address is used, and one connection serves many commands."""
    url = watched.url("p%40ss", query=SENTINEL).replace("/0?", "/2?")
    client, new = connected(url)
    client.set("name", "value")
    with watched.primary.client(db=2) as owner:
        assert owner.get("name") == client.get("name") == "value"
    assert len(new) == 1


def follows(server: Server, primary: Server) -> bool:
    """Tell whether it is the primary's replica; if it still takes itself for a primary, make it one."""
    with server.client() as owner:
        if owner.info("replication")["role"] == "master":
            owner.replicaof(HOST, primary.port)  # sooner than the sentinels would see to it
        return bool(owner.info("replication").get("master_link_status") == "up")


@pytest.mark.parametrize("fault", ["kill", "pause", "demote"])
def test_a_failover_is_followed(watched: Watched, fault: str) -> None:
    """The primary dies, hangs, or is told to step down: the next connections are to the new one, and are told."""
    client, new = connected(watched.url("p%40ss", query=SENTINEL))
    client.set("before", fault)
    former = watched.primary
    with former.client() as owner:
        assert owner.wait(1, 5000) == 1  # the replica has it
    if fault == "demote":
        with watched.sentinels[0].client() as sentinel, former.client() as owner:
            wait_until(lambda: sentinel.execute_command("SENTINEL FAILOVER", "mymaster"), 20, "a replica to promote")
            wait_until(lambda: owner.info("replication")["role"] == "slave", 20, "the step down")
    else:
        getattr(former, fault)()
    wait_until(lambda: watched.primary is not former, 30, "the failover")
    wait_until(lambda: client.set("after", fault), 30, "a write")
    assert client.get("before") == fault
    with watched.primary.client() as owner:
        assert owner.get("after") == fault
    assert len(new) >= 2
    if fault == "kill":
        former.start()
    former.resume()
    wait_until(lambda: follows(former, watched.primary), 30, "the replica")
    wait_until(lambda: all(sentinel.knows_everybody() for sentinel in watched.sentinels), 30, "peace")


def test_any_sentinel_will_do(watched: Watched) -> None:
    """The address names all of them; those that are dead are passed over."""
    for sentinel in watched.sentinels[:2]:
        sentinel.kill()
    try:
        client, _ = connected(watched.url("p%40ss", query=SENTINEL))
        wait_until(client.ping, 20, "the answer by the third sentinel's word")
    finally:
        for sentinel in watched.sentinels[:2]:
            sentinel.start()
        wait_until(lambda: all(sentinel.knows_everybody() for sentinel in watched.sentinels), 30, "peace")


@pytest.mark.parametrize(
    ("password", "name", "query", "error"),
    [
        ("wrong", "mymaster", SENTINEL, redis.AuthenticationError),
        ("p%40ss", "nobody", SENTINEL, redis.sentinel.MasterNotFoundError),
        ("p%40ss", "mymaster", "", redis.sentinel.MasterNotFoundError),
    ],
    ids=["password", "name", "sentinels' password"],
)
def test_what_is_wrong_is_an_exception(watched: Watched, password: str, name: str, query: str, error: Any) -> None:
    """The master's password is the operator's to mend; without a master one waits, for there may be one soon."""
    client, _ = connected(watched.url(password, name, query))
    with pytest.raises(error):
        client.ping()


def test_tls_is_for_sentinels_and_master() -> None:
    """rediss+sentinel:// encrypts both, with the address's own certificates."""
    client: Any = connect("rediss+sentinel://one,two/mymaster?ssl_ca_certs=/run/ca.pem", **OPTIONS)
    connection = client.connection_pool.make_connection()
    assert isinstance(connection, SSLConnection)
    assert connection.ca_certs == "/run/ca.pem"
    for sentinel in client.connection_pool.sentinel_manager.sentinels:
        asked = sentinel.connection_pool.make_connection()
        assert isinstance(asked, SSLConnection)
        assert (asked.ca_certs, asked.port, asked.socket_timeout) == ("/run/ca.pem", 26379, 1.0)
