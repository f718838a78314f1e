"""The bus in Redis: its names, the checkpoint, the commit of a batch, the cache of names and the heartbeat."""

import codecs
import json
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from redis import AuthenticationError, Redis, RedisCluster, RedisError, ResponseError
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisClusterException
from redis.retry import Retry

from .errors import Away, Fatal
from .names import Name

TIMEOUT = 1.0  # seconds, to connect and for each answer: the loop alone retries
DEAD_LETTERS = 10_000  # about so many are kept
SEEN = 10_000  # so many event_ids, and a batch's, are remembered
UNKNOWN_TTL = 60  # seconds: whom VK does not tell today it may tell soon
DENIED = ("NOPERM", "ACL failure", "can't run this command")  # how a permission is refused inside a script
COMMIT = Path(__file__).with_name("commit.lua").read_text(encoding="utf-8")


def replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace what no UTF-8 can carry, as half a surrogate pair, by U+FFFD. https://docs.python.org/3/library/codecs.html"""
    if isinstance(error, UnicodeEncodeError):
        return "\ufffd".encode() * (error.end - error.start), error.end
    return codecs.replace_errors(error)


codecs.register_error("fetcher.replace", replaced)


def channel(bus: str, event_type: str) -> str:
    """Return the channel of one type of event."""
    return f"{bus}:{event_type}"


class Letter(NamedTuple):
    """A dead letter: `id` is remembered in seen ("" is not), `fields` are the entry."""

    id: str
    fields: dict[str, str]


class Entries(NamedTuple):
    """What a batch puts on the bus: (event_id, event_type, JSON) of each event, dead letters, names for the cache."""

    events: list[tuple[str, str, str]]
    letters: list[Letter]
    names: dict[int, Name]


class Bus:
    """One community's part of the bus. Methods raise Away while Redis is, and Fatal for what the operator must mend."""

    def __init__(self, url: str, bus: str, group: int, stream_maxlen: int, names_ttl: int, alive_ttl: int) -> None:
        """Connect to nothing yet; `names_ttl` and `alive_ttl` are in seconds."""
        own = f"{{{bus}}}"  # the hash tag keeps all keys in the stream's slot of a cluster
        self.url, self.bus, self.stream_maxlen = url, bus, stream_maxlen
        self.names_ttl, self.alive_ttl = names_ttl, alive_ttl
        self.checkpoint_key = f"{own}:ts:{group}"
        self.seen = f"{own}:seen:{group}"
        self.dead_letters = f"{own}:dead-letter"
        self.name_keys = f"{own}:name:"
        self.alive_key = f"{own}:alive:{group}:{socket.gethostname()}"

    @cached_property
    def client(self) -> Redis | RedisCluster:
        """The client of this address: a cluster's if a node of one answers there."""
        options: dict[str, Any] = {
            "decode_responses": True,
            "encoding_errors": "fetcher.replace",
            "protocol": 2,
            "socket_timeout": TIMEOUT,
            "socket_connect_timeout": TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
        }
        client = Redis.from_url(self.url, single_connection_client=True, **options)
        try:
            clustered = client.info("cluster").get("cluster_enabled")
        except NoPermissionError:
            clustered = False  # our ACL rules allow the question; who forbids it has no cluster to tell of
        return RedisCluster.from_url(self.url, **options) if clustered else client

    @cached_property
    def script(self) -> Callable[..., str]:
        """The commit, loaded into the server when it does not know it."""
        return self.client.register_script(COMMIT)

    def checkpoint(self, first: str) -> str:
        """Return the ts up to which everything is on the bus; where none is stored yet, `first` becomes it."""
        with understood():
            self.client.set(self.checkpoint_key, first, nx=True)
            stored = self.client.get(self.checkpoint_key)
        return self.checked(str(stored or ""))

    def commit(self, expected: str, until: str, entries: Entries) -> str:
        """Put the entries on the bus and move the checkpoint from `expected` to `until`, all or nothing.

        Return the ts that is stored afterwards: any other than `until` means that somebody else moved it and nothing
        was done. https://redis.io/docs/latest/develop/programmability/eval-intro/
        """
        names = entries.names if self.names_ttl else {}
        arguments: list[Any] = [expected, until, self.stream_maxlen, DEAD_LETTERS]
        arguments += [SEEN + len(entries.events) + len(entries.letters), len(entries.events)]
        for id, event_type, text in entries.events:
            arguments += [id, channel(self.bus, event_type), text]
        arguments.append(len(entries.letters))
        for letter in entries.letters:
            arguments += [
                letter.id,
                2 * len(letter.fields),
                *(part for field in letter.fields.items() for part in field),
            ]
        for name in names.values():
            arguments += [json.dumps(name), self.names_ttl if any(name) else min(UNKNOWN_TTL, self.names_ttl)]
        keys = [self.checkpoint_key, self.seen, self.bus, self.dead_letters, *(f"{self.name_keys}{id}" for id in names)]
        with understood():
            return self.checked(self.script(keys, arguments))

    def checked(self, stored: str) -> str:
        """Return the stored checkpoint ("" for none); raise Fatal if it is no ts of VK's."""
        if stored and not (stored.isascii() and stored.isdigit()):
            raise Fatal(
                f"Redis: {self.checkpoint_key} holds no ts of VK's; delete this key to begin with VK's newest events"
            )
        return stored

    def names(self, ids: Iterable[int]) -> dict[int, Name]:
        """Return the cached names of those ids that the cache has."""
        ids = list(ids)
        if not ids or not self.names_ttl:
            return {}
        with understood():
            cached: Any = self.client.mget([f"{self.name_keys}{id}" for id in ids])
        try:
            found = json.loads(f"[{','.join(text or 'null' for text in cached)}]")  # all at once: it is the faster way
            return {id: Name(*map(str, name)) for id, name in zip(ids, found, strict=True) if name}
        except (ValueError, TypeError):
            return {}  # put there by somebody else: VK's answer will replace it

    def beat(self) -> None:
        """Set the heartbeat of this host's fetcher."""
        with understood():
            self.client.set(self.alive_key, int(time.time()), ex=self.alive_ttl)

    def alive(self) -> bool:
        """Tell whether this host's fetcher of this community has polled VK lately."""
        with understood():
            return bool(self.client.exists(self.alive_key))


@contextmanager
def understood() -> Iterator[None]:
    """Raise what redis-py raises as Away or Fatal, in words that hold neither address nor password."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        text, kind = str(error), type(error).__name__
        code = text.partition(" ")[0]
        if isinstance(error, AuthenticationError) or code in ("WRONGPASS", "NOAUTH"):
            raise Fatal("Redis refuses the user or the password: mend REDIS_URL") from None
        if isinstance(error, NoPermissionError) or any(mark in text for mark in DENIED):
            raise Fatal(
                "Redis refuses a permission: give the user of REDIS_URL the ACL rules of docs/operations.md"
            ) from None
        if code == "WRONGTYPE":
            raise Fatal("Redis: a key of the bus is of another type; choose another BUS or delete the key") from None
        said = code if isinstance(error, ResponseError) and re.fullmatch("[A-Z]+", code) else kind
        raise Away(f"Redis is away or refuses to write ({said})") from None
