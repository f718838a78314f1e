"""`subscribe` and `consume` for `async for`, with the clients of redis.asyncio."""

from collections.abc import AsyncGenerator

from redis.asyncio import Redis, RedisCluster

from .consumers.consumer import Live
from .consumers.durable import Durable
from .events import Event


def subscribe(redis: "Redis | RedisCluster", *event_types: str, bus: str = "events") -> AsyncGenerator[Event, None]:
    """Yield events of these types, or of all types, as they are published; see `fetcher.subscribe`."""
    return Live(bus, event_types).events(redis, blocks=False)


def consume(
    redis: "Redis | RedisCluster", group: str, consumer: str, bus: str = "events", start: str = "$", idle: float = 60,
    attempts: int | None = None,
) -> AsyncGenerator[Event, None]:  # fmt: skip
    """Yield the stream's events, each at least once; see `fetcher.consume`. A consumer is one task."""
    return Durable(bus, group, consumer, start, idle, attempts).events(redis, blocks=False)
