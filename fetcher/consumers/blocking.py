"""`subscribe` and `consume` for a plain `for`: they run a consumer's coroutines without an event loop."""

from collections.abc import AsyncGenerator, Generator

from redis import Redis, RedisCluster

from ..events import Event
from .consumer import Live
from .durable import Durable


def subscribe(redis: "Redis | RedisCluster", *event_types: str, bus: str = "events") -> Generator[Event, None, None]:
    """Yield events of these types, or of all types, as they are published, forever.

    The subscription starts when the first event is requested. It is renewed on a new connection whenever the old one
    breaks or Redis has been silent for 20 seconds. Events that are published while there is no subscription are missed.
    A message that is not an event is logged and skipped. `bus` is the fetcher's BUS. Raise redis.AuthenticationError
    for a wrong password, redis.ResponseError for a missing permission.
    """
    return iterate(Live(bus, event_types).events(redis, blocks=True))


def consume(
    redis: "Redis | RedisCluster", group: str, consumer: str, bus: str = "events", start: str = "$", idle: float = 60,
    attempts: int | None = None,
) -> Generator[Event, None, None]:  # fmt: skip
    """Yield the stream's events, each at least once to one consumer of the group, forever.

    An event is acknowledged when the next one is requested, so an event whose handling ends in `break`, an exception or
    a crash is delivered again. Events that this consumer received earlier but did not acknowledge are delivered before
    new ones, and so are events that any consumer has left unacknowledged for more than `idle` seconds. `idle` must be
    longer than handling an event ever takes. A consumer is one thread, and must keep its name after a restart. Entries
    are read ahead: as many as are handled in a tenth of a second, but at most 100. Entries that wait for longer, or
    that are left over when the loop ends, are released to the group.

    With `attempts`, an event that was handed over that many times without being acknowledged is moved to the stream
    `{<bus>}:dead-letter:<group>`, with the fields `event` (the JSON), `id` (the entry's) and `attempts`. Handing an
    event over is an attempt; reading it is not. Attempts are counted in the hash `{<bus>}:attempts:<group>`. The
    command that counts one is written to the connection right before the event is handed over, without waiting for the
    reply. So an attempt counts even if the consumer is killed at the first line of its handler. If the connection or
    the machine fails before Redis has received the command, the attempt does not count, and the event is delivered once
    more.

    If the group does not exist, it is created to start at the entry id `start` ("$": new events; "0": everything that
    the stream keeps), or at "0" if the group was lost while this consumer was running. Entries that were trimmed or are
    not events are logged, acknowledged and skipped. The consumer waits while Redis is unavailable. `bus` is the
    fetcher's BUS. Raise redis.AuthenticationError for a wrong password, redis.ResponseError for a missing permission or
    a key of another type.
    """
    return iterate(Durable(bus, group, consumer, start, idle, attempts).events(redis, blocks=True))


def iterate(events: AsyncGenerator[Event, None]) -> Generator[Event, None, None]:
    """Yield the events of an asynchronous generator that never suspends, so that each `await` returns at once."""
    try:
        while True:
            yield (yield from anext(events).__await__())
    finally:
        yield from events.aclose().__await__()
