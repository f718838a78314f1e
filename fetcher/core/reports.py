"""What the loop reports to the operator: metrics, and log lines, at most one a minute about the same failure."""

import logging
import math
import time
from collections import Counter
from typing import Any

from ..errors import FatalError, TransientError
from .backlog import Pending
from .history import DeadLetter, Entry, Outcome, Position

REMIND_INTERVAL = 60.0  # seconds between two log lines about the same thing
SETTLE_TIME = 10.0  # seconds without a failure after which the next failure is logged at once
MAX_STALL = 30.0  # seconds without an update reaching the bus, although some are held, before the log says so

DEAD_LETTER = {
    "batch": "Dead letter: %(error)s",
    "gap": "A gap from ts %(since)s to %(until)s: %(error)s",
    "restore": "%(error)s: ts %(until)s is stored again",
}

log = logging.getLogger("fetcher")


class Reports:
    """Logs and counts what happens; never changes what the loop does."""

    doing = ""  # what the loop is trying right now, in words
    progress_at = math.inf  # when an update last reached the bus, or the first one was held; inf if nothing is pending
    recovered_at = math.inf  # when the latest failures ended; inf while they last, and before the first
    is_stalled = is_polling = is_failing = False

    def __init__(self, metrics: Any) -> None:
        """`metrics` are those of fetcher.metrics."""
        self.metrics = metrics
        self.last_logged: dict[str, float] = {}  # when each kind of message was last logged

    def polled(self, checkpoint: Position | None) -> None:
        """Note an answered poll; log the first one at which the bus is connected, so that the checkpoint is known."""
        self.metrics.last_poll.set(time.time())
        if checkpoint and not self.is_polling:
            self.is_polling = True
            log.info("Polling VK, checkpoint %s", checkpoint)

    def failed(self, error: Exception, held: int) -> None:
        """Log a failure when it begins, and once a minute while it lasts or keeps coming back."""
        if time.monotonic() - self.recovered_at >= SETTLE_TIME:
            self.last_logged.clear()
        self.recovered_at = math.inf
        what = f"{held} updates are" if held else "the checkpoint is"
        again = f"trying again, because {what} not on the bus yet"
        if isinstance(error, TransientError):
            sentence = str(error).partition(": ")[0]  # the rest is VK's wording, which may differ each time
            self._remind(logging.WARNING, sentence, "%s: trying again", error)
        elif isinstance(error, FatalError):
            self._remind(logging.CRITICAL, str(error), "%s: %s", error, again)
        else:
            self._remind(logging.CRITICAL, repr(error), "A bug in the fetcher; please report it: %s", again, bug=error)

    def recovered(self) -> None:
        """Log that nothing fails any more, but only if a failure has been logged since the last such line.

        On a link that breaks every few seconds, most failures are not logged, so their ends are not either.
        """
        if self.recovered_at == math.inf:
            self.recovered_at = time.monotonic()
            if self.is_failing:
                self.is_failing = False
                log.warning("Recovered")

    def given_up(self, failure: Exception) -> None:
        """Log that events are published without names or full messages."""
        self.recovered_at = math.inf
        level = logging.WARNING if isinstance(failure, TransientError) else logging.CRITICAL
        message = "%s: events are published without the names or full messages that VK does not return"
        self._remind(level, "given up", message, failure)

    def memory_is_full(self, held: int) -> None:
        """Log that VK is not polled, because memory is full."""
        self._remind(logging.WARNING, "full", "Memory is full with %d updates: VK is not polled", held)

    def committed(self, commit: Pending, outcome: Outcome, seconds: float) -> None:
        """Log and count what the bus has recorded: less than was committed, if another fetcher was faster."""
        now = time.time()
        self.metrics.commit_seconds.observe(seconds)
        events = [one for one in outcome.recorded if isinstance(one, Entry)]
        for event_type, count in Counter(one.event_type for one in events).items():
            self.metrics.events.labels(type=event_type).inc(count)
        # Look this up once: if metrics are off, a lookup takes as long as a call.
        observe_age = self.metrics.publish_age.observe
        for date in filter(None, (one.date for one in events)):
            observe_age(max(0.0, now - date))  # our clock may be behind VK's, and a sum must not fall
        for one in outcome.recorded:
            if isinstance(one, DeadLetter):
                self.metrics.dead_letters.inc()
                log.warning(DEAD_LETTER[commit.kind], one.fields)
        if outcome.left_out:
            self.metrics.dead_letters.inc()
            late = "%d updates from ts %s to %s came so late that they may be on the bus already: they are left out"
            log.warning(late, outcome.left_out, commit.since, commit.until)
        if commit.kind == "gap":
            self.metrics.gaps.inc(len(outcome.recorded))
        if outcome.checkpoint and outcome.checkpoint >= commit.since:
            self.progress_at = time.monotonic()
            self.metrics.checkpoint.set(now)

    def holds(self, held: int, is_pending: bool) -> None:
        """Log if no update has reached the bus for MAX_STALL although some are pending, and when that is over."""
        self.metrics.held_updates.set(held)
        now = time.monotonic()
        self.progress_at = min(self.progress_at, now) if is_pending else math.inf
        seconds = now - self.progress_at
        if seconds > MAX_STALL:
            self.is_stalled = True
            stalled = "%d updates are held, and none has reached the bus for %d s: %s"
            self._remind(logging.WARNING, "stalled", stalled, held, seconds, self.doing)
        elif self.is_stalled:
            self.is_stalled = False
            log.warning("Updates reach the bus again")

    def _remind(self, level: int, key: str, message: str, *values: object, bug: Exception | None = None) -> None:
        now = time.monotonic()
        if now - self.last_logged.get(key, -REMIND_INTERVAL) >= REMIND_INTERVAL:
            self.last_logged[key], self.is_failing = now, True
            log.log(level, message, *values, exc_info=bug)
