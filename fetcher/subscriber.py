"""The other end of the bus: live events from the channels, or durable ones through a consumer group."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from redis import AuthenticationError, Redis, RedisCluster, ResponseError
from redis.backoff import EqualJitterBackoff
from redis.exceptions import ConnectionError, RedisClusterException, TimeoutError
from redis.retry import Retry

from .bus import channel
from .events import Event

log = logging.getLogger("fetcher")


def subscribe(redis: "Redis | RedisCluster", *event_types: str, bus: str = "events") -> Iterator[Event]:
    """Yield the events of these types, or of all, as they are published; what comes while nobody listens is not kept.

    It subscribes again when the connection breaks. https://redis.io/docs/latest/develop/pubsub/
    """
    raise NotImplementedError


def consume(
    redis: "Redis | RedisCluster", group: str, consumer: str, bus: str = "events", start: str = "$", idle: float = 60
) -> Iterator[Event]:
    """Yield the stream's events, each to one consumer of the group; an event is acknowledged when the next one is asked for."""
    raise NotImplementedError
