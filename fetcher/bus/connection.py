"""Clients of Redis for every kind of address: a server, a socket, a node of a cluster, sentinels and their master."""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import unquote

from redis import Redis, RedisCluster, RedisError, ResponseError, Sentinel, TimeoutError
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import NoPermissionError, RedisClusterException
from redis.retry import Retry

from ..errors import RedisFatalError, RedisTimeout, RedisUnavailable

# Options of redis-py that are no text, or that decide how the bus is read.
NOT_OPTIONS = r"retry|command_packer|event_dispatcher|redis_connect_func|socket_type|\w+_options|encoding\w*|decode\w*"
CLEAN = rf"(?!.*%00)(?!.*[?&](?:(?:{NOT_OPTIONS})=|\w+timeout=-))(?=[^\0-\x20#]*\Z)"
USER, QUERY = "(?:[^/?]*@)?", r"(?:\?.*)?"
SERVER = re.compile(rf"{CLEAN}(?:rediss?://{USER}[^/?,@]*(?:/\d*)?|unix://{USER}/[^?]+){QUERY}")
SENTINELS = re.compile(rf"\A{CLEAN}(rediss?)\+sentinel://({USER})([^/?@]+)/([^/?]+)/?(\d*)({QUERY})\Z")
FORMS = "redis://user:password@host:6379/0, unix:///run/redis.sock or redis+sentinel://host1:26379,host2:26379/name/0"

ACL_RULES = "give the user of REDIS_URL the ACL rules of docs/operations.md"
FATAL = {  # redis-py's class and Redis's answer: an error inside a script or of an old server has no class of its own
    r"Authentication|\w+ (WRONGPASS|NOAUTH)": "Redis refuses the user or the password: fix REDIS_URL",
    r"NoPermission|.*(NOPERM|ACL failure|can't run this command)": f"Redis refuses a permission: {ACL_RULES}",
    r"\w+ WRONGTYPE": "Redis: a key of the bus is of another type; choose another BUS or delete the key",
    ".*(DB index is out|SELECT is not allowed)": "Redis does not have the database of REDIS_URL: choose another number",
}
REASONS = {  # words for the class of an error
    "gaierror": "host not found",
    "ConnectionRefusedError": "connection refused",
    "MasterNotFoundError": "sentinels do not answer, or do not know this master",
}

TIMEOUT = 5  # seconds, to connect and for each answer: the loop alone retries
OPTIONS = {"protocol": 2, "decode_responses": True, "encoding_errors": "replace", "retry": Retry(NoBackoff(), 0)}


def connect(url: str, on_connect: Callable[[], object], patience: int) -> Redis | RedisCluster:
    """Return a client for this address; raise what redis-py raises if Redis does not answer.

    `on_connect` is called at each new connection of the client; the first is made before this function returns. An
    answer may take `patience` times TIMEOUT. Options in the address win over ours. Sentinels are queried for their
    master before each new connection.
    """
    options = OPTIONS | {"socket_timeout": TIMEOUT * patience, "socket_connect_timeout": TIMEOUT}

    def connected(connection: Any) -> None:
        connection.driver_info = connection.lib_name = connection.lib_version = None  # each is one more round trip
        connection.on_connect()  # redis-py leaves this to its caller if there is a redis_connect_func
        on_connect()

    client: Redis | RedisCluster = make_client(url, options | {"redis_connect_func": connected})
    clustered = None
    with suppress(NoPermissionError):  # our ACL rules allow INFO: a server that forbids it is taken for a single one
        clustered = client.info("cluster").get("cluster_enabled")
    if clustered:  # redis-py does its own part of a new connection there
        options |= {"redis_connect_func": lambda connection: on_connect(), "dynamic_startup_nodes": False}
        client = RedisCluster.from_url(url, **options)
        client.nodes_manager.startup_nodes = Nodes(client.nodes_manager)
    return client


class Nodes(dict[str, Any]):
    """Where to look for the cluster: at the node in the address, and at one that was found, another one each time.

    redis-py looks at the one or at the others, but all nodes may come back with new addresses, or the one in the
    address may be gone; and each that is silent takes a whole timeout.
    """

    def __init__(self, manager: Any) -> None:
        super().__init__(manager.startup_nodes)
        self.manager = manager

    def values(self) -> Any:
        """Return both nodes."""
        return [*super().values(), random.choice([*self.manager.nodes_cache.values()])]


def make_client(url: str, options: dict[str, Any]) -> Any:
    """Return a client that has not connected yet; raise ValueError if the address has none of our forms."""
    if SERVER.fullmatch(url):
        return Redis.from_url(url, **options)
    [(scheme, user, hosts, name, db, query)] = SENTINELS.findall(url)
    options = options | parse_url(f"redis://{user}master/{db}{query}") | {"ssl": scheme == "rediss"}
    login = {key: options.pop(f"sentinel_{key}", None) for key in ("username", "password")}
    shared = {key: value for key, value in options.items() if key.startswith(("socket_", "ssl")) or key == "retry"}
    parts: list[Any] = [parse_url(f"redis://{host}") for host in hosts.split(",")]
    addresses = [(part["host"], part.get("port", 26379)) for part in parts]
    for key in shared.keys() & {"socket_timeout", "socket_connect_timeout"}:
        shared[key] /= len(addresses)  # they are queried one after the other, and all may be silent
    return Sentinel(addresses, sentinel_kwargs=shared | login).master_for(unquote(name), **options)


def check(url: str) -> str:
    """Return the address; raise ValueError if it can never be used, with a sentence that does not quote it."""
    try:
        hosts = re.split("[/?]", url.partition("://")[2])[0].rpartition("@")[2]
        for host in re.split("[,:]", hosts):  # urlsplit refuses an IPv6 address that is not the only host
            host.encode("idna")  # as the resolver does
        make_client(url, {}).connection_pool.make_connection()
    except Exception:  # redis-py raises all kinds of errors for options that it does not know
        raise ValueError(f"must be an address like {FORMS} (its form, a host, a port or an option is wrong)") from None
    return url


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raise redis-py's errors as RedisUnavailable, RedisTimeout or RedisFatalError, without address or password."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as failure:
        # Whatever CLUSTER SLOTS is answered, redis-py says "not enabled".
        hidden = failure.__cause__ and failure.__cause__.__context__
        error = hidden if isinstance(hidden, ResponseError) else failure
        answer = str(error).rpartition(" caused error: ")[2]  # a pipeline puts the command before it
        for pattern, sentence in FATAL.items():
            if re.match(pattern, f"{type(error).__name__} {answer}", re.DOTALL):
                raise RedisFatalError(sentence) from None
        kind = RedisTimeout if isinstance(error, TimeoutError) else RedisUnavailable
        raise kind(f"Redis is unavailable ({reason(error, answer)})") from None


def reason(error: Exception, answer: str) -> str:
    """Return why Redis is unavailable: the code of its answer, or the error's class: its text holds addresses."""
    code = re.match(r"[A-Z]{4,}(?= |$)|unknown command .\w+.|max number of clients \w+", answer)  # not "TTL exhausted"
    name = type(error.__context__ if isinstance(error.__context__, OSError) else error).__name__
    return code[0] if code else REASONS.get(name, name)
