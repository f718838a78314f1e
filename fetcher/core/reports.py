"""What the loop reports to the operator: metrics and log lines. A failure that lasts is logged once a minute."""

import logging
import time
from typing import Any

from ..errors import FatalError, TransientError
from .backlog import Pending
from .history import DeadLetter, Outcome, Position

REMIND_INTERVAL = 60.0  # seconds between two log lines about the same thing
MAX_STALL = 30.0  # seconds without an update reaching the bus, although some are held, before the log says so

AGAIN = "trying again, because memory holds what is not on the bus yet"

DEAD_LETTER = {
    "batch": "Dead letter: %(error)s",
    "gap": "A gap from ts %(since)s to %(until)s: %(error)s",
    "restore": "%(error)s: ts %(until)s is stored again",
}

log = logging.getLogger("fetcher")


class Reports:
    """Logs and counts what happens; never changes what the loop does."""

    doing = ""  # what the loop is trying right now, in words
    progress_at = float("inf")  # when an update last reached the bus, or the first was held; inf if none is pending
    is_stalled = is_polling = False

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

    def failed(self, error: Exception) -> None:
        """Log a failure when it begins, and once a minute while it lasts."""
        if isinstance(error, TransientError):
            sentence = str(error).partition(": ")[0]  # the rest is VK's wording, which may differ each time
            self._remind(logging.WARNING, sentence, "%s: trying again", error)
        elif isinstance(error, FatalError):
            self._remind(logging.CRITICAL, str(error), "%s: %s", error, AGAIN)
        else:
            self._remind(logging.CRITICAL, repr(error), "A bug in the fetcher; please report it: %s", AGAIN, bug=error)

    def recovered(self) -> None:
        """Log that nothing fails any more, if a failure was logged; whatever fails next is logged at once."""
        others = {key: at for key, at in self.last_logged.items() if key in ("stalled", "full")}  # they may go on
        if others != self.last_logged:
            self.last_logged = others
            log.warning("Recovered")

    def given_up(self, failure: Exception) -> None:
        """Log that events are published without names or full messages."""
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
        for one in outcome.recorded:
            if isinstance(one, DeadLetter):
                self.metrics.dead_letters.inc()
                log.warning(DEAD_LETTER[commit.kind], one.fields)
            else:
                self.metrics.events.labels(type=one.event_type).inc()
                if one.date:
                    # Our clock may be behind VK's, and a sum must not fall.
                    self.metrics.publish_age.observe(max(0.0, now - one.date))
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
        self.progress_at = min(self.progress_at, now) if is_pending else float("inf")
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
            self.last_logged[key] = now
            log.log(level, message, *values, exc_info=bug)
