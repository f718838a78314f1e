"""The other end of the bus: live events from the channels, or durable ones through a consumer group.

`Live` and `Durable` say what to ask Redis and what its answers mean, without I/O. Two drivers do what they say: `drive`
at the foot of this file, and its twin in asyncio.py.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from redis import Redis, RedisCluster, RedisError, exceptions

from .core.backoff import backoff
from .events import Event, channel

BLOCK = 1.0  # seconds to wait for something new before looking for what other consumers left
SILENCE = 10.0  # seconds without a reply after which a connection is in doubt
READ_AHEAD_TIME = 0.1  # seconds: so many entries are read at once as were handled in the last tenth of a second…
MAX_READ_AHEAD = 100  # …but no more than these
MAX_DEAD_LETTERS = 10_000  # about so many are kept for each group
BACKOFF_BASE, BACKOFF_CAP = 0.1, 2.0  # seconds between two tries while Redis is unavailable

# A connection is our own, with the client's address and credentials. So commands can be written without waiting for
# their replies, a reply has one form whatever the client decodes, and the client's pool is not used. We retry.
OWN_OPTIONS = {"protocol": 2, "decode_responses": False, "health_check_interval": 0}
LEFT_OUT = ("retry", "maint_notifications")  # how the options begin that are not taken from the client

ERRORS = (RedisError, exceptions.RedisClusterException, OSError)
TRANSIENT = (
    exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ClusterError, exceptions.RedisClusterException,
    exceptions.AskError, exceptions.OutOfMemoryError, exceptions.ReadOnlyError, OSError,
)  # fmt: skip
TRANSIENT_CODES = ("BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED")  # these come as plain ResponseErrors

log = logging.getLogger("fetcher")

Command = tuple[str | bytes | int, ...]


class Exchange(NamedTuple):
    """Send the commands, then read so many replies and give them back; an error among them is thrown."""

    commands: Sequence[Command]
    replies: int


class Reconnect(NamedTuple):
    """Drop the connection and wait so many seconds; the next exchange makes a new one."""

    delay: float


Steps = Generator[Exchange | Reconnect | Event, Any, None]
NEXT_REPLY = Exchange((), 1)


def subscribe(redis: "Redis | RedisCluster", *event_types: str, bus: str = "events") -> Generator[Event, None, None]:
    """Yield the events of these types, or of all, as they are published, for ever.

    It subscribes when the first event is asked for, and again whenever the connection breaks or Redis has been silent
    for 20 seconds: what is published while nobody listens is not kept. A message that is no event is logged and
    passed over. Raise redis.AuthenticationError for a wrong password, redis.ResponseError for a missing permission.
    https://redis.io/docs/latest/develop/pubsub/
    """
    return drive(redis, Live(bus, event_types))


def consume(
    redis: "Redis | RedisCluster", group: str, consumer: str, bus: str = "events", start: str = "$", idle: float = 60,
    attempts: int | None = None,
) -> Generator[Event, None, None]:  # fmt: skip
    """Yield the stream's events, each to one consumer of the group, for ever.

    An event is acknowledged when the next one is asked for: one whose handling ended in `break`, an exception or a
    crash is given again. First comes what this consumer had and did not acknowledge, then what any consumer has left
    for more than `idle` seconds (longer than the handling of an event ever takes), then what is new. A consumer is one
    thread; its name stays the same after a restart. As many entries are read ahead as were handled in the last tenth
    of a second; what has waited for longer, or was not handed over when the loop is left, is given back to the group.

    With `attempts`, an event whose handling has failed so many times is moved to the stream
    `{<bus>}:dead-letter:<group>`: fields `event` (the JSON), `id` (the entry's), `attempts`.

    A missing group is created, from the entry id `start` on ("$": new events; "0": all that the stream keeps), but
    from "0" when it was lost under this consumer. What is trimmed or no event is logged, acknowledged and passed over.
    It waits while Redis is unavailable. Raise redis.AuthenticationError for a wrong password, redis.ResponseError for a
    missing permission or a key of another type. https://redis.io/docs/latest/commands/xreadgroup/
    """
    return drive(redis, Durable(bus, group, consumer, start, idle, attempts))


class Live:
    """Listens to the channels of these types, or of all."""

    key = None  # in a cluster any node will do: they hand on what is published

    def __init__(self, bus: str, event_types: Sequence[str]) -> None:
        """Ask for nothing yet."""
        self.bus = bus
        names = [channel(bus, event_type) for event_type in event_types or "*"]
        self.subscription = ("SUBSCRIBE" if event_types else "PSUBSCRIBE", *names)

    def steps(self) -> Steps:
        """Subscribe, and again whenever the connection breaks."""
        failures = 0
        while True:
            try:
                yield Exchange([self.subscription], 1)
                failures = 0
                yield from self.listen()
            except ERRORS as error:
                yield retry(error, failures)
                failures += 1

    def listen(self) -> Steps:
        """Yield the events that come; after a silence see whether Redis is still there."""
        prefix, in_doubt = channel(self.bus, "").encode(), False
        while True:
            try:
                (reply,) = yield NEXT_REPLY
            except (exceptions.TimeoutError, TimeoutError):
                if in_doubt:
                    raise
                in_doubt = True
                yield Exchange([self.subscription], 0)  # as good as PING, which needs one more permission
                continue
            in_doubt = False
            # Besides, the pattern takes the channels of a bus "events:other"; a type has no colon.
            if reply[0] not in (b"message", b"pmessage") or b":" in reply[-2].removeprefix(prefix):
                continue
            if event := read_event(reply[-1], f"a message on {self.bus}"):
                yield event

    def farewell(self) -> Exchange:
        """Return what to do when the loop is left."""
        return Exchange((), 0)


class Durable:
    """Reads the stream as one consumer of a group.

    The XACK of an event is written before the next one is handed over, so that a crash repeats only the one in hand;
    its reply is read together with those of the next entries.
    """

    def __init__(self, bus: str, group: str, consumer: str, start: str, idle: float, attempts: int | None) -> None:
        """Ask for nothing yet."""
        self.key, self.group, self.consumer, self.start = bus, group, consumer, start
        self.idle, self.attempts = idle, attempts
        self.block = max(1, int(1000 * min(BLOCK, idle / 4)))  # milliseconds; 0 would be for ever
        self.ready: deque[Any] = deque()  # entries that are read ahead: id, fields
        self.asked = 0.0  # when they were asked for
        self.handled: deque[float] = deque(maxlen=MAX_READ_AHEAD)  # when the latest events were
        self.unconfirmed: list[bytes] = []  # XACK is sent for them, its reply is not read
        self.due = 0  # replies that are not read
        self.known = False  # the group was there
        self.next_look = 0.0  # for what other consumers left

    def steps(self) -> Steps:
        """Consume, and begin again whenever the connection breaks or the group is lost."""
        failures, breaks, missing = 0, 0, False
        while True:
            try:
                if self.unconfirmed:
                    yield from self.ask("XACK", self.key, self.group, *self.unconfirmed)
                if missing:
                    start = "0" if self.known else self.start
                    yield from self.ask("XGROUP", "CREATE", self.key, self.group, start, "MKSTREAM")
                    self.known = True
                yield from self.ask(*self.claim(0, "0-0"))  # a missing permission is an error now, not later
                self.known = True
                yield from self.hand_over_pending(breaks)
                failures, missing = 0, False
                while True:
                    left = yield from self.read_left()
                    yield from self.hand_over(left or (yield from self.read(">", "BLOCK", self.block)))
            except ERRORS as error:
                self.ready.clear()  # these entries come again, as pending ones
                self.due = 0
                missing = str(error).startswith("NOGROUP")
                if missing and self.known:
                    log.warning("The group %s was lost: it begins anew, with all that the stream keeps", self.group)
                if missing or str(error).startswith("BUSYGROUP"):  # another consumer was faster
                    yield Reconnect(0)
                else:
                    yield retry(error, failures)
                    failures, breaks = failures + 1, breaks + 1

    def hand_over_pending(self, breaks: int) -> Steps:
        """Hand over what this consumer had and did not acknowledge; its connection broke so often since it began."""
        last: str | bytes = "0"
        while entries := (yield from self.read(last)):
            last = entries[-1][0]
            if not (yield from self.bury(entries[0], breaks)):
                yield from self.hand_over(entries)

    def read_left(self) -> Generator[Exchange, Any, Any]:
        """Take over one entry that was left. Redis looks for it ten at a time."""
        cursor = b"0-0"
        while time.monotonic() >= self.next_look:
            self.asked = time.monotonic()
            limit = int(1000 * self.idle), cursor, "COUNT", 1
            cursor, entries, gone = yield from self.ask("XAUTOCLAIM", self.key, self.group, self.consumer, *limit)
            if gone:
                log.warning("Trimmed from the stream before it was handled: %s", gone)
            if entries and not (yield from self.bury(entries[0])):
                return entries
            if cursor == b"0-0":
                self.next_look = time.monotonic() + BLOCK
        return []

    def read(self, after: str | bytes, *options: str | int) -> Generator[Exchange, Any, Any]:
        """Return the next entries: no fields where one is no longer in the stream."""
        self.asked = now = time.monotonic()
        count = sum(now - then < READ_AHEAD_TIME for then in self.handled) or 1
        if self.attempts and (after != ">" or self.attempts == 1):
            count = 1  # Redis counts what is read as delivered: a crash before hand_over corrects that costs an attempt
        command = ("XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", count, *options)
        reply = yield from self.ask(*command, "STREAMS", self.key, after)
        return reply[0][1] if reply else []

    def hand_over(self, entries: list[Any]) -> Steps:
        """Give one event after the other, and acknowledge it when the next one is asked for."""
        # Others take over what has waited for `idle` since Redis gave it to us, and that was not before we had asked.
        deadline = min(self.asked + self.idle / 2, time.monotonic() + 2 * READ_AHEAD_TIME)
        self.ready.extend(entries)
        if self.attempts and len(entries) > 1:  # an attempt is what was handed over, not what was read ahead
            yield from self.send(*self.claim(0, *(id for id, _ in entries[1:]), "RETRYCOUNT", 0))
        while self.ready:
            if time.monotonic() > deadline:
                yield from self.send(*self.give_back())
                self.next_look = 0.0  # in a group of one it comes back at once, and in order
                return
            id, fields = self.ready.popleft()
            if event := read_event(event_field(fields), f"entry {id.decode()}"):
                if self.attempts and id != entries[0][0]:
                    yield from self.send(*self.claim(0, id, "RETRYCOUNT", 1))
                yield event
                self.handled.append(time.monotonic())
            yield from self.acknowledge(id)

    def bury(self, entry: Any, breaks: int = 0) -> Generator[Exchange, Any, bool]:
        """Move an entry whose handling has failed too often to the dead letters; tell whether it was one.

        Redis counts a delivery whose reply was lost as well: each break of the connection may have been one.
        """
        id, fields = entry
        if not self.attempts or not fields:
            return False
        pending = yield from self.ask("XPENDING", self.key, self.group, id, id, 1)
        failed = pending[0][3] - 1 - breaks if pending else 0  # the latest delivery is the one of now
        if failed < self.attempts:
            return False
        letter = "event", event_field(fields), "id", id, "attempts", failed
        limit = "MAXLEN", "~", MAX_DEAD_LETTERS
        yield from self.ask("XADD", f"{{{self.key}}}:dead-letter:{self.group}", *limit, "*", *letter)
        log.warning("Dead letter: entry %s of %s, handling has failed %s times", id.decode(), self.key, failed)
        yield from self.acknowledge(id)
        return True

    def acknowledge(self, id: bytes) -> Generator[Exchange, Any, None]:
        """Write the XACK; should the connection break before its reply is read, it is written again."""
        self.unconfirmed.append(id)
        yield from self.send("XACK", self.key, self.group, id)

    def claim(self, idle: int, *what: Any) -> Command:
        """Return the command that sets something of entries of ours, or of whose idle for so many milliseconds."""
        return ("XCLAIM", self.key, self.group, self.consumer, idle, *what, "JUSTID")

    def give_back(self) -> Command:
        """Return the command that lets any consumer take over what is read ahead, as if it was idle for long.

        But not what somebody has taken over already, which is idle for half of `idle` less at least than what is ours.
        """
        idle = max(0, int(1000 * (time.monotonic() - self.asked - self.idle / 2)))
        ids = [id for id, _ in self.ready]
        self.ready.clear()
        return self.claim(idle, *ids, "IDLE", int(1000 * self.idle), "RETRYCOUNT", 0)

    def farewell(self) -> Exchange:
        """Return what to do when the loop is left: who comes next, on another connection, finds all of it done."""
        commands = [self.give_back()] if self.ready else []
        return Exchange(commands, self.due + len(commands))

    def send(self, *command: Any) -> Generator[Exchange, Any, None]:
        """Write the command, and leave its reply for later."""
        self.due += 1
        yield Exchange([command], 0)

    def ask(self, *command: Any) -> Generator[Exchange, Any, Any]:
        """Return the reply to the command; the replies that are due come before it."""
        replies = yield Exchange([command], self.due + 1)
        self.due = 0
        self.unconfirmed.clear()
        return replies[-1]


def event_field(fields: list[bytes] | None) -> bytes:
    """Return the JSON in the fields of an entry; nothing if it has none, or was trimmed from the stream."""
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(b"event", b"") if fields else b""


def read_event(data: bytes, where: str) -> Event | None:
    """Return the event, or log that it is none."""
    try:
        return Event.from_dict(json.loads(data.decode()))
    except (ValueError, RecursionError) as error:
        log.warning("No event in %s, passed over: %s", where, error if data else "empty, or trimmed from the stream")
        return None


def retry(error: Exception, failures: int) -> Reconnect:
    """Return when to try again; raise what the caller has to fix."""
    code = str(error).partition(" ")[0]
    passes = isinstance(error, TRANSIENT) or code in TRANSIENT_CODES
    if isinstance(error, exceptions.AuthenticationError) or not passes:
        raise error
    if failures % 30 == 0:  # about once a minute
        log.warning(
            "Redis is unavailable (%s), trying again", code if code in TRANSIENT_CODES else type(error).__name__
        )
    return Reconnect(backoff(failures, BACKOFF_BASE, BACKOFF_CAP))


def connection_of(source: Any, socket_timeout: float | None) -> Any:
    """Make a connection to where this pool, or this node of a cluster, has its own; it is not connected yet."""
    options = {name: value for name, value in source.connection_kwargs.items() if not name.startswith(LEFT_OUT)}
    return source.connection_class(**options | OWN_OPTIONS | {"socket_timeout": socket_timeout})


def locate(redis: Any, key: str | None, failed: bool) -> Any:
    """Make a connection; in a cluster to the key's node, or to any; after a failure ask where they are now."""
    if not hasattr(redis, "get_node_from_key"):
        return connection_of(redis.connection_pool, SILENCE)
    if failed:
        redis.nodes_manager.initialize()
    node = redis.get_node_from_key(key) if key else redis.get_random_node()
    return connection_of(redis.get_redis_connection(node).connection_pool, SILENCE)


def exchange(connection: Any, commands: Sequence[Command], replies: int) -> list[Any]:
    """Send the commands, and return so many replies."""
    if commands:
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    return [connection.read_response(disconnect_on_error=False) for _ in range(replies)]


def drive(redis: Any, core: Live | Durable) -> Generator[Event, None, None]:
    """Do what the core says."""
    steps, connection, failed = core.steps(), None, False
    result: Any = None
    try:
        while True:
            step = steps.throw(result) if isinstance(result, Exception) else steps.send(result)
            result = None
            if isinstance(step, Event):
                try:
                    yield step
                except GeneratorExit:
                    with suppress(*ERRORS):
                        exchange(connection, *core.farewell())
                    raise
            elif isinstance(step, Reconnect):
                if connection:
                    connection.disconnect()
                connection, failed = None, True
                time.sleep(step.delay)
            else:
                try:
                    if not connection:
                        connection = locate(redis, core.key, failed)
                        connection.connect()
                    result = exchange(connection, *step)
                except Exception as error:
                    result = error
    finally:
        if connection:
            connection.disconnect()
