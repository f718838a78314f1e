"""Print what flows on the bus, for people: a line for each event, dead letter and gap. It only reads."""

import json
import logging
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Never

from ..bus.bus import Bus
from ..bus.connection import redis_errors
from ..errors import RedisUnavailable
from ..events import Event, Message

READ_INTERVAL = 0.25  # seconds between two looks at the streams
SCAN_INTERVAL = 10.0  # seconds between two searches for heartbeats, which go through all keys
RATE_WINDOW = 10.0  # seconds over which the rate is taken
MAX_ENTRIES = 1000  # of one stream, read at once
MAX_UPDATE = 300  # characters that are shown of an update
ERASE_LAST_LINE = "\x1b[A\r\x1b[K"

# What moves a terminal's cursor, colours it or turns text around: C0, C1, line separators, controls of direction.
CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
PRINTABLE = dict.fromkeys(CONTROLS, "\N{REPLACEMENT CHARACTER}") | dict.fromkeys(b"\t\n\r", " ")

log = logging.getLogger("fetcher")


def watch(bus: Bus, group: int) -> Never:
    """Print what is new on the bus, for ever.

    A terminal also gets a last line: events per second, and the fetchers that are alive, of this community or, if it
    is 0, of all. Raise RedisFatalError for a wrong password or a missing permission, BrokenPipeError if nobody reads
    the output.
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every terminal can show Cyrillic
    reader = Reader(bus, group)
    counts: deque[int] = deque(maxlen=round(RATE_WINDOW / READ_INTERVAL))  # events of the latest reads
    problem, last_line = None, ""
    while True:
        try:
            events, dead_letters = reader.read()
            error = ""
        except RedisUnavailable as unavailable:
            events, dead_letters, error = [], [], str(unavailable)
        if last_line:
            print(ERASE_LAST_LINE, end="", flush=True)
        if error and error != problem:
            log.warning("%s: trying again", error)
        elif error != problem:
            log.info("Watching the bus %r", bus.bus)
        problem = error
        for line in (*events, *dead_letters):
            print(line)
        counts.append(len(events))
        if sys.stdout.isatty():
            status = error or f"{sum(counts) / RATE_WINDOW:.1f} events/s, fetchers alive: {reader.alive or 'none'}"
            last_line = status[: shutil.get_terminal_size().columns - 1]
            print(last_line)
        sys.stdout.flush()
        time.sleep(READ_INTERVAL)


class Reader:
    """Reads what is new in the streams of events and dead letters, and which fetchers are alive."""

    def __init__(self, bus: Bus, group: int) -> None:
        """Read nothing yet."""
        self.bus, self.streams = bus, bus.keys[2:]
        self.heartbeats = f"{{{bus.bus}}}:alive:" + (f"{group}:" if group else "")
        self.last_ids: list[str] = []
        self.alive, self.scan_at = "", 0.0

    def read(self) -> tuple[list[str], list[str]]:
        """Return the lines of new events and of new dead letters. What is there at the first read is not new."""
        with redis_errors():
            client: Any = self.bus.client
            if not self.last_ids:
                newest = [client.xrevrange(stream, count=1) for stream in self.streams]
                self.last_ids = [entries[0][0] if entries else "0-0" for entries in newest]
            after = zip(self.streams, self.last_ids, strict=True)
            new = [client.xrange(stream, f"({last_id}", count=MAX_ENTRIES) for stream, last_id in after]
            if time.monotonic() >= self.scan_at:
                keys = client.scan_iter(f"{self.heartbeats}*", count=1000)
                self.alive = ", ".join(sorted(key.removeprefix(self.heartbeats) for key in keys)).translate(PRINTABLE)
                self.scan_at = time.monotonic() + SCAN_INTERVAL
        self.last_ids = [entries[-1][0] if entries else id for entries, id in zip(new, self.last_ids, strict=True)]
        events, dead_letters = new
        return [describe_entry(entry) for _, entry in events], [
            describe_dead_letter(entry) for _, entry in dead_letters
        ]


def describe_entry(fields: dict[str, str]) -> str:
    """Return the line of an entry of the stream."""
    try:
        return describe(Event.from_dict(json.loads(fields["event"])))
    except (LookupError, ValueError, RecursionError):
        return f"not an event: {to_json(fields)[:MAX_UPDATE]}".translate(PRINTABLE)


def describe_dead_letter(fields: dict[str, str]) -> str:
    """Return the line of a dead letter, or of a gap."""
    if "since" in fields:
        text = f"gap      from ts {fields['since']} to ts {fields.get('until')}: {fields.get('error')}"
    else:
        text = f"dead     letter: {fields.get('error')}: {fields.get('update', '')[:MAX_UPDATE]}"
    return text.translate(PRINTABLE)


def describe(event: Event) -> str:
    """Return the line of an event, without control characters."""
    where = f"in «{event.peer.name}»" if event.peer.cid else "in private"
    if event.message:
        what = " ".join(message_parts(event, event.message)) or "(no text)"
    elif event.button:
        what = f"pressed {to_json(event.button.payload)} below message {event.button.cmid}"
    elif event.reaction and event.reaction.rid:
        what = f"reaction {event.reaction.rid} to message {event.reaction.cmid}"
    elif event.reaction:
        what = f"took back the reaction to message {event.reaction.cmid}"
    else:
        what = to_json(event.raw.get("object"))[:MAX_UPDATE] if event.raw else ""
    return f"{event.event_type:8} {event.user.name} (@{event.user.nick}) {where}: {what}".translate(PRINTABLE)


def message_parts(event: Event, message: Message) -> Iterator[str]:
    """Yield what the message consists of."""
    if message.text:
        yield message.text
    if action := event.action:
        user = action.user and (action.user.name or str(action.user.uuid))
        yield f"[{' '.join(filter(None, (action.type, user, action.text)))}]"
    if message.attachments:
        yield f"[{', '.join(message.attachments)}]"
    if message.reply:
        yield f"(in reply to «{message.reply.text}»)"
    for forward in message.forward:
        yield f"(forwards «{forward.text}»)"
    if event.payload:
        yield f"(payload {to_json(event.payload)})"


def to_json(value: Any) -> str:
    """Return the value as JSON that people can read."""
    return json.dumps(value, ensure_ascii=False)
