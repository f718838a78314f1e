"""Print what arrives on the bus in readable form: a line for each event, dead letter and gap. Read-only."""

import shutil
import sys
import time
from contextlib import suppress
from typing import Any, Never

from ..bus.bus import Bus
from ..bus.connection import redis_errors
from ..config import Config
from ..errors import RedisUnavailable
from ..events import Event
from ..fastjson import loads
from ..logs import log, print_line

READ_INTERVAL = 0.25  # seconds between two reads of the streams
STATUS_INTERVAL = 5.0  # seconds over which the rate is averaged, and between two searches for heartbeats or for Redis
MAX_ENTRIES = 1000  # entries of one stream that are read at once
MAX_VALUE = 300  # characters of a field that are shown
ERASE_LAST_LINE = "\x1b[A\r\x1b[K"

# Characters that move a terminal's cursor, change its colours or reverse text: C0, C1, line separators, bidi controls.
CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
PRINTABLE = dict.fromkeys(CONTROLS, "\N{REPLACEMENT CHARACTER}") | dict.fromkeys(b"\t\n\r", " ")


def watch(settings: Config) -> Never:
    """Print what is new on the bus, forever, and wait for Redis if it fails.

    Raise RedisFatalError for a wrong password or a missing permission.
    """
    bus, last_ids = Bus(settings), dict[str, str]()
    while True:
        try:
            with redis_errors():
                follow(bus, last_ids)
        except RedisUnavailable as error:
            log.warning("%s: trying again", error)
            time.sleep(STATUS_INTERVAL)


def follow(bus: Bus, last_ids: dict[str, str]) -> Never:
    """Print what is new on the bus until Redis fails; `last_ids` holds the id of each stream's latest known entry.

    On a terminal, the last line shows the events per second and the fetchers that are alive.
    """
    client: Any = bus.client
    for stream in bus.keys[2:]:
        newest = client.xrevrange(stream, count=1)
        last_ids.setdefault(stream, newest[0][0] if newest else "0-0")
    log.info("Watching the bus %r", bus.name)
    count, status, status_at, erase = 0, "", 0.0, ""
    while True:
        if time.monotonic() >= status_at:
            status = f"{count / STATUS_INTERVAL:.1f} events/s, fetchers alive: {fetchers(bus)}"
            count, status_at = 0, time.monotonic() + STATUS_INTERVAL
        for stream, last in last_ids.items():
            for id, fields in client.xrange(stream, f"({last}", count=MAX_ENTRIES):
                print_line(erase + describe_entry(fields))  # in place of the status line, if that is the last line
                last_ids[stream], erase = id, ""
                count += "event" in fields
        if sys.stdout and sys.stdout.isatty():
            print_line(erase + status[: shutil.get_terminal_size().columns - 1])
            erase = ERASE_LAST_LINE
        time.sleep(READ_INTERVAL)


def fetchers(bus: Bus) -> str:
    """Return the fetchers that have a heartbeat, each as its community and host."""
    found = [key.rpartition(":alive:")[2] for key in bus.client.scan_iter(f"{bus.prefix}:alive:*", count=1000)]
    return (", ".join(sorted(found)) or "none").translate(PRINTABLE)


def describe_entry(fields: dict[str, str]) -> str:
    """Return the line for a stream entry: an event, or the fields of a gap or dead letter."""
    with suppress(ValueError, RecursionError):
        if "event" in fields:
            return describe(Event.from_dict(loads(fields["event"].encode())))
    details = (f"{name}: {value[:MAX_VALUE]}" for name, value in sorted(fields.items()))
    kind = "gap" if "since" in fields else "no event" if "event" in fields else "dead letter"
    return f"{kind}: {', '.join(details)}".translate(PRINTABLE)


def describe(event: Event) -> str:
    """Return the line for an event, without control characters."""
    where = f"in «{event.peer.name}»" if event.peer.cid else "in private"
    message, button, reaction, action = event.message, event.button, event.reaction, event.action
    parts = [
        message and message.text,
        message and message.attachments and f"[{', '.join(message.attachments)}]",
        action and f"[{' '.join(filter(None, (action.type, action.user and action.user.name, action.text)))}]",
        event.payload and f"(payload {event.payload})",
        button and f"pressed {button.payload} (message {button.cmid})",
        reaction and f"reaction {reaction.rid or 'removed'} (message {reaction.cmid})",
    ]
    fallback = "(no text)" if message else str((event.raw or {}).get("object"))[:MAX_VALUE]
    what = " ".join(part for part in parts if part) or fallback
    return f"{event.event_type:8} {event.user.name} (@{event.user.nick}) {where}: {what}".translate(PRINTABLE)
