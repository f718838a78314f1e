"""Redis clients for every kind of address: a server, a socket, a node of a cluster, or the sentinels of a master."""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import unquote

from redis import Redis, RedisCluster, RedisError, Sentinel, TimeoutError
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import NoPermissionError, RedisClusterException
from redis.retry import Retry

from ..errors import RedisFatalError, RedisTimeout, RedisUnavailable

# Options of redis-py that an address must not have: they cannot be given as text, or they change how replies are read.
NOT_OPTIONS = r"retry|command_packer|event_dispatcher|redis_connect_func|socket_type|\w+_options|encoding\w*|decode\w*"
CLEAN = rf"(?!.*%00)(?!.*[?&](?:(?:{NOT_OPTIONS})=|\w+timeout=-))(?=[^\0-\x20#]*\Z)"
USER, QUERY = "(?:[^/?]*@)?", r"(?:\?.*)?"
SERVER = re.compile(rf"{CLEAN}(?:rediss?://{USER}[^/?,@]*(?:/\d*)?|unix://{USER}/[^?]+){QUERY}")
SENTINELS = re.compile(rf"\A{CLEAN}(rediss?)\+sentinel://({USER})([^/?@]+)/([^/?]+)/?(\d*)({QUERY})\Z")
FORMS = "redis://user:password@host:6379/0, unix:///run/redis.sock or redis+sentinel://host1:26379,host2:26379/name/0"

ACL_RULES = "give the user of REDIS_URL the ACL rules of docs/operations.md"
# Patterns for the name of redis-py's exception class and Redis's answer. The class alone is not enough, because errors
# inside a script, or from an old server, have no class of their own.
FATAL = {
    r"Authentication|\w+ (WRONGPASS|NOAUTH)": "Redis refuses the user or the password: fix REDIS_URL",
    r"NoPermission|.*(NOPERM|ACL failure|can't run this command)": f"Redis refuses a permission: {ACL_RULES}",
    r"\w+ WRONGTYPE": "Redis: a key of the bus is of another type; choose another BUS or delete the key",
    ".*(DB index is out|SELECT is not allowed)": "Redis does not have the database of REDIS_URL: choose another number",
    "Unicode": "No host can have the name in REDIS_URL: correct it",  # the resolver cannot encode it
}
REASONS = {  # what an exception class means, if its name does not say it plainly
    "gaierror": "host not found",
    "ConnectionRefusedError": "connection refused",
    "MasterNotFoundError": "sentinels do not answer, or do not know this master",
}

TIMEOUT = 5  # seconds to connect, and seconds for each answer
# redis-py must not retry, because the loop does.
OPTIONS = {"protocol": 2, "decode_responses": True, "encoding_errors": "replace", "retry": Retry(NoBackoff(), 0)}


def connect(url: str, on_connect: Callable[[], object]) -> Redis | RedisCluster:
    """Return a client for this address; raise redis-py's exception if Redis does not answer.

    `on_connect` is called at each new connection of the client, the first of which is made before this function
    returns. Options in the address override ours. If the address names sentinels, they are queried for their master
    before each new connection.
    """
    options = OPTIONS | {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}

    def connected(connection: Any) -> None:
        connection.driver_info = connection.lib_name = connection.lib_version = None  # each would cost a round trip
        connection.on_connect()  # a redis_connect_func takes the place of this call
        on_connect()

    client: Any = make_client(url, options | {"redis_connect_func": connected})
    clustered = None
    with suppress(NoPermissionError):  # our ACL rules allow INFO; a server that forbids it is treated as a single one
        clustered = client.info("cluster").get("cluster_enabled")
    if clustered:
        client.cluster("SLOTS")  # if it is refused, RedisCluster hides why
        # A cluster's client calls connection.on_connect() itself.
        options |= {"redis_connect_func": lambda connection: on_connect(), "dynamic_startup_nodes": False}
        client = RedisCluster.from_url(url, **options)
        client.nodes_manager.startup_nodes = Nodes(client.nodes_manager)
    return client  # type: ignore[no-any-return]


class Nodes(dict[str, Any]):
    """The nodes that redis-py queries for the cluster's layout: the one in the address, and a random known one.

    By itself redis-py queries either the node in the address or the known nodes. But the former may be gone, and the
    latter may all have come back with new addresses. Only two are queried, as each silent one takes a whole timeout.
    """

    def __init__(self, manager: Any) -> None:
        super().__init__(manager.startup_nodes)
        self.manager = manager

    def values(self) -> Any:
        """Return both nodes; the known one is chosen anew each time."""
        return [*super().values(), random.choice([*self.manager.nodes_cache.values()])]


def make_client(url: str, options: dict[str, Any]) -> Any:
    """Return a client that has not connected yet; raise ValueError if the address is of none of the FORMS."""
    if SERVER.fullmatch(url):
        return Redis.from_url(url, **options)
    [(scheme, user, hosts, name, db, query)] = SENTINELS.findall(url)
    options = options | parse_url(f"redis://{user}master/{db}{query}") | {"ssl": scheme == "rediss"}
    login = {key: options.pop(f"sentinel_{key}", None) for key in ("username", "password")}
    shared = {key: value for key, value in options.items() if key.startswith("ssl") or key == "retry"}
    parts: list[Any] = [parse_url(f"redis://{host}") for host in hosts.split(",")]
    addresses = [(part["host"], part.get("port", 26379)) for part in parts]
    # They are queried one after another, and all may be silent.
    shared |= dict.fromkeys(("socket_timeout", "socket_connect_timeout"), TIMEOUT / len(addresses))
    return Sentinel(addresses, sentinel_kwargs=shared | login).master_for(unquote(name), **options)


def check(url: str) -> str:
    """Return the address if it can be used; otherwise raise ValueError with a sentence that does not quote it."""
    try:
        make_client(url, {}).connection_pool.make_connection()
    except Exception:  # redis-py raises many kinds of errors for unknown options
        raise ValueError(f"must be an address like {FORMS} (its form, a port or an option is wrong)") from None
    return url


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn redis-py's errors into RedisUnavailable, RedisTimeout or RedisFatalError, without address or password."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError, UnicodeError) as error:
        answer = str(error).rpartition(" caused error: ")[2]  # a pipeline puts the command before the answer
        for pattern, sentence in FATAL.items():
            if re.match(pattern, f"{type(error).__name__} {answer}", re.DOTALL):
                raise RedisFatalError(sentence) from None
        kind = RedisTimeout if isinstance(error, TimeoutError) else RedisUnavailable
        raise kind(f"Redis is unavailable ({reason(error, answer)})") from None


def reason(error: Exception, answer: str) -> str:
    """Return why Redis is unavailable: the code of its answer, otherwise the error's class.

    The text of the error is not used, because it may hold an address.
    """
    code = re.match(r"[A-Z]{4,}(?= |$)|unknown command .\w+.|max number of clients \w+", answer)  # not "TTL exhausted"
    name = type(error.__context__ if isinstance(error.__context__, OSError) else error).__name__
    return code[0] if code else REASONS.get(name, name)
