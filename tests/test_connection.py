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

from fetcher.bus import connection
from fetcher.bus.connection import check, connect, make_client, redis_errors
from fetcher.errors import RedisFatalError, RedisTimeout, RedisUnavailable
from tests import HOST, free_port
from tests.sentinels import Sentinel, Watched, sentinels
from tests.servers import Proxy, Server, cluster, wait_until

OPTIONS: dict[str, Any] = {  # as the fetcher connects
    "decode_responses": True,
    "protocol": 2,
    "socket_timeout": 1.0,
    "socket_connect_timeout": 1.0,
    "retry": Retry(NoBackoff(), 0),
}


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TIMEOUT", 1.0)


def connected(url: str) -> tuple[Any, list[str]]:
    """Return a client, and the list that grows with each new connection."""
    new: list[str] = []
    return connect(url, functools.partial(new.append, "connection")), new


# --- What an address may be ----------------------------------------------------------------------------------

USABLE = [
    "redis://localhost:6379/0", "redis://", "redis://:secret@[::1]:6379/0", "redis://host?db=3&socket_timeout=2",
    "redis://host?retry_on_timeout=1&max_connections=9&client_name=retry",
    "rediss://user:p%40ss@host:6380/1", "rediss://host?ssl_ca_certs=/run/ca.pem", "unix:///run/redis.sock?db=2",
    "unix://user:secret@/run/redis.sock", "redis://пример.рф:6379", "redis://a_b-c.internal:6379",
    "redis+sentinel://one:26379,two:26379,three/mymaster/0", "redis+sentinel://one/mymaster",
    "redis+sentinel://user:p%40ss@one:1,[::1]:2/mymaster/3?sentinel_username=u&sentinel_password=p&socket_timeout=2",
    "rediss+sentinel://:secret@one,two/mymaster?ssl_ca_certs=/run/ca.pem",
]  # fmt: skip


@pytest.mark.parametrize("url", USABLE)
def test_addresses_that_can_be_used(url: str) -> None:
    """Every kind of address that the documentation names is accepted, unchanged."""
    assert check(url) == url


WRONG = [
    "http://secret@my-host", "my-host:6379", "", "REDIS://my-host", "unix+sentinel://my-host/mymaster", "unix://my-host",
    "redis://:secret@my host", "redis://:secret@my-host\x1b", "redis://:secret@my-host%00", "redis://my-host/0#secret",
    "redis://my-host\n", "redis://my-host/secret", "redis://my-host/1/2", "redis://my-host/-1",
    "redis://one:6379,my-host:6379", "redis+sentinel://my-host/mymaster/secret", "redis+sentinel://:secret@one,two",
    "redis+sentinel://one//0", "redis+sentinel://one,,two/mymaster", "redis+sentinel:///mymaster",
    "redis+sentinel://:26379/mymaster", "redis+sentinel://one,:26379/mymaster", "redis+sentinel://user@/mymaster",
    # A port or an option
    "redis://:secret@my-host:port/0", "redis://:secret@my-host:65536/0", "redis://:secret@[::1/0",
    "redis+sentinel://one:port/mymaster", "redis://my-host?secret=1", "redis://my-host?socket_timeout=secret",
    "redis://my-host?db=secret", "redis+sentinel://one/mymaster?secret=1", "redis+sentinel://one/mymaster?db=secret",
    "redis+sentinel://one/mymaster?sentinel_secret=1", "redis://my-host?retry=3", "redis://my-host?encoding=cp1251",
    "redis://my-host/0?encoding_errors=none", "redis://my-host?db=0&decode_responses=no", "redis://my-host?db=1&socket_type=1",
    "redis://my-host?socket_timeout=-1", "redis+sentinel://one/mymaster?socket_connect_timeout=-1",
]  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_addresses_that_can_never_be_used(url: str) -> None:
    """The sentence shows what an address looks like, and quotes nothing from the wrong one."""
    with pytest.raises(ValueError, match="must be") as raised:
        check(url)
    assert str(raised.value) == (
        "must be an address like redis://user:password@host:6379/0, unix:///run/redis.sock "
        "or redis+sentinel://host1:26379,host2:26379/name/0 (its form, a port or an option is wrong)"
    )
    assert raised.value.__suppress_context__


# --- Servers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["", "p@ss/w#rd%"])
def test_every_new_connection_is_reported(password: str) -> None:
    """The first connection is reported, and each that replaces a broken one; all have user, password and database."""
    with Server(password=password or None) as server:
        client, new = connected(server.url.removesuffix("0") + "2")
        assert client.set("name", "value")
        assert len(new) == 1
        with server.client(db=2) as owner:
            owner.client_kill_filter(_type="normal", skipme=True)
            with contextlib.suppress(
                redis.ConnectionError
            ):  # redis-py may notice before it sends the command, or when it does
                client.get("name")
            assert client.get("name") == owner.get("name") == "value"
        assert len(new) == 2


def test_a_socket_is_an_address() -> None:
    """A unix:// address works like a redis:// address."""
    with Server() as server:
        path = server.directory / "socket"
        with Server(unixsocket=path) as reached:
            client, new = connected(f"unix://{path}")
            assert client.set("name", "value")
            assert len(new) == 1
            with reached.client() as owner:
                assert owner.get("name") == "value"


def test_connecting_costs_no_extra_round_trip(server: Server) -> None:
    """The library's name is not sent, and every wait for an answer has our limit, unless the address sets another."""
    for url, timeout in ((server.url, 1.0), (f"{server.url}?socket_timeout=2", 2)):
        client, _ = connected(url)
        assert client.ping()
        assert client.get_connection_kwargs()["socket_timeout"] == timeout
        assert client.get_connection_kwargs()["socket_connect_timeout"] == 1.0
    assert "cmdstat_client|setinfo" not in client.info("commandstats")


def test_without_permission_for_info_there_is_no_cluster() -> None:
    """If the ACL rules forbid INFO, the server is treated as a single server."""
    rules = "user limited on >secret ~* resetchannels -@all +get"
    with Server(acl=[rules]) as server:
        client, _ = connected(f"redis://limited:secret@{HOST}:{server.port}")
        assert client.get("name") is None


def test_one_node_leads_to_the_whole_cluster() -> None:
    """Keys of every node are served, and each node's new connection is reported once."""
    with cluster() as nodes:
        client, new = connected(nodes[0].url)
        assert isinstance(client, redis.RedisCluster)
        keys = ["a", "b", "c", "d", "e", "f"]
        for key in keys:
            client.set(key, key)
        assert [client.get(key) for key in keys] == keys
        reported = len(new)
        assert reported >= 1 + len(nodes)
        for node in nodes:
            with node.client() as owner:
                owner.client_kill_filter(_type="normal", skipme=True)
        for key in keys:
            wait_until(functools.partial(client.get, key), what="the cluster's answer")
        assert len(new) >= reported + len(nodes)
        assert connected(nodes[0].url)[0].get("a") == "a"


@contextlib.contextmanager
def address_of_a_node() -> Iterator[tuple[Proxy, list[Server]]]:
    """Yield an address, and the nodes of a cluster; it leads to the first node until a test changes that."""
    with cluster(2) as nodes, Proxy(nodes[0].port) as address:
        yield address, nodes


def test_a_cluster_may_come_back_with_other_addresses() -> None:
    """If all known nodes are gone, the client uses the address again: it may lead to new nodes, as in Kubernetes."""
    with address_of_a_node() as (address, nodes):
        client, _ = connected(address.url)
        wait_until(lambda: client.set("a", "old"), what="the cluster's answer")
        for node in nodes:
            node.kill()
        with pytest.raises(RedisUnavailable), redis_errors():
            client.get("a")
        with cluster(2) as others:
            address.target_port = others[0].port
            wait_until(lambda: client.set("a", "new"), what="the new cluster's answer")
            with redis.RedisCluster(HOST, others[1].port, decode_responses=True) as other:
                assert other.get("a") == "new"


def test_the_node_in_the_address_may_be_gone_for_good() -> None:
    """The client remembers the nodes to which the address has led, even after another failure."""
    with address_of_a_node() as (address, nodes):
        client, _ = connected(address.url)
        wait_until(lambda: client.set("a", "b"), what="the cluster's answer")
        address.down()
        for _ in range(2):
            for node in nodes:
                node.kill()
            with pytest.raises(RedisUnavailable), redis_errors():
                client.get("a")
            for node in nodes:
                node.start()
            wait_until(lambda: client.set("a", "b"), what="the cluster's answer")


def test_only_a_few_silent_nodes_are_tried() -> None:
    """Few silent nodes are tried: each takes a whole timeout, and VK is polled only between two requests to Redis."""
    with cluster(5) as nodes, contextlib.ExitStack() as stack:
        client, _ = connected(nodes[0].url)
        wait_until(lambda: client.set("a", "b"), what="the cluster's answer")
        owners = [stack.enter_context(node.client()) for node in nodes]

        def received() -> int:
            """Return how many connections the nodes have received; they accept waiting ones before a second answer."""
            return sum(owner.ping() and owner.info("stats")["total_connections_received"] for owner in owners)

        for _ in range(3):
            before = received()
            for node in nodes:
                node.pause()
            with pytest.raises(RedisUnavailable), redis_errors():
                client.get("a")
            for node in nodes:
                node.resume()
            assert received() - before <= 3  # the key's own node, and two nodes that are asked for the cluster
        wait_until(lambda: client.get("a") == "b", what="the cluster's answer")


# --- Sentinels -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """Servers and sentinels with different passwords; each test must leave three sentinels and two servers running."""
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
    """Return whether the server is the primary's replica; if it still acts as a primary, make it a replica."""
    with server.client() as owner:
        if owner.info("replication")["role"] == "master":
            owner.replicaof(HOST, primary.port)  # sooner than the sentinels would do it
        return bool(owner.info("replication").get("master_link_status") == "up")


@pytest.mark.long
@pytest.mark.parametrize("fault", ["kill", "pause", "demote"])
def test_a_failover_is_followed(watched: Watched, fault: str) -> None:
    """If the primary dies, hangs or is demoted, the next connections lead to the new one, and are reported."""
    client, new = connected(watched.url("p%40ss", query=SENTINEL))
    client.set("before", fault)
    former = watched.primary
    with former.client() as owner:
        assert owner.wait(1, 5000) == 1  # the replica has it
    if fault == "demote":
        with watched.sentinels[0].client() as sentinel, former.client() as owner:
            wait_until(lambda: sentinel.execute_command("SENTINEL FAILOVER", "mymaster"), what="a replica to promote")
            wait_until(lambda: owner.info("replication")["role"] == "slave", what="the step down")
    else:
        getattr(former, fault)()
    wait_until(lambda: watched.primary is not former, what="the failover")
    wait_until(lambda: client.set("after", fault), what="a write")
    assert client.get("before") == fault
    with watched.primary.client() as owner:
        assert owner.get("after") == fault
    assert len(new) >= 2
    if fault == "kill":
        former.start()
    former.resume()
    wait_until(lambda: follows(former, watched.primary), what="the replica")
    wait_until(lambda: all(sentinel.has_found_all() for sentinel in watched.sentinels), what="the sentinels")


def test_any_sentinel_will_do(watched: Watched) -> None:
    """One living sentinel of those in the address is enough; dead ones are skipped."""
    for sentinel in watched.sentinels[:2]:
        sentinel.kill()
    try:
        client, _ = connected(watched.url("p%40ss", query=SENTINEL))
        wait_until(client.ping, what="the answer by the third sentinel's word")
    finally:
        for sentinel in watched.sentinels[:2]:
            sentinel.start()
        wait_until(lambda: all(sentinel.has_found_all() for sentinel in watched.sentinels), what="the sentinels")


def test_tls_is_for_sentinels_and_master() -> None:
    """rediss+sentinel:// encrypts both, with the address's own certificates."""
    client = make_client("rediss+sentinel://one,two/mymaster?ssl_ca_certs=/run/ca.pem", OPTIONS)
    connection = client.connection_pool.make_connection()
    assert isinstance(connection, SSLConnection)
    assert connection.ca_certs == "/run/ca.pem"
    for sentinel in client.connection_pool.sentinel_manager.sentinels:
        connection = sentinel.connection_pool.make_connection()
        assert isinstance(connection, SSLConnection)
        assert (connection.ca_certs, connection.port) == ("/run/ca.pem", 26379)


def test_sentinels_share_one_timeout() -> None:
    """Sentinels share one timeout: they are queried in turn, and VK is polled only between two requests to Redis."""
    client = make_client("redis+sentinel://one,two,three,four/mymaster", OPTIONS)
    for sentinel in client.connection_pool.sentinel_manager.sentinels:
        connection = sentinel.connection_pool.make_connection()
        assert (connection.socket_timeout, connection.socket_connect_timeout) == (0.25, 0.25)
    connection = client.connection_pool.make_connection()
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (1.0, 1.0)


# --- Why Redis does not answer -------------------------------------------------------------------------------


NO_MASTER = "sentinels do not answer, or do not know this master"


def sentence(url: str, kind: type[Exception] = RedisUnavailable, *command: str) -> str:
    """Connect and execute a command, and return the sentence of the error, which must be of this kind."""

    def ask() -> None:
        with redis_errors():
            client, _ = connected(url)
            client.execute_command(*command or ["PING"])

    with pytest.raises(kind) as raised:
        ask()
    assert type(raised.value) is kind
    assert raised.value.__suppress_context__
    return str(raised.value)


def test_each_connection_failure_has_its_own_wording() -> None:
    """A refused connection, an unknown host, a missing socket and a silent server have their own words."""
    port = free_port()
    assert sentence(f"redis://:secret@{HOST}:{port}") == "Redis is unavailable (connection refused)"
    assert sentence("redis://:secret@nowhere.invalid") == "Redis is unavailable (host not found)"
    assert sentence("unix:///nowhere/socket") == "Redis is unavailable (FileNotFoundError)"
    assert sentence(f"redis+sentinel://{HOST}:{port}/mymaster") == f"Redis is unavailable ({NO_MASTER})"
    with Server() as server:
        server.pause()
        assert sentence(server.url, RedisTimeout) == "Redis is unavailable (TimeoutError)"


@pytest.mark.parametrize(
    "url",
    ["redis://:secret@my..host:6379/0", f"redis://{64 * 'a'}.my-host/0", "redis+sentinel://my..host,two/mymaster"],
)
def test_a_host_that_cannot_exist_is_fatal(url: str) -> None:
    """A name that no resolver can encode is reported in one sentence, which does not quote it."""
    assert sentence(url, RedisFatalError) == "No host can have the name in REDIS_URL: correct it"


def test_a_server_is_not_a_sentinel() -> None:
    """If the address of the sentinels leads to a server, the error names the command that it does not know."""
    with Server() as server:
        url = f"redis+sentinel://{HOST}:{server.port}/mymaster"
        assert sentence(url) == "Redis is unavailable (unknown command 'SENTINEL')"


def test_sentinels_without_this_master() -> None:
    """Sentinels that do not know the master are treated like sentinels that do not answer."""
    with Server() as server, Sentinel(server) as sentinel:
        url = f"redis+sentinel://{HOST}:{sentinel.port}"
        assert sentence(f"{url}/nobody") == f"Redis is unavailable ({NO_MASTER})"


def test_sentinels_with_a_password(watched: Watched) -> None:
    """A wrong password for the master is fatal; one for sentinels is transient, as only one of them may refuse it."""
    refused = "Redis refuses the user or the password: fix REDIS_URL"
    assert sentence(watched.url("wrong", query=SENTINEL), RedisFatalError) == refused
    assert sentence(watched.url("p%40ss")) == f"Redis is unavailable ({NO_MASTER})"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["EVAL", "return redis.error_reply('MISCONF Errors writing to disk')", "0"], "(MISCONF)"),
        (["EVAL", "return redis.error_reply('NOREPLICAS Not enough')", "0"], "(NOREPLICAS)"),
        (["EVAL", "return redis.error_reply('OOM command not allowed')", "0"], "(OutOfMemoryError)"),
        (["EVAL", "return redis.error_reply('Something odd')", "0"], "(ResponseError)"),
    ],
)
def test_a_transient_error_is_named(command: list[str], said: str) -> None:
    """A transient error is named by the code in Redis's answer, or by redis-py's class if there is no code."""
    with Server() as server:
        assert sentence(server.url, RedisUnavailable, *command) == f"Redis is unavailable {said}"


def test_a_word_in_capitals_is_not_an_error_code() -> None:
    """A word in capitals at the start of redis-py's own message is not taken for a code from Redis."""
    with pytest.raises(RedisUnavailable, match=r"^Redis is unavailable \(ClusterError\)$"), redis_errors():
        raise redis.exceptions.ClusterError("TTL exhausted.")


def test_a_redis_with_too_many_clients_says_so() -> None:
    """The error names the limit of clients: an operator must not look for the cause in the network, which is fine."""
    with Server() as server, server.client() as owner:
        owner.config_set("maxclients", 1)
        expected = "Redis is unavailable (max number of clients reached)"
        # Redis may reset the connection instead.
        wait_until(lambda: sentence(server.url, RedisUnavailable, "PING") == expected)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["AUTH", "nobody", "secret"], "Redis refuses the user or the password"),
        (["EVAL", "return redis.error_reply('NOAUTH Authentication required.')", "0"], "Redis refuses the user"),
        (["LPUSH", "stream", "x"], "a key of the bus is of another type"),
        (["SELECT", "99"], "does not have the database"),
        (["EVAL", "return redis.call('LPOP', 'stream')", "0"], "Redis refuses a permission"),
        (["LPOP", "stream"], "Redis refuses a permission"),
    ],
)
def test_errors_that_only_the_operator_can_fix_are_fatal(command: list[str], expected: str) -> None:
    """What only the operator can fix is fatal, whether a command or a script reports it."""
    rules = "user limited on >secret ~* &* +@all -lpop"
    with Server(acl=[rules]) as server, server.client() as owner:
        owner.xadd("stream", {"a": "b"})
        assert expected in sentence(f"redis://limited:secret@{HOST}:{server.port}", RedisFatalError, *command)


def test_a_refused_cluster_slots_is_fatal() -> None:
    """A refused CLUSTER SLOTS is fatal, although redis-py hides it behind an error that is usually transient."""
    with cluster(1) as (node,), node.client() as owner:
        owner.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "-cluster|slots")
        error = sentence(f"redis://limited:secret@{HOST}:{node.port}", RedisFatalError, "PING")
        assert "Redis refuses a permission" in error


@pytest.mark.parametrize(("key", "kind"), [("text", RedisFatalError), ("other", RedisUnavailable)])
def test_a_pipeline_quotes_its_commands(key: str, kind: type[Exception]) -> None:
    """A pipeline's error quotes the command, whose words (for example in a name) are not taken for Redis's answer."""

    def ask(owner: Any) -> None:
        with redis_errors(), owner.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("XADD", key, "1-1", "NOPERM", "WRONGTYPE")
            pipeline.execute_command("XADD", key, "1-1", "NOPERM", "WRONGTYPE")
            pipeline.execute()

    with Server() as server, server.client() as owner:
        owner.set("text", "x")
        with pytest.raises(kind) as raised:
            ask(owner)
        assert type(raised.value) is kind
