"""The names that all fetchers of a bus share."""

from collections.abc import Collection, Mapping
from typing import Any

from ..core.ports import Name
from ..fastjson import dumps, loads
from .bus import Bus
from .connection import redis_errors

UNKNOWN_TTL = 60  # seconds: VK may have a name for them soon


class NameCache:
    """The cache of names. While the bus is not connected, it returns no names, and keeps new ones for later.

    Methods raise RedisUnavailable or RedisFatalError, as those of the bus do.
    """

    def __init__(self, bus: Bus, ttl: int) -> None:
        """`ttl` is in seconds; 0 means that there is no cache."""
        self.bus, self.ttl = bus, ttl
        self.keys = f"{{{bus.bus}}}:name:"
        self.unwritten: dict[int, Name] = {}  # names that came while the bus was not connected

    def names(self, ids: Collection[int]) -> dict[int, Name]:
        """Return the names of those ids that are cached."""
        if not ids or not self.ttl or not self.bus.is_connected:
            return {}
        with redis_errors():
            cached: Any = self.bus.client.mget([f"{self.keys}{id}" for id in ids])
        try:
            found = loads(f"[{','.join(text or 'null' for text in cached)}]".encode())  # faster than one by one
            return {id: Name(*map(str, name)) for id, name in zip(ids, found, strict=True) if name}
        except (ValueError, TypeError):
            return {}  # something else has written there: VK's answer will replace it

    def cache_names(self, names: Mapping[int, Name]) -> None:
        """Cache names for `ttl` seconds; empty ones, which VK does not know, for a minute at most.

        What cannot be cached now is cached by the next call while the bus is connected.
        """
        self.unwritten |= names if self.ttl else {}
        if not self.unwritten or not self.bus.is_connected:
            return
        with redis_errors(), self.bus.client.pipeline(transaction=False) as pipeline:
            for id, name in self.unwritten.items():
                ttl = self.ttl if any(name) else min(UNKNOWN_TTL, self.ttl)
                pipeline.set(f"{self.keys}{id}", dumps([*name]), ex=ttl)
            pipeline.execute()
        self.unwritten = {}
