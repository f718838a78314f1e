"""Durable events: the stream, read as one consumer of a group."""

import time
from collections import deque
from typing import Any

from .steps import Core, Steps, log, read_event

BLOCK_TIMEOUT = 1.0  # seconds to wait for new entries before looking for abandoned ones
READ_AHEAD_INTERVAL = 0.1  # seconds: as many entries are read at once as were handled in this time…
MAX_READ_AHEAD = 100  # …but no more than these
MAX_DEAD_LETTERS = 10_000  # kept for each group, approximately


class Durable(Core):
    """Reads entries, hands over their events and acknowledges them.

    Commands that nobody waits for are written at once, and their replies are read together with those of the next read:
    HINCRBY counts an attempt, as the last thing before an event is handed over; XACK and HDEL end it, before the next
    event is. So an event costs no round trip, and a crash repeats only the one in hand.
    https://redis.io/docs/latest/commands/xreadgroup/
    """

    def __init__(self, bus: str, group: str, consumer: str, start: str, idle: float, attempts: int | None) -> None:
        self.key, self.group, self.consumer, self.start = bus, group, consumer, start
        self.idle, self.attempts = idle, attempts
        self.attempts_key = f"{{{bus}}}:attempts:{group}"  # a hash: by entry id, how often its event was handed over
        self.is_known = False  # the group has been there
        self.is_missing = False  # the group is not there
        self.has_pending = True  # entries may be this consumer's own already
        self.next_look, self.cursor = 0.0, b"0-0"  # for abandoned entries: when, and from where on
        self.read_at = 0.0  # when entries were requested last
        self.handled_at: deque[float] = deque(maxlen=MAX_READ_AHEAD)  # the latest events
        self.unconfirmed: set[bytes] = set()  # entries whose XACK may be lost; it is written again after an error

    def session(self) -> Steps:
        """Hand over events until an error is raised."""
        self.has_pending = True
        if self.unconfirmed:
            self.acknowledge(*self.unconfirmed)
        if self.is_missing:
            self.send("XGROUP", "CREATE", self.key, self.group, "0" if self.is_known else self.start, "MKSTREAM")
        self.send("XCLAIM", self.key, self.group, self.consumer, 0, "0-0", "JUSTID")  # is it permitted?
        while True:
            yield from self.hand_over((yield from self.next_entries()))

    def delay_after(self, error: Exception) -> float:
        """Create the group at once if it is missing."""
        self.is_missing = str(error).startswith("NOGROUP")
        if self.is_missing and self.is_known:
            log.warning("The group %s was lost: created again, from the beginning of the stream", self.group)
        is_created = str(error).startswith("BUSYGROUP")  # another consumer was faster
        return 0 if self.is_missing or is_created else super().delay_after(error)

    def next_entries(self) -> Steps:
        """Return what this consumer has not acknowledged, else what is new; look for abandoned entries in between."""
        if self.has_pending:
            entries = yield from self.read("0")
            self.has_pending = bool(entries)
            return (yield from self.without_poison(entries))
        self.failures = 0
        if time.monotonic() >= self.next_look:
            return (yield from self.claim_abandoned())
        return (yield from self.read(">", "BLOCK", max(1, int(1000 * min(BLOCK_TIMEOUT, self.idle / 4)))))

    def read(self, after: str, *options: str | int) -> Steps:
        """Return the next entries: id, fields; None for the fields of one that is no longer in the stream."""
        command = "XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", self.read_ahead(), *options
        reply = yield from self.ask(*command, "STREAMS", self.key, after)
        self.is_known = True
        self.unconfirmed.clear()  # their replies came before this one
        return reply[0][1] if reply else []

    def read_ahead(self) -> int:
        """Return how many entries to request now."""
        self.read_at = time.monotonic()
        return sum(self.read_at - then < READ_AHEAD_INTERVAL for then in self.handled_at) or 1

    def claim_abandoned(self) -> Steps:
        """Make entries that were idle for too long this consumer's own. Redis looks for them ten at a time."""
        options = int(1000 * self.idle), self.cursor, "COUNT", self.read_ahead(), "JUSTID"
        reply = yield from self.ask("XAUTOCLAIM", self.key, self.group, self.consumer, *options)
        self.cursor, claimed, trimmed = reply
        self.has_pending = bool(claimed)
        if trimmed:
            log.warning("Trimmed from the stream before it was handled: %s", trimmed)
        if self.cursor == b"0-0" and not claimed:
            yield from self.forget_attempts()
            self.next_look = time.monotonic() + BLOCK_TIMEOUT  # now, or a distant Redis would never be read from
        return []

    def hand_over(self, entries: list[Any]) -> Steps:
        """Hand over one event after the other, and acknowledge it when the next one is requested.

        Others claim what has waited for `idle` since Redis sent it, which was not before it was requested. So what has
        waited for half of that, or for longer than reading ahead is meant to, is released and read again.
        """
        deadline = min(self.read_at + self.idle / 2, time.monotonic() + 2 * READ_AHEAD_INTERVAL)
        ready = deque(entries)
        try:
            while ready and time.monotonic() <= deadline:
                id, fields = ready.popleft()
                if event := read_event(event_field(fields), f"entry {id.decode()}"):
                    if self.attempts:
                        self.send("HINCRBY", self.attempts_key, id, 1)
                    yield self.exchange(0, event)
                    self.handled_at.append(time.monotonic())
                self.acknowledge(id)
                yield self.exchange(0)
        finally:  # also if the loop is left
            self.release(ready)

    def release(self, entries: deque[Any]) -> None:
        """Let any consumer claim what was read ahead, as if it had been idle for long, but not what one has claimed.

        That has been idle for less than what is ours, by half of `idle` at least.
        """
        if entries:
            idle = max(0, int(1000 * (time.monotonic() - self.read_at - self.idle / 2)))
            what = *(id for id, _ in entries), "IDLE", int(1000 * self.idle), "JUSTID"
            self.send("XCLAIM", self.key, self.group, self.consumer, idle, *what)
            self.has_pending = True

    def without_poison(self, entries: list[Any]) -> Steps:
        """Return the entries but for those whose handling has failed too often: these become dead letters.

        A dead letter may be there twice if the reply to it is lost.
        """
        if not self.attempts or not entries:
            return entries
        counts = yield from self.ask("HMGET", self.attempts_key, *(id for id, _ in entries))
        others = []
        for (id, fields), count in zip(entries, counts, strict=True):
            if not fields or int(count or 0) < self.attempts:
                others.append((id, fields))
                continue
            stream, limit = f"{{{self.key}}}:dead-letter:{self.group}", ("MAXLEN", "~", MAX_DEAD_LETTERS)
            yield from self.ask("XADD", stream, *limit, "*", "event", event_field(fields), "id", id, "attempts", count)
            log.warning("Dead letter: entry %s of %s, handling has failed %d times", id.decode(), self.key, int(count))
            self.acknowledge(id)
        return others

    def forget_attempts(self) -> Steps:
        """Take an entry at random; forget its attempts if it is pending no more: acknowledged by others, or trimmed."""
        id = self.attempts and (yield from self.ask("HRANDFIELD", self.attempts_key))
        if id and not (yield from self.ask("XPENDING", self.key, self.group, id, id, 1)):
            self.send("HDEL", self.attempts_key, id)

    def acknowledge(self, *ids: bytes) -> None:
        """Acknowledge entries, and forget their attempts."""
        self.unconfirmed.update(ids)
        self.send("XACK", self.key, self.group, *ids)
        if self.attempts:
            self.send("HDEL", self.attempts_key, *ids)


def event_field(fields: list[bytes] | None) -> bytes:
    """Return the JSON in the fields of an entry; b"" if it has none, or was trimmed from the stream."""
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(b"event", b"") if fields else b""
