"""The other end of the bus: live events from the channels, or durable ones through a consumer group."""

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

from redis import Redis, RedisCluster, RedisError, exceptions
from redis.backoff import EqualJitterBackoff
from redis.utils import str_if_bytes

from .bus import channel
from .events import Event

BLOCK = 1.0  # seconds to wait for something new before looking for what others left
BACKOFF = EqualJitterBackoff(cap=2, base=0.1)  # seconds between two tries while Redis is away

# What passes: Redis is down or takes no writes now, or a connection is of no use after a message that has no UTF-8.
DOWN = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ClusterError, exceptions.RedisClusterException)
AWAY = (*DOWN, exceptions.OutOfMemoryError, exceptions.ReadOnlyError, UnicodeDecodeError)
AWAY_CODES = ("BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED")  # these come as plain ResponseErrors

log = logging.getLogger("fetcher")


def subscribe(redis: "Redis | RedisCluster", *event_types: str, bus: str = "events") -> Iterator[Event]:
    """Yield the events of these types, or of all, as they are published, for ever.

    It subscribes when the first event is asked for, and again whenever the connection breaks: what is published while
    nobody listens is not kept. A message that is no event is logged and passed over. Raise redis.AuthenticationError
    for a wrong password, redis.ResponseError for a missing permission. https://redis.io/docs/latest/develop/pubsub/
    """
    failures = 0
    while True:
        try:
            with _pubsub(redis) as pubsub:
                ask = pubsub.subscribe if event_types else pubsub.psubscribe
                ask(*(channel(bus, event_type) for event_type in event_types or "*"))
                while True:
                    message, failures = pubsub.get_message(timeout=BLOCK), 0
                    if not message or ":" in str_if_bytes(message["channel"]).removeprefix(channel(bus, "")):
                        continue  # the pattern takes the channels of a bus "events:other", too; a type has no colon
                    if event := _event(message["data"], f"a message on {bus}"):
                        yield event
        except (RedisError, *AWAY) as error:
            failures = _pause(error, failures)


def consume(
    redis: "Redis | RedisCluster", group: str, consumer: str, bus: str = "events", start: str = "$", idle: float = 60
) -> Iterator[Event]:
    """Yield the stream's events, each to one consumer of the group, for ever; one is in hand at a time.

    An event is acknowledged when the next one is asked for: one whose handling ended in `break` or an exception is
    given again. First comes what this consumer had and did not acknowledge, then what any consumer has left for more
    than `idle` seconds (longer than the handling of an event ever takes), then what is new. A consumer is one thread;
    its name stays the same after a restart.

    A missing group is created, from the entry id `start` on ("$": new events; "0": all that the stream keeps), but
    from "0" when it was lost under this consumer. What is trimmed or no event is logged, acknowledged and passed over.
    It waits while Redis is away. Raise redis.AuthenticationError for a wrong password, redis.ResponseError for a
    missing permission or a key of another type. https://redis.io/docs/latest/commands/xreadgroup/
    """
    timeout = redis.get_connection_kwargs().get("socket_timeout") or 2 * BLOCK
    block = max(1, int(1000 * min(BLOCK, timeout / 2)))  # milliseconds; 0 would be for ever
    held, seen, missing, look, failures = b"", False, False, 0.0, 0  # id in hand; the group; when to look what is left
    while True:
        try:
            if held:
                redis.xack(bus, group, held)
                held = b""
            if missing:
                redis.xgroup_create(bus, group, "0" if seen else start, mkstream=True)
                seen = True
            # Each time, because redis-py may have asked twice, and the entry of a lost reply is ours already.
            found = _read(redis, bus, group, consumer, "0")
            seen, missing = True, False
            if not found and time.monotonic() >= look:
                found = _left(redis, bus, group, consumer, idle)
                look = 0.0 if found else time.monotonic() + BLOCK
            found = found or _read(redis, bus, group, consumer, ">", "BLOCK", block)
            failures = 0
        except (RedisError, *AWAY) as error:
            missing = str(error).startswith("NOGROUP")
            if missing and seen:
                log.warning("The group %s was lost: it begins anew, with all that the stream keeps", group)
            elif not missing and not str(error).startswith("BUSYGROUP"):  # another consumer was faster
                failures = _pause(error, failures)
            continue
        if found:
            held, fields = found
            if event := _event(fields.get(b"event"), f"entry {held.decode()}"):
                yield event


def _pubsub(redis: Any) -> Any:
    """In a cluster any node will do, for they hand on what is published; after a failure it is perhaps another one."""
    options = {"node": redis.get_random_node()} if hasattr(redis, "get_random_node") else {}
    return redis.pubsub(ignore_subscribe_messages=True, **options)


def _read(redis: Any, bus: str, group: str, consumer: str, after: str, *options: Any) -> Any:
    """Return id and fields of one entry, or None; no fields if it is no longer in the stream."""
    command = ("XREADGROUP", "GROUP", group, consumer, "COUNT", 1, *options, "STREAMS", bus, after)
    reply = _ask(redis, bus, *command)
    while reply and not isinstance(reply, tuple):  # redis-py nests it by protocol, in one of three ways
        reply = next(iter(reply.values())) if isinstance(reply, dict) else reply[-1]
    return reply or None


def _left(redis: Any, bus: str, group: str, consumer: str, idle: float) -> Any:
    """Take over one entry that was left, and return its id and fields, or None. It is looked for ten at a time."""
    command, cursor = ("XAUTOCLAIM", bus, group, consumer, int(1000 * idle)), None
    while cursor != b"0-0":
        cursor, entries, gone = _ask(redis, bus, *command, cursor or "0-0", "COUNT", 1)
        if gone:
            log.warning("Trimmed from the stream before it was handled: %s", gone)
        if entries:
            return entries[0]
    return None


def _ask(redis: Any, bus: str, *command: Any) -> Any:
    """Execute and answer in bytes, whatever the client decodes.

    In a cluster redis-py would ask some node each time where the command has its keys, and for ever if that one died.
    """
    options = {"target_nodes": redis.get_node_from_key(bus)} if hasattr(redis, "get_node_from_key") else {}
    return redis.execute_command(*command, NEVER_DECODE=True, **options)


def _event(data: Any, where: str) -> Event | None:
    try:
        return Event.from_dict(json.loads(data or ""))
    except (ValueError, RecursionError) as error:
        log.warning("No event in %s, passed over: %s", where, error if data else "empty, or trimmed from the stream")
        return None


def _pause(error: Exception, failures: int) -> int:
    """Wait before trying again, and count the failures; raise what the caller has to mend."""
    code = str(error).partition(" ")[0]
    if isinstance(error, exceptions.AuthenticationError) or not (isinstance(error, AWAY) or code in AWAY_CODES):
        raise error
    if failures % 30 == 0:  # about once a minute
        log.warning("Redis is away (%s), trying again", code if code in AWAY_CODES else type(error).__name__)
    time.sleep(BACKOFF.compute(min(failures, 10)))  # 2 ** failures outgrows a float
    return failures + 1
