"""Clients of Redis for every kind of address: a server, a socket, a cluster's node, a master that sentinels watch."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import AuthenticationError, ConnectionPool, Redis, RedisCluster, RedisError, ResponseError, TimeoutError
from redis.connection import parse_url
from redis.exceptions import NoPermissionError, RedisClusterException
from redis.sentinel import Sentinel

from ..errors import RedisFatalError, RedisTimeout, RedisUnavailable

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379
DENIED = ("NOPERM", "ACL failure", "can't run this command")  # how a permission is refused inside a script
ADDRESS = re.compile(r"(\w+)(\+sentinel)?://(?:([^/?]*)@)?([^/?]*)/?([^?]*)\??(.*)")


class Address(NamedTuple):
    """The parts of a URL, as they are spelled there."""

    scheme: str  # without "+sentinel"
    sentinel: str
    user: str  # user:password
    hosts: str
    path: str  # of a socket, the number of a database, or a master's name and that number
    query: str

    def sentinels(self) -> list[tuple[str, int]]:
        """Return host and port of each sentinel."""
        parts = [urlsplit(f"//{host}") for host in self.hosts.split(",")]
        return [(unquote(part.hostname or ""), part.port or SENTINEL_PORT) for part in parts]

    def master(self) -> tuple[str, dict[str, Any]]:
        """Return the master's name and the options that this URL gives for it, in redis-py's words."""
        name, _, db = self.path.partition("/")
        options = parse_url(f"{self.scheme}://{self.user}@master/{db}?{self.query}")  # type: ignore[no-untyped-call]
        ssl = {"ssl": True} if options.pop("connection_class", None) else {}
        return unquote(name), {**options, **ssl}


def connect(url: str, on_connect: Callable[[], None] | None = None, **options: Any) -> Redis | RedisCluster:
    """Return a client for this URL; it raises what redis-py raises while there is no answer.

    `on_connect` is called at each new connection of the client, the first one too: also before this function returns.
    The options are redis-py's; those in the URL win. Sentinels are asked for their master before each new connection.
    """

    def connected(connection: Any) -> None:
        connection.on_connect()  # redis-py leaves this to whoever wants to know of new connections
        if on_connect:
            on_connect()

    if _split(url).sentinel:
        return _master(_split(url), options | {"redis_connect_func": connected})
    client: Redis = Redis.from_url(url, **options | {"redis_connect_func": connected})
    try:
        clustered = client.info("cluster").get("cluster_enabled")
    except NoPermissionError:
        clustered = False  # our ACL rules allow the question; who forbids it has no cluster to tell of
    if not clustered:
        return client
    client.close()
    options.pop("single_connection_client", None)
    if on_connect:
        options["redis_connect_func"] = lambda connection: on_connect()  # after redis-py's own part
    return RedisCluster.from_url(url, **options)


def check(url: str) -> None:
    """Raise ValueError for a URL that can never be used; it says why, in words that hold nothing of the URL."""
    address = _split(url)
    if address.scheme + address.sentinel not in SCHEMES:
        raise ValueError(f"the scheme must be one of {', '.join(SCHEMES)}")
    if "," in address.hosts and not address.sentinel:
        raise ValueError("several hosts are for redis+sentinel://")
    try:
        hosts = address.sentinels()
        for host, _ in hosts:
            host.encode("idna")  # as the resolver will do
    except UnicodeError:
        raise ValueError("a host's name is wrong") from None
    except ValueError:
        raise ValueError("a port or a host is wrong") from None
    if "%00" in url or re.search(r"[\0-\x20]", url):
        raise ValueError("there is a blank or a control character in it")
    try:
        if not address.sentinel:
            ConnectionPool.from_url(url).make_connection()
            return
        name, options = address.master()
        Redis(**_without_sentinels_user(options)).connection_pool.make_connection()
    except Exception as error:  # whatever redis-py raises for options that it cannot use
        raise ValueError(type(error).__name__) from None
    if not name or not all(host for host, _ in hosts):
        raise ValueError("sentinels need hosts and the name of their master: host1:26379,host2:26379/mymaster/0")


def passwords(url: str) -> list[str]:
    """Return every password in the URL, as it is and as the URL spells it; it need not be a URL that can be used."""
    address = _split(url)
    spelled = [address.user.partition(":")[2]]
    spelled += [part.partition("=")[2] for part in address.query.split("&") if "password=" in part]
    plain = [unquote(spelled[0]), *(value for name, value in parse_qsl(address.query) if name.endswith("password"))]
    return [password for password in dict.fromkeys(plain + spelled) if password]


def _split(url: str) -> Address:
    found = ADDRESS.fullmatch(url.partition("#")[0])
    return Address(*(part or "" for part in found.groups())) if found else Address("", "", "", "", "", "")


def _master(address: Address, options: dict[str, Any]) -> Redis:
    name, given = address.master()
    options = options | given
    options.pop("single_connection_client", None)  # the pool is what asks the sentinels
    shared = {key: value for key, value in options.items() if key.startswith(("socket_", "ssl")) or key == "retry"}
    user = {key: options[f"sentinel_{key}"] for key in ("username", "password") if f"sentinel_{key}" in options}
    sentinels: Any = Sentinel(address.sentinels(), sentinel_kwargs=shared | user)  # type: ignore[no-untyped-call]
    master: Redis = sentinels.master_for(name, **_without_sentinels_user(options))
    return master


def _without_sentinels_user(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if not key.startswith("sentinel_")}


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raise what redis-py raises as RedisUnavailable or FatalError, in words that hold neither address nor password."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        text, kind = str(error), type(error).__name__
        code = text.partition(" ")[0]
        if isinstance(error, AuthenticationError) or code in ("WRONGPASS", "NOAUTH"):
            raise RedisFatalError("Redis refuses the user or the password: fix REDIS_URL") from None
        if isinstance(error, NoPermissionError) or any(mark in text for mark in DENIED):
            raise RedisFatalError(
                "Redis refuses a permission: give the user of REDIS_URL the ACL rules of docs/operations.md"
            ) from None
        if code == "WRONGTYPE":
            raise RedisFatalError(
                "Redis: a key of the bus is of another type; choose another BUS or delete the key"
            ) from None
        if "DB index is out of range" in text or "SELECT is not allowed" in text:
            raise RedisFatalError("Redis does not have the database of REDIS_URL: choose another number") from None
        said = code if isinstance(error, ResponseError) and re.fullmatch("[A-Z]+", code) else kind
        unavailable = RedisTimeout if isinstance(error, TimeoutError) else RedisUnavailable
        raise unavailable(f"Redis is unavailable ({said})") from None
