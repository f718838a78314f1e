"""`subscribe` and `consume` for a plain `for`: the coroutines of a consumer, run without an event loop."""

import warnings
from collections.abc import AsyncGenerator, Generator

from redis import Redis, RedisCluster

from ..events import Event
from .durable import Durable
from .live import Live

# Ctrl-C may come between the call of a coroutine and its await. Nothing is lost by that, and nobody can do better.
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning, r"fetcher\.consumers\.")


def subscribe(redis: "Redis | RedisCluster", *event_types: str, bus: str = "events") -> Generator[Event, None, None]:
    """Yield the events of these types, or of all, as they are published, forever.

    It subscribes when the first event is requested, and again whenever the connection breaks or Redis has been silent
    for 20 seconds. What is published while nobody listens is missed. A message that is not an event is logged and
    skipped. `bus` is the fetcher's BUS. Raise redis.AuthenticationError for a wrong password, redis.ResponseError for
    a missing permission.
    """
    return iterate(Live(bus, event_types).events(redis, blocks=True))


def consume(
    redis: "Redis | RedisCluster", group: str, consumer: str, bus: str = "events", start: str = "$", idle: float = 60,
    attempts: int | None = None,
) -> Generator[Event, None, None]:  # fmt: skip
    """Yield the stream's events, each at least once to one consumer of the group, forever.

    An event is acknowledged when the next one is requested: one whose handling ended in `break`, an exception or a
    crash is delivered again. What this consumer had and did not acknowledge, and what any consumer left for more than
    `idle` seconds (longer than handling an event ever takes), comes before what is new. A consumer is one thread; its
    name stays the same after a restart. Up to 100 entries are read ahead, as many as are handled in a tenth of a
    second, or in a round trip to Redis if that is longer. Those that wait for longer, or were not handed over when the
    loop is left, are released.

    With `attempts`, an event that was handed over that many times without being acknowledged is moved to the stream
    `{<bus>}:dead-letter:<group>`: fields `event` (the JSON), `id` (the entry's), `attempts`. Handing an event over is
    an attempt, reading it is not. Attempts are counted in the hash `{<bus>}:attempts:<group>`: the command is written
    to the connection right before the event is handed over, without waiting for the reply. So an attempt counts even if
    the consumer is killed at the first line of its handler. If the connection or the machine breaks before Redis has
    the command, it does not count, and the event is delivered once more.

    A missing group is created, from the entry id `start` on ("$": new events; "0": all that the stream keeps), but
    from "0" if it was lost while this consumer ran. What was trimmed or is not an event is logged, acknowledged and
    skipped. It waits while Redis is unavailable. `bus` is the fetcher's BUS. Raise redis.AuthenticationError for a
    wrong password, redis.ResponseError for a missing permission or a key of another type.
    """
    return iterate(Durable(bus, group, consumer, start, idle, attempts).events(redis, blocks=True))


def iterate(events: AsyncGenerator[Event, None]) -> Generator[Event, None, None]:
    """Yield the events of a generator that never suspends: its awaitables yield nothing, and return at once."""
    try:
        while True:
            yield (yield from anext(events).__await__())
    finally:
        yield from events.aclose().__await__()
