"""Live events: those that are published on the channels while the consumer is subscribed."""

from collections.abc import AsyncGenerator, Sequence

from redis import exceptions

from ..events import Event, channel
from .consumer import Consumer, read_event


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
