"""What the core and a driver say to each other: a generator that does no I/O yields one step after the other."""

import logging
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from redis import exceptions

from .. import fastjson
from ..core.backoff import backoff
from ..events import Event

BACKOFF_BASE, BACKOFF_CAP = 0.1, 2.0  # seconds between two tries while Redis is unavailable

TRANSIENT = (
    exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ClusterError, exceptions.RedisClusterException,
    exceptions.AskError, exceptions.OutOfMemoryError, exceptions.ReadOnlyError, OSError,
)  # fmt: skip
TRANSIENT_CODES = ("BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED")  # these come as plain ResponseErrors

Command = tuple[str | bytes | int, ...]

log = logging.getLogger("fetcher")


class Connect(NamedTuple):
    """Drop the connection, if there is one, wait for `delay` seconds and make a new one."""

    delay: float


class Exchange(NamedTuple):
    """Write the commands, then read so many replies and return them, or hand over the event, if there is one.

    Nothing may come between the commands and the event.
    """

    commands: Sequence[Command]
    replies: int
    event: Event | None = None


Steps = Generator[Connect | Exchange, Any, Any]


class LoopLeft(BaseException):
    """The loop is left, or its task is cancelled: raised where the core hands over or acknowledges an event."""


class Core:
    """What live and durable consumers share: a session on one connection, and the next one after an error."""

    key: str | None = None  # the connection is to the node of a cluster that has this key; None: to any node
    failures = 0  # in a row; a session sets it to 0

    def steps(self) -> Steps:
        """Connect and hand over events, for ever. What a driver cannot do is raised here, and ends the session.

        Replies may be unread then, so the connection is of no more use.
        """
        delay = 0.0
        while True:
            try:
                yield Connect(delay)
                yield from self.session()
            except Exception as error:
                delay = self.delay_after(error)

    def session(self) -> Steps:
        """Hand over events until an error is raised."""
        raise NotImplementedError

    def delay_after(self, error: Exception) -> float:
        """Return the seconds to wait before the next session; raise what the caller has to fix."""
        code = str(error).partition(" ")[0]
        is_transient = isinstance(error, TRANSIENT) and not isinstance(error, exceptions.AuthenticationError)
        if not is_transient and code not in TRANSIENT_CODES:
            raise error
        if self.failures % 30 == 0:  # about once a minute
            said = code if code in TRANSIENT_CODES else type(error).__name__
            log.warning("Redis is unavailable (%s), trying again", said)
        self.failures += 1
        return backoff(self.failures - 1, BACKOFF_BASE, BACKOFF_CAP)


def next_step(steps: Steps, result: Any) -> Connect | Exchange:
    """Send the core the result of the step before, or raise it there if it is an exception, and return the next step.

    An exception that is no error is raised there as LoopLeft, for GeneratorExit would not get through `yield from`.
    """
    try:
        if not isinstance(result, BaseException):
            return steps.send(result)
        return steps.throw(result if isinstance(result, Exception) else LoopLeft(result))
    except LoopLeft as left:
        raise left.args[0] from None


def read_event(data: bytes, where: str) -> Event | None:
    """Return the event; None, and a warning, if it is none."""
    try:
        return Event.from_dict(fastjson.loads(data))
    except (ValueError, RecursionError) as error:
        log.warning("No event in %s, passed over: %s", where, error if data else "empty, or trimmed from the stream")
        return None
