"""What all consumers do: run a session on one connection, and start a new one after an error. Also live consumers."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from redis import exceptions

from .. import fastjson
from ..core.backoff import backoff
from ..events import Event, channel
from ..logs import log
from .connection import Connection

MIN_BACKOFF, MAX_BACKOFF = 0.05, 2.0  # seconds between two attempts while Redis is unavailable
REMIND_INTERVAL = 60.0  # seconds between two log lines about errors of one kind, even if Redis was back in between

TRANSIENT = (
    exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ClusterError, exceptions.RedisClusterException,
    exceptions.AskError, exceptions.OutOfMemoryError, exceptions.ReadOnlyError, exceptions.InvalidResponse, OSError,
)  # fmt: skip
TRANSIENT_CODES = ("BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED")  # redis-py raises plain ResponseErrors for these


class Consumer:
    """Yields events for as long as they are requested, and reconnects whenever Redis fails."""

    key: str | None = None  # in a cluster, connect to the node that has this key, or to any node if it is None
    session: Callable[[], AsyncGenerator[Event, None]]  # yields events until an error is raised
    failures = 0  # consecutive failures; a session resets them to 0
    remind_at: dict[str, float]  # by reason: when to log it again

    async def events(self, client: Any, blocks: bool) -> AsyncGenerator[Event, None]:
        """Connect and yield events, forever. Raise errors that the caller has to fix."""
        self.remind_at, delay = {}, 0.0
        async with aclosing(Connection(client, blocks)) as self.redis:
            while True:
                try:
                    await self.redis.connect(self.key, delay)
                    async with aclosing(self.session()) as events:
                        while True:
                            yield await anext(events)
                except Exception as error:
                    delay = self.delay_after(error, code=str(error).partition(" ")[0])

    def delay_after(self, error: Exception, code: str) -> float:
        """Return the seconds to wait before the next session; raise the error if the caller has to fix it."""
        if code not in TRANSIENT_CODES:
            if not isinstance(error, TRANSIENT) or isinstance(error, exceptions.AuthenticationError):
                raise error
            code = type(error.__context__ if isinstance(error.__context__, OSError) else error).__name__
        now = time.monotonic()
        if now >= self.remind_at.get(code, 0.0):
            self.remind_at[code] = now + REMIND_INTERVAL
            log.warning("Redis is unavailable (%s), trying again", code)
        self.failures += 1
        return backoff(self.failures, MIN_BACKOFF, MAX_BACKOFF)


class Live(Consumer):
    """Listens to the channels of these types, or of all types.

    In a cluster any node will do, because nodes forward published messages to each other.
    https://redis.io/docs/latest/develop/pubsub/
    """

    def __init__(self, bus: str, event_types: Sequence[str]) -> None:
        self.bus = bus
        names = [channel(bus, event_type) for event_type in event_types or "*"]
        self.subscription = ("SUBSCRIBE" if event_types else "PSUBSCRIBE", *names)

    async def session(self) -> AsyncGenerator[Event, None]:
        """Subscribe, and yield the events that are published."""
        await self.redis.ask(*self.subscription)
        self.failures = 0
        while True:
            try:
                self.redis.unread = 1  # one message, whatever Redis sends next
                (reply,) = await self.redis.replies()
            except (exceptions.TimeoutError, TimeoutError):  # now Redis must answer; a second timeout is raised
                reply = await self.redis.ask(*self.subscription)  # like a PING, which needs one more permission
            kind, *_, name, data = reply
            # The pattern of a bus "events" also matches the channels of a bus "events:other"; a type contains no colon.
            is_own = kind in (b"message", b"pmessage") and name.count(b":") == self.bus.count(":") + 1
            if is_own and (event := read_event(data, f"a message on {self.bus}")):
                yield event
            await self.redis.sleep(0)  # let other tasks run, even if the handler never awaits


def read_event(data: bytes, where: str) -> Event | None:
    """Return the event; log a warning and return None if it is not one."""
    try:
        return Event.from_dict(fastjson.loads(data))
    except ValueError as error:
        log.warning("No event in %s, passed over: %s", where, error if data else "empty, or trimmed from the stream")
        return None
