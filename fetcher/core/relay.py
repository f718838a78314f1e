"""The loop: poll VK, hold what it answers, and commit it to the bus.

It asks the backlog what to do, and does it. Whatever fails is caught here, and here alone.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

from .. import metrics
from ..bus.bus import Bus
from ..errors import FatalError, RedisTimeout, RedisUnavailable, TransientError
from ..vk.longpoll import LongPoll
from .backlog import MAX_PENDING, MAX_UNBUILT, Backlog, error_of, is_after
from .backoff import backoff
from .batch import Batch, Commit, DeadLetter, Gap
from .entries import EntryBuilder

MIN_BACKOFF, MAX_BACKOFF = 0.2, 2.0  # seconds from the start of a step that failed to the next one
REMIND_INTERVAL = 60.0  # seconds between two log lines about the same failure
HEARTBEAT_INTERVAL = 1.0  # seconds
DRAIN_TIME = 1.0  # seconds of commits before VK is polled again, and of polls in a step that fails: VK forgets soon
NAMES_TIMEOUT = 30.0  # seconds that a batch waits for names and full messages that VK does not tell now
BURST = 100  # updates in one answer mean that VK has more: these are polled before names are asked for
QUICK_COMMIT = 0.25  # seconds: the next piece may be larger

REDIS_FAILED = (RedisUnavailable, FatalError)

log = logging.getLogger("fetcher")


class Relay:
    """Hand VK's updates over to the bus. Its state is the backlog; the rest can be had again."""

    def __init__(self, longpoll: LongPoll, entries: EntryBuilder, bus: Bus, poll_wait: int) -> None:
        """`poll_wait` is in seconds."""
        self.longpoll, self.entries, self.bus, self.poll_wait = longpoll, entries, bus, poll_wait
        self.backlog = Backlog()
        self.polled = False  # VK has answered since the last heartbeat
        self.beat_at = 0.0
        self.failures = 0  # steps that failed in a row
        self.last_logged: dict[str, float] = {}  # failures, and when they were logged last

    def run(self) -> Never:
        """Step for ever. Raise FatalError for what only the operator can fix, but not while updates are pending."""
        while True:
            begun = time.monotonic()
            errors = self.step()
            for error in errors:
                if isinstance(error, FatalError) and not self.backlog.pending:
                    raise error
                self.report(error)
            if errors:
                self.failures += 1
                pause = backoff(self.failures, MIN_BACKOFF, MAX_BACKOFF)
                time.sleep(max(0.0, begun + pause - time.monotonic()))
            elif self.failures:
                self.failures = 0
                self.last_logged.clear()
                log.warning("Recovered")

    def step(self) -> list[Exception]:
        """Commit for a second at most, then poll in any case, for VK forgets; return what failed on the way."""
        errors: list[Exception] = []
        with collect_errors(errors):
            self.backlog.start_ts = self.backlog.start_ts or self.longpoll.latest_ts()
            self.commit()
        if not any(isinstance(error, REDIS_FAILED) for error in errors):
            with collect_errors(errors):
                self.beat()
        redis_up = not any(isinstance(error, REDIS_FAILED) for error in errors)
        metrics.REDIS_UP.set(int(redis_up))
        if not redis_up:
            self.bus.reconnected = True  # even where the connection holds: Redis may not be the one that it was
        fatal = any(isinstance(error, FatalError) for error in errors)
        if (fatal and not self.backlog.pending) or not self.backlog.start_ts:
            return errors
        self.longpoll.shorten_timeouts(not redis_up)  # Redis may be back at any moment
        if not redis_up:
            with collect_errors(errors):
                self.build(use_cache=False)  # so that nothing is needed from VK when Redis is back
        with collect_errors(errors):
            self.poll(bool(errors))
        metrics.HELD_UPDATES.set(self.backlog.count)
        return errors

    def commit(self) -> None:
        """Commit what is pending, oldest first and in pieces."""
        deadline = time.monotonic() + DRAIN_TIME
        while self.backlog.pending or self.bus.reconnected:
            if self.bus.reconnected:  # maybe just now: the client replaces a closed connection without an error
                new = self.backlog.checkpoint is None
                self.backlog.connected(self.bus.checkpoint(self.backlog.start_ts if new else ""))
            else:
                self.commit_oldest()
            if time.monotonic() >= deadline:
                break

    def beat(self) -> None:
        """Set the heartbeat, now and then, if VK has answered a poll since the last one."""
        if self.polled and time.monotonic() >= self.beat_at:
            self.bus.beat()
            self.polled, self.beat_at = False, time.monotonic() + HEARTBEAT_INTERVAL

    def commit_oldest(self) -> None:
        """Commit one piece of what is pending, once it is built and nothing before it is missing."""
        if self.backlog.in_doubt:
            self.backlog.vk_is_at(self.longpoll.renew())
        elif self.backlog.hole is not None:
            self.fill(self.backlog.hole)  # perhaps nothing is pending any more
        elif self.backlog.pending[0].entries is None:
            self.build(use_cache=True)
        if self.bus.reconnected:
            return  # the cache was asked through a new connection: what this server lacks goes first
        if commit := self.backlog.next_commit():
            self.commit_piece(commit)

    def commit_piece(self, commit: Commit) -> None:
        """Commit one piece, and let the backlog know what the bus answered."""
        begun = time.monotonic()
        try:
            checkpoint = self.bus.commit(commit)
        except RedisTimeout:
            self.backlog.shrink_piece()
            raise
        took = time.monotonic() - begun
        if took > DRAIN_TIME:
            self.backlog.shrink_piece()
        elif took < QUICK_COMMIT:
            self.backlog.grow_piece(commit)
        if checkpoint != commit.until:
            self.entries.directory.forget()  # another fetcher may know newer titles
        metrics.COMMIT_SECONDS.observe(took)
        if checkpoint and (commit.kind == "late" or not is_after(commit.since, checkpoint)):
            count(commit)
        self.note_gap(commit, checkpoint)
        self.backlog.answered(commit, checkpoint)

    def note_gap(self, commit: Commit, checkpoint: str) -> None:
        """Log a gap, or a lost checkpoint, as it is on record."""
        if commit.kind not in ("gap", "restore") or checkpoint != commit.until:
            return
        reason = error_of(self.backlog.pending[0])
        if commit.kind == "restore":
            log.warning("%s: ts %s is stored again", reason, commit.until)
        else:
            log.warning("A gap from ts %s to %s: %s", commit.since, commit.until, reason)
            metrics.GAPS.inc()

    def fill(self, hole: str) -> None:
        """Ask VK for what is missing before what is pending."""
        answer = self.longpoll.poll(hole, 1)
        empty = isinstance(answer, Batch) and not answer.updates and answer.until == hole
        if empty and is_after(self.longpoll.renew(), hole):
            return  # VK is further than that, and says so with a new key only: it is asked again
        self.backlog.fill(answer, time.monotonic())
        self.require_progress(answer)

    def build(self, use_cache: bool) -> None:
        """Build the events of the oldest pending batches, with the names that VK tells within NAMES_TIMEOUT."""
        group, now = self.backlog.unbuilt(), time.monotonic()
        overdue = [one for one in group if now - one.held_since >= NAMES_TIMEOUT]
        self.entries.build(overdue or group, bool(overdue), use_cache)

    def poll(self, failing: bool) -> None:
        """Hold what VK has after what is held; poll on for a second while VK has more, or while something fails."""
        until = time.monotonic() + DRAIN_TIME
        enough = MAX_PENDING if self.backlog.pending else MAX_UNBUILT  # Redis is slow: VK must not forget meanwhile
        while not self.backlog.is_full:
            quick = failing or self.failures or self.backlog.pending
            answer = self.longpoll.poll(self.backlog.next_ts, 1 if quick else self.poll_wait)
            self.polled = True
            metrics.LAST_POLL.set(time.time())
            self.backlog.add(answer, time.monotonic())
            self.require_progress(answer)
            burst = isinstance(answer, Batch) and len(answer.updates) >= BURST
            more = burst and self.backlog.count <= enough - BURST
            if not (more or failing) or time.monotonic() >= until:
                break

    def require_progress(self, answer: Batch | Gap) -> None:
        """Raise TransientError for an answer that leads nowhere."""
        if answer.until == answer.since and (isinstance(answer, Gap) or answer.updates):
            raise TransientError("VK's long poll repeats itself without progress")

    def report(self, error: Exception) -> None:
        """Log a failure when it begins, and once a minute while it lasts."""
        now, sentence = time.monotonic(), str(error)
        if now - self.last_logged.get(sentence, -REMIND_INTERVAL) < REMIND_INTERVAL:
            return
        self.last_logged[sentence] = now
        if isinstance(error, FatalError):
            log.critical("%s: trying again, because %d updates are not on the bus yet", sentence, self.backlog.count)
        else:
            log.warning("%s: trying again", sentence)


@contextmanager
def collect_errors(errors: list[Exception]) -> Iterator[None]:
    """Keep what fails for later."""
    try:
        yield
    except (TransientError, FatalError) as error:
        errors.append(error)


def count(commit: Commit) -> None:
    """Count what has been committed."""
    if commit.kind in ("repeat", "restore", "gap"):
        return
    now = time.time()
    metrics.CHECKPOINT.set(now)
    for entry in commit.entries:
        if isinstance(entry, DeadLetter):
            metrics.DEAD_LETTERS.inc()
        elif entry.text:  # not the last one of the part before
            metrics.EVENTS.labels(type=entry.event_type).inc()
            if entry.date:
                metrics.PUBLISH_AGE.observe(now - entry.date)
