"""Live events: what is published on the channels while somebody listens."""

from collections.abc import AsyncGenerator, Sequence

from redis import exceptions

from ..events import Event, channel
from .consumer import Consumer, read_event


class Live(Consumer):
    """Listens to the channels of these types, or of all. In a cluster any node will do: they pass on what is published.

    https://redis.io/docs/latest/develop/pubsub/
    """

    def __init__(self, bus: str, event_types: Sequence[str]) -> None:
        self.bus = bus
        names = [channel(bus, event_type) for event_type in event_types or "*"]
        self.subscription = ("SUBSCRIBE" if event_types else "PSUBSCRIBE", *names)

    async def session(self) -> AsyncGenerator[Event, None]:
        """Subscribe, and yield what is published."""
        await self.redis.ask(*self.subscription)
        self.failures = 0
        while True:
            try:
                self.redis.due = 1  # what Redis sends next
                (reply,) = await self.redis.replies()
            except (exceptions.TimeoutError, TimeoutError):  # now it must answer; a second timeout is raised
                reply = await self.redis.ask(*self.subscription)  # as good as PING, which needs one more permission
            kind, *_, name, data = reply
            # The pattern of a bus "events" also matches the channels of a bus "events:other"; a type has no colon.
            is_own = kind in (b"message", b"pmessage") and name.count(b":") == self.bus.count(":") + 1
            if is_own and (event := read_event(data, f"a message on {self.bus}")):
                yield event
            await self.redis.sleep(0)  # other tasks get their turn, even if the handler waits for nothing
