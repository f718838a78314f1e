"""Live events: what is published on the channels while somebody listens."""

from collections.abc import Sequence

from redis import exceptions

from ..events import channel
from .steps import Core, Exchange, Steps, read_event


class Live(Core):
    """Listens to the channels of these types, or of all. In a cluster any node will do: they pass on what is published.

    https://redis.io/docs/latest/develop/pubsub/
    """

    def __init__(self, bus: str, event_types: Sequence[str]) -> None:
        self.bus = bus
        names = [channel(bus, event_type) for event_type in event_types or "*"]
        self.subscription = ("SUBSCRIBE" if event_types else "PSUBSCRIBE", *names)

    def session(self) -> Steps:
        """Subscribe, and hand over what is published."""
        prefix = channel(self.bus, "").encode()
        yield from self.ask(*self.subscription)
        self.failures = 0
        while True:
            kind, *_, name, data = yield from self.next_reply()
            # The pattern of a bus "events" also matches the channels of a bus "events:other"; a type has no colon.
            if kind not in (b"message", b"pmessage") or b":" in name.removeprefix(prefix):
                continue
            if event := read_event(data, f"a message on {self.bus}"):
                yield self.exchange(0, event)

    def next_reply(self) -> Steps:
        """Return what Redis sends next. After a time-out it must answer; a second time-out is raised."""
        try:
            (reply,) = yield Exchange((), 1)
        except (exceptions.TimeoutError, TimeoutError):
            reply = yield from self.ask(*self.subscription)  # as good as PING, which needs one more permission
        return reply
