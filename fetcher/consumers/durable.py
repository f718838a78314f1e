"""Durable events: the stream, read as one consumer of a group."""

import time
from collections.abc import AsyncGenerator
from typing import Any

from ..events import Event
from ..logs import log
from .consumer import Consumer, read_event

BLOCK_TIMEOUT = 1.0  # seconds to wait for new entries before looking for abandoned ones
READ_AHEAD_INTERVAL = 0.1  # seconds; as many entries are read at once as are handled in this time…
MAX_READ_AHEAD = 100  # …but no more than this
MAX_DEAD_LETTERS = 10_000  # approximately, per group


class Durable(Consumer):
    """Reads entries, hands over their events and acknowledges them.

    XACK and HDEL complete an event, and HINCRBY counts the attempt at the next one. They are written together, right
    before the next event is handed over, and their replies are read together with the next entries. So an event costs
    no round trip, and if the consumer crashes, only the current event is delivered again.
    https://redis.io/docs/latest/commands/xreadgroup/
    """

    def __init__(self, bus: str, group: str, consumer: str, start: str, idle: float, attempts: int | None) -> None:
        self.key, self.group, self.consumer, self.start = bus, group, consumer, start
        self.idle, self.attempts = idle, max(0, attempts or 0)  # 0: no limit
        self.attempts_key = f"{{{bus}}}:attempts:{group}"  # a hash of entry id: how often its event was handed over
        self.is_known = self.is_missing = False  # whether the group has existed, and whether it is missing now
        self.cursor = b"0-0"  # where the next look for abandoned entries continues
        self.unconfirmed: set[bytes] = set()  # entries whose XACK may be lost, and is sent again after an error

    async def session(self) -> AsyncGenerator[Event, None]:
        """Yield one event after the other, and acknowledge each when the next one is requested.

        Entries that have waited for longer than reading ahead should take are released and read again. So are those
        that have waited for half of `idle`, because another consumer may claim an entry `idle` seconds after Redis has
        sent it. The first entry that was read again is handed over even if that has taken as long, because Redis may be
        far away.

        Each read asks for as many entries as are handled in `READ_AHEAD_INTERVAL`, but for at most twice as many as
        were handled after the read before it.
        """
        self.next_look = 0.0  # look at once: this consumer may have unacknowledged entries
        self.count = 1  # entries per read; few at first, as the latest read may have been too large for the link
        if self.unconfirmed:
            self.acknowledge(*self.unconfirmed)
        if self.is_missing:
            self.redis.send("XGROUP", "CREATE", self.key, self.group, "0" if self.is_known else self.start, "MKSTREAM")
        self.redis.send("XCLAIM", self.key, self.group, self.consumer, 0, "0-0", "JUSTID")  # raises now if forbidden
        while True:
            entries, handled = await self.next_entries(), 0
            begun = time.monotonic()
            deadline = min(self.stale_at, begun + 2 * READ_AHEAD_INTERVAL)
            try:
                for id, fields in entries:
                    handled += 1
                    if event := read_event(event_field(fields), f"entry {id.decode()}"):
                        if self.attempts:
                            self.redis.send("HINCRBY", self.attempts_key, id, 1)
                        await self.redis.flush()
                        yield event
                    self.acknowledge(id)
                    await self.redis.sleep(0)  # let other tasks run, even if the handler never awaits; read replies
                    if time.monotonic() > deadline:
                        break
            finally:  # even if the caller leaves its loop
                self.release([id for id, _ in entries[handled:]])
            in_time = int(handled * READ_AHEAD_INTERVAL / max(time.monotonic() - begun, 0.001))
            self.count = max(1, min(in_time, 2 * handled, MAX_READ_AHEAD))

    def delay_after(self, error: Exception, code: str) -> float:
        """Return the seconds to wait before the next session; a missing group is created at once."""
        # This stays True until a read succeeds, because the session that should create the group may fail, too.
        self.is_missing = code == "NOGROUP" or (self.is_missing and code != "BUSYGROUP")
        if code == "NOGROUP" and self.is_known:
            log.warning("The group %s was lost: created again, from the beginning of the stream", self.group)
        # BUSYGROUP: another consumer has just created the group.
        return 0 if code in ("NOGROUP", "BUSYGROUP") else super().delay_after(error, code)

    async def next_entries(self) -> Any:
        """Return the entries that this consumer has not acknowledged, or new ones if there are none, as [id, fields].

        Abandoned entries are claimed first, and so are among the unacknowledged. Claiming and reading them takes one
        round trip, because a connection may be short-lived. One XAUTOCLAIM examines at most ten times as many entries
        as it may claim. Until this search has reached the end of the pending entries, reads do not wait for new ones.
        """
        if time.monotonic() >= self.next_look:
            options = int(1000 * self.idle), self.cursor, "COUNT", self.count, "JUSTID"
            self.redis.send("XAUTOCLAIM", self.key, self.group, self.consumer, *options)
            # Pending entries are read each time, because a read of the previous connection may reach Redis late, and
            # assign entries to this consumer that it never receives.
            *_, (self.cursor, _, *trimmed), entries = await self.read("0")
            if any(trimmed):
                log.warning("Trimmed from the stream before it was handled: %s", *trimmed)
                self.acknowledge(*trimmed[0])  # forget their attempts
            if entries:
                if self.attempts:
                    await self.move_to_dead_letters(entries)
                return entries
            if self.cursor == b"0-0":
                # Counted from now: with a distant Redis, each read would otherwise be preceded by another look.
                self.next_look = time.monotonic() + BLOCK_TIMEOUT
        block = "BLOCK", max(1, int(1000 * min(BLOCK_TIMEOUT, self.idle / 4)))
        *_, entries = await self.read(">", *(block if self.cursor == b"0-0" else ()))
        if time.monotonic() > self.stale_at:  # read them again, because another consumer may have claimed them
            self.next_look, entries = 0.0, []
        return entries

    async def read(self, after: str, *options: str | int) -> list[Any]:
        """Read the next entries; return them after the replies to the commands queued before."""
        self.stale_at = time.monotonic() + self.idle / 2
        command = "XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", self.count, *options
        self.redis.send(*command, "STREAMS", self.key, after)
        *replies, streams = await self.redis.replies()
        self.is_known, self.is_missing, self.failures = True, False, 0
        self.unconfirmed.clear()  # the replies to their XACKs have arrived before this one
        return [*replies, streams[0][1] if streams else []]

    async def move_to_dead_letters(self, entries: list[Any]) -> None:
        """Remove the entries whose handling has failed too often, and record them as dead letters.

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
        """Let any consumer claim entries that were read ahead, unless another one may already have claimed them."""
        if ids:
            self.next_look = 0.0
            if time.monotonic() < self.stale_at:
                options = 0, *ids, "IDLE", int(1000 * self.idle), "JUSTID"
                self.redis.send("XCLAIM", self.key, self.group, self.consumer, *options)

    def acknowledge(self, *ids: bytes) -> None:
        """Acknowledge entries, and forget their attempts."""
        self.unconfirmed.update(ids)
        self.redis.send("XACK", self.key, self.group, *ids)
        if self.attempts:
            self.redis.send("HDEL", self.attempts_key, *ids)


def event_field(fields: list[bytes] | None) -> bytes:
    """Return the JSON in the fields of an entry; b"" if it has none or was trimmed from the stream."""
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(b"event", b"") if fields else b""
