"""The loop: poll VK, hold its answers, and commit them to the bus.

The backlog decides what comes next, and the loop does it, through the interfaces of VK's side and the bus below. Errors
of VK and Redis are raised up to here, where they are logged and the step is tried again.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Never, Protocol

from .. import errors
from .backlog import MAX_UNBUILT, RESTARTED, Backlog, Pending
from .backoff import backoff
from .history import Answer, Name, Outcome, Position
from .reports import Reports

MIN_BACKOFF, MAX_BACKOFF = 0.2, 2.0  # seconds from the start of a step that failed to the next one
HEARTBEAT_INTERVAL = 10.0  # seconds from one heartbeat to the poll whose answer needs another one
DRAIN_TIME = 1.0  # seconds of commits before the next poll, and of polls before the next commit: VK forgets soon
NAMES_TIMEOUT = 30.0  # seconds that a batch waits for names and full messages that VK does not return
IMPATIENT_TIME = 300.0  # seconds after such a wait in which no other batch waits


class LongPoll(Protocol):
    """Reads VK's history. Methods raise TransientError or FatalError."""

    def renew(self) -> int: ...
    def poll(self, ts: int, wait: int) -> Answer: ...


class Bus(Protocol):
    """Publishes entries and keeps the checkpoint; `names` and `cache_names` serve the builder of entries.

    Methods raise RedisUnavailable, RedisFatalError or ConnectionReplaced.
    """

    is_connected: bool
    names_ttl: int

    def disconnect(self) -> None: ...
    def read(self, ids: list[str], start: Position | None) -> tuple[Position | None, set[str]]: ...
    def beat(self) -> None: ...
    def commit(self, commit: Pending) -> Outcome: ...
    def names(self, ids: Collection[int]) -> dict[int, Name]: ...
    def cache_names(self, names: Mapping[int, Name]) -> None: ...


# Builds the entries of batches; see vk/entries.py.
Build = Callable[[Sequence[Pending], bool], errors.Failure]


class Relay:
    """Moves VK's updates to the bus. All that must not be lost is in the backlog; the rest can be found out again."""

    def __init__(self, longpoll: LongPoll, build: Build, bus: Bus, poll_wait: int, metrics: Any) -> None:
        """`poll_wait` is in seconds, `metrics` are those of fetcher.metrics."""
        self.longpoll, self.build_entries, self.bus, self.poll_wait = longpoll, build, bus, poll_wait
        self.reports = Reports(metrics)
        self.backlog = Backlog()
        self.polled_at = self.beat_at = 0.0  # when VK last answered a poll; an answer after `beat_at` needs a heartbeat
        self.given_up: Exception | None = None  # why the latest events lack names or full messages
        # For IMPATIENT_TIME from then on, batches do not wait for names and full messages. Long ago if none has waited.
        self.give_up_at = -IMPATIENT_TIME
        self.failures = 0  # steps that failed in a row

    def run(self) -> Never:
        """Repeat steps forever, with a back-off after failures.

        Raise what only the operator or a developer can fix, but not while updates are pending.
        """
        while True:
            begun = time.monotonic()
            if self.step():
                self.failures = 0
                if not self.given_up:
                    self.reports.recovered()
            else:
                self.failures += 1
                pause = backoff(self.failures, MIN_BACKOFF, MAX_BACKOFF)
                time.sleep(max(0.0, begun + pause - time.monotonic()))

    def step(self) -> bool:
        """Commit for about a second, then poll VK; return whether nothing failed.

        VK is polled even if the commit fails, because VK soon forgets updates that nobody fetches.
        """
        if not self.backlog.checkpoint_from and self.attempt(lambda: self.backlog.start(self.longpoll.renew())):
            return False
        begun = time.monotonic()
        failure = self.attempt(self.commit)
        self.reports.holds(self.backlog.count, bool(self.backlog.pending))
        redis_failed = isinstance(failure, errors.RedisUnavailable | errors.RedisFatalError)
        self.reports.metrics.redis_up.set(int(not redis_failed))
        if redis_failed:
            self.bus.disconnect()  # Redis may have lost writes, or its address may lead to another server by now
            self.attempt(self.build)  # meanwhile, so that commits need not wait for VK when Redis is back
        return not self.attempt(lambda: self.poll(bool(failure), time.monotonic() - begun)) and not failure

    def attempt(self, action: Callable[[], None]) -> Exception | None:
        """Run the action; if it fails, log the error and return it.

        Raise what only the operator or a developer can fix, but not while updates are pending.
        """
        try:
            action()
        except Exception as error:
            if not isinstance(error, errors.TransientError) and not self.backlog.pending:
                raise
            self.reports.failed(error)
            return error
        return None

    # Redis

    def commit(self) -> None:
        """Set the heartbeat if it is due, then commit pending pieces, oldest first, until DRAIN_TIME is over.

        If the connection is replaced or the checkpoint turns out to be lost, do this once more. If the latest events
        lack names or full messages because of a fatal error, raise that error when nothing is pending any more.
        """
        for _ in range(2):
            with suppress(errors.ConnectionReplaced):
                if not self.bus.is_connected:
                    self.connect()
                if self.polled_at > self.beat_at:
                    self.bus.beat()
                    self.beat_at = time.monotonic() + HEARTBEAT_INTERVAL
                # The time counts from here, not from before connecting. Otherwise, on a slow link that breaks during
                # each poll, connecting could use up all of it in every step.
                begun = time.monotonic()
                while self.backlog.pending and self.bus.is_connected and time.monotonic() < begun + DRAIN_TIME:
                    if self.backlog.is_missing_updates:
                        self.fill()
                    elif commit := self.backlog.next_commit():
                        self.commit_piece(commit)
                    else:
                        self.build()
            if self.bus.is_connected:
                break
        if isinstance(self.given_up, errors.FatalError) and not self.backlog.pending:
            raise self.given_up

    def connect(self) -> None:
        """Read the checkpoint and which ids of the replay buffer the bus lacks."""
        self.reports.doing = "asking Redis which of the latest updates it has"
        start = self.backlog.checkpoint if self.backlog.checkpoint_from == "VK" else None
        checkpoint, missing = self.bus.read([id for one in self.backlog.replay for id in one.ids], start)
        if start and self.backlog.pending and checkpoint not in (None, start):
            self.backlog.rebase(checkpoint, self.longpoll.renew())
        self.backlog.connected(checkpoint, missing)
        self.bus.is_connected = True

    def commit_piece(self, commit: Pending) -> None:
        """Commit one piece, and give the bus's answer to the backlog."""
        self.reports.doing = f"committing {commit.count} updates, {commit.size} bytes"
        begun = time.monotonic()
        try:
            outcome = self.bus.commit(commit)
        except errors.RedisUnavailable as error:
            self.backlog.piece.failed(commit.count, commit.size, timed_out=isinstance(error, errors.RedisTimeout))
            raise
        self.backlog.piece.succeeded(commit.count, commit.size)
        self.reports.committed(commit, outcome, time.monotonic() - begun)
        # If Redis has lost something, look up all that it lacks, as on a new connection.
        self.bus.is_connected = self.backlog.answered(commit, outcome)

    def fill(self) -> None:
        """Put what is missing before what is pending: from VK, otherwise a gap.

        Raise TransientError if VK is silent at the checkpoint though its new key has a later ts, or repeats itself.
        """
        since = self.backlog.checkpoint
        if since.epoch < self.backlog.pending[0].since.epoch:  # VK no longer has anything of an earlier epoch
            self.backlog.skip(RESTARTED)
            return
        self.reports.doing = f"asking VK for what is missing after ts {since}"
        answer = self.longpoll.poll(since.ts, 1)
        if answer.until == since.ts and not answer.updates and self.longpoll.renew() > since.ts:
            raise errors.TransientError("VK's long poll is silent, though its new key has a later ts")
        self.backlog.fill(answer)
        require_progress(since.ts, answer)

    # VK

    def build(self) -> None:
        """Build the events of the oldest pending batches.

        Batches wait at most NAMES_TIMEOUT for names and full messages that VK does not return, and are then built
        without them. For IMPATIENT_TIME after that, no batch waits, so most are not delayed by an API outage.
        """
        if group := self.backlog.unbuilt():
            self.reports.doing = "looking up names"
            now = time.monotonic()
            if now >= self.give_up_at + IMPATIENT_TIME:
                self.give_up_at = now + NAMES_TIMEOUT
            self.given_up = self.build_entries(group, now >= self.give_up_at)
            if self.given_up:
                self.reports.given_up(self.given_up)
            if now < self.give_up_at:  # nothing is lacking
                self.give_up_at = -IMPATIENT_TIME

    def poll(self, failing: bool, commit_time: float) -> None:
        """Poll VK from the end of what is pending, and hold its answers.

        VK may have more updates than it puts into one answer, and soon forgets those that nobody fetches. So one step
        may poll several times, for at most DRAIN_TIME after its first answer:

        - If a commit failed or something is still pending, until an answer is empty.
        - Otherwise, while answers are full and fewer than MAX_UNBUILT updates are pending. An answer is full if it has
          at least half as many updates as the largest one of this step, and took less time than the commits before it.
          The further polls do not wait for new updates, and one lookup then serves several answers.
        """
        hurried = bool(failing or self.backlog.pending)
        wait = 1 if hurried or self.failures else self.poll_wait
        largest, poll_until = 0, 0.0  # the time is set at the first answer, because VK may be far away
        while not self.backlog.is_full:
            begun, ts = time.monotonic(), self.backlog.next.ts
            answer = self.longpoll.poll(ts, wait)
            now, count = time.monotonic(), len(answer.updates)
            self.polled_at, poll_until = now, poll_until or now + DRAIN_TIME
            self.reports.polled(self.backlog.checkpoint if self.bus.is_connected else None)
            self.backlog.add(answer)
            require_progress(ts, answer)
            largest = max(largest, count)
            is_full = 2 * count >= largest and now - begun < commit_time
            goes_on = hurried or (is_full and self.backlog.count < MAX_UNBUILT)
            if not count or not goes_on or now >= poll_until:
                return
            wait = int(hurried)
        self.reports.memory_is_full(self.backlog.count)


def require_progress(ts: int, answer: Answer) -> None:
    """Raise TransientError if the answer has updates but ends at `ts`, where it began: VK would repeat it."""
    if answer.updates and answer.until == ts:
        raise errors.TransientError("VK's long poll repeats itself without progress")
