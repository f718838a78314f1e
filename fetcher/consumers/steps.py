"""What the core and a driver say to each other: a generator that does no I/O yields one step after the other."""

import logging
from collections.abc import Callable, Generator
from contextlib import suppress
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

    commands: tuple[Command, ...]
    replies: int
    event: Event | None = None


class LoopLeft(BaseException):
    """The loop is left, by this exception. In its place, for after GeneratorExit a generator must not yield."""


Steps = Generator[Connect | Exchange, Any, Any]


class Core:
    """What live and durable consumers share: a session on one connection, and the next one after an error.

    Not every command is worth a round trip: what is sent is written with the next exchange, and its reply is read with
    that of the next command whose reply matters.
    """

    key: str | None = None  # in a cluster the connection is to the node that has this key; None: to any node
    session: Callable[[], Steps]  # hands over events until an error is raised
    failures = 0  # in a row; a session sets it to 0
    commands: tuple[Command, ...] = ()  # to be written
    due = 0  # replies that are not read yet

    def steps(self) -> Steps:
        """Connect and hand over events, for ever. An error that the driver meets is raised here, and ends the session.

        If the loop is left, LoopLeft is raised here, and one last step ends what was begun.
        """
        delay = 0.0
        try:
            while True:
                try:
                    yield Connect(delay)
                    yield from self.session()
                except Exception as error:
                    delay = self.delay_after(error)
                    self.commands, self.due = (), 0
        except LoopLeft as left:
            if self.due:  # not while the driver connects or reads
                with suppress(Exception, LoopLeft):
                    yield self.exchange(self.due)
            raise left.args[0] from None

    def delay_after(self, error: Exception) -> float:
        """Return the seconds to wait before the next session; raise what the caller has to fix."""
        name = str(error).partition(" ")[0]
        if name not in TRANSIENT_CODES:
            name = type(error).__name__
            if not isinstance(error, TRANSIENT) or isinstance(error, exceptions.AuthenticationError):
                raise error
        if self.failures % 30 == 0:  # about once a minute
            log.warning("Redis is unavailable (%s), trying again", name)
        self.failures += 1
        return backoff(self.failures - 1, BACKOFF_BASE, BACKOFF_CAP)

    def send(self, *command: Any) -> None:
        """Write the command with the next exchange."""
        self.commands += (command,)
        self.due += 1

    def exchange(self, replies: int, event: Event | None = None) -> Exchange:
        """Return the step that writes what was sent."""
        commands, self.commands = self.commands, ()
        self.due -= replies
        return Exchange(commands, replies, event)

    def ask(self, *command: Any) -> Steps:
        """Return the reply to the command; the replies that are due come before it."""
        self.send(*command)
        replies = yield self.exchange(self.due)
        return replies[-1]


def read_event(data: bytes, where: str) -> Event | None:
    """Return the event; None, and a warning, if it is none."""
    try:
        return Event.from_dict(fastjson.loads(data))
    except (ValueError, RecursionError) as error:
        log.warning("No event in %s, passed over: %s", where, error if data else "empty, or trimmed from the stream")
        return None
