"""Durable events: the stream, read as one consumer of a group."""

import time
from collections import deque
from collections.abc import AsyncGenerator
from itertools import accumulate
from typing import Any

from ..events import Event
from ..logs import log
from .consumer import Consumer, read_event

BLOCK_TIMEOUT = 1.0  # seconds to wait for new entries before looking for abandoned ones
READ_AHEAD_INTERVAL = 0.1  # seconds: as many entries are read at once as were handled in this time lately…
MAX_READ_AHEAD = 100  # …but no more than these
MAX_DEAD_LETTERS = 10_000  # kept for each group, approximately

Entries = Any  # a list of ids and fields; None for the fields of one that is no longer in the stream


class Durable(Consumer):
    """Reads entries, hands over their events and acknowledges them.

    XACK and HDEL end an event, HINCRBY counts the attempt at the next one: they are written together, right before the
    next one is handed over, and their replies are read with those of the next read. So an event costs no round trip,
    and a crash repeats only the current event. https://redis.io/docs/latest/commands/xreadgroup/
    """

    def __init__(self, bus: str, group: str, consumer: str, start: str, idle: float, attempts: int | None) -> None:
        self.key, self.group, self.consumer, self.start = bus, group, consumer, start
        self.idle, self.attempts = idle, max(0, attempts or 0)  # 0: without limit
        self.attempts_key = f"{{{bus}}}:attempts:{group}"  # a hash: by entry id, how often its event was handed over
        self.is_known = False  # the group has existed
        self.is_missing = False  # the group does not exist
        self.cursor = b"0-0"  # where the look for abandoned entries goes on
        self.read_ahead = READ_AHEAD_INTERVAL  # or the time of a round trip, if that is longer
        self.durations: deque[float] = deque(maxlen=MAX_READ_AHEAD)  # of handling the latest entries, in seconds
        self.count, self.max_entries = 1, MAX_READ_AHEAD  # entries to read, and the most that the link brings in time
        self.unconfirmed: set[bytes] = set()  # entries whose XACK may be lost; it is written again after an error

    async def session(self) -> AsyncGenerator[Event, None]:
        """Yield one event after the other, and acknowledge it when the next one is requested.

        Others may claim an entry when `idle` has passed since Redis sent it, which was after it was requested. So what
        has waited for half of that, or for longer than reading ahead should take, is released and read again. Then the
        first one is handed over even if that takes long: Redis may be far away.
        """
        self.next_look = 0.0  # it may have entries that it did not acknowledge: look at once
        if self.unconfirmed:
            self.acknowledge(*self.unconfirmed)
        if self.is_missing:
            self.redis.send("XGROUP", "CREATE", self.key, self.group, "0" if self.is_known else self.start, "MKSTREAM")
        self.redis.send("XCLAIM", self.key, self.group, self.consumer, 0, "0-0", "JUSTID")  # raises if forbidden
        while True:
            ready = deque(await self.next_entries())
            stale_at = self.read_at + self.idle / 2
            deadline = min(stale_at, time.monotonic() + 2 * self.read_ahead)
            if ready and time.monotonic() > stale_at:
                self.max_entries = max(1, len(ready) // 2)
            elif len(ready) == self.max_entries < MAX_READ_AHEAD:
                self.max_entries += 1
            is_due = self.is_pending  # the first one, read again
            try:
                while ready and ((begun := time.monotonic()) <= deadline or is_due):
                    is_due = False
                    id, fields = ready.popleft()
                    if event := read_event(event_field(fields), f"entry {id.decode()}"):
                        if self.attempts:
                            self.redis.send("HINCRBY", self.attempts_key, id, 1)
                        await self.redis.flush()
                        yield event
                    self.acknowledge(id)
                    await self.redis.sleep(0)  # other tasks get their turn, even if the handler waits for nothing
                    self.durations.appendleft(time.monotonic() - begun)
            finally:  # also if the loop is left
                self.release([id for id, _ in ready])

    def delay_after(self, error: Exception, code: str) -> float:
        """Create the group at once if it is missing."""
        # Until an entry is read: the connection that was to create it may fail, too.
        self.is_missing = code == "NOGROUP" or (self.is_missing and code != "BUSYGROUP")
        if code == "NOGROUP" and self.is_known:
            log.warning("The group %s was lost: created again, from the beginning of the stream", self.group)
        if self.failures or isinstance(error, TimeoutError):  # what was to be read may have been too much for the link
            self.max_entries = max(1, self.count // 2)
        # BUSYGROUP: another consumer was faster.
        return 0 if code in ("NOGROUP", "BUSYGROUP") else super().delay_after(error, code)

    async def next_entries(self) -> Entries:
        """Return what this consumer has not acknowledged, which includes what was abandoned, else what is new.

        Abandoned entries are claimed and read in one round trip, for a connection may be short-lived; Redis looks at
        ten times as many as it might claim. What is new is not waited for before that look has come to its end.
        """
        fitting = sum(total <= self.read_ahead for total in accumulate(self.durations)) or 1
        self.count = min(fitting, self.max_entries)
        if time.monotonic() >= self.next_look:
            if self.attempts:
                self.redis.send("HRANDFIELD", self.attempts_key)
            options = int(1000 * self.idle), self.cursor, "COUNT", self.count, "JUSTID"
            self.redis.send("XAUTOCLAIM", self.key, self.group, self.consumer, *options)
            # What is pending, each time: a request of the last connection may have reached Redis late.
            *replies, (self.cursor, _, *trimmed), entries = await self.read("0")
            if any(trimmed):
                log.warning("Trimmed from the stream before it was handled: %s", *trimmed)
            if entries:
                if self.attempts:
                    await self.set_poison_aside(entries)
                return entries
            self.read_ahead = max(READ_AHEAD_INTERVAL, time.monotonic() - self.read_at)
            if self.cursor == b"0-0":
                self.next_look = time.monotonic() + BLOCK_TIMEOUT  # now, or a distant Redis would never be read from
                # An entry at random, which may be pending no more: acknowledged by others, or trimmed.
                id = self.attempts and replies[-1]
                if id and not await self.redis.ask("XPENDING", self.key, self.group, id, id, 1):
                    self.redis.send("HDEL", self.attempts_key, id)
        block = "BLOCK", max(1, int(1000 * min(BLOCK_TIMEOUT, self.idle / 4)))
        *_, entries = await self.read(">", *(block if self.cursor == b"0-0" else ()))
        return entries

    async def read(self, after: str, *options: str | int) -> list[Any]:
        """Return the replies to what was sent before, and the next entries."""
        self.read_at, self.is_pending = time.monotonic(), after == "0"
        command = "XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", self.count, *options
        self.redis.send(*command, "STREAMS", self.key, after)
        *replies, streams = await self.redis.replies()
        self.is_known, self.is_missing, self.failures = True, False, 0
        self.unconfirmed.clear()  # their replies came before this one
        return [*replies, streams[0][1] if streams else []]

    async def set_poison_aside(self, entries: Entries) -> None:
        """Remove those entries whose handling has failed too often: they become dead letters.

        A dead letter may be recorded twice if Redis's reply is lost.
        """
        stream = f"{{{self.key}}}:dead-letter:{self.group}"
        counts = await self.redis.ask("HMGET", self.attempts_key, *(id for id, _ in entries))
        for (id, fields), count in zip(list(entries), counts, strict=True):
            if fields and (times := int(count or 0)) >= self.attempts:
                letter = "event", event_field(fields), "id", id, "attempts", times
                await self.redis.ask("XADD", stream, "MAXLEN", "~", MAX_DEAD_LETTERS, "*", *letter)
                log.warning("Dead letter: entry %s of %s, handling has failed %d times", id.decode(), self.key, times)
                self.acknowledge(id)
                entries.remove([id, fields])

    def release(self, ids: list[bytes]) -> None:
        """Let any consumer claim what was read ahead, as if it had been idle for long; leave what another has claimed.

        A claimed entry has been idle for less time than ours, by at least half of `idle`.
        """
        if ids:
            idle = max(0, int(1000 * (time.monotonic() - self.read_at - self.idle / 2)))
            options = idle, *ids, "IDLE", int(1000 * self.idle), "JUSTID"
            self.redis.send("XCLAIM", self.key, self.group, self.consumer, *options)
            self.next_look = 0.0

    def acknowledge(self, *ids: bytes) -> None:
        """Acknowledge entries, and forget their attempts."""
        self.unconfirmed.update(ids)
        self.redis.send("XACK", self.key, self.group, *ids)
        if self.attempts:
            self.redis.send("HDEL", self.attempts_key, *ids)


def event_field(fields: list[bytes] | None) -> bytes:
    """Return the JSON in the fields of an entry; b"" if it has none, or was trimmed from the stream."""
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(b"event", b"") if fields else b""
