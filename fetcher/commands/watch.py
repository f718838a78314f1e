"""What flows on the bus, for people: a line for each event, each dead letter and each gap. It only reads."""

import json
import logging
import os
import queue
import shutil
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, TextIO

from redis import AuthenticationError, RedisError
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisClusterException
from redis.retry import Retry

from .. import subscribe
from ..bus.connection import connect
from ..events import Event, Message

TIMEOUT = 2.0  # seconds, to connect and for each answer
LOOK_INTERVAL = 1.0  # seconds between two looks for dead letters
ALIVE_INTERVAL = 10.0  # seconds between two looks for fetchers, which go through all keys
RATE_WINDOW = 10.0  # seconds that the rate is taken from
MAX_UPDATE = 300  # characters that are shown of an update

# What moves a terminal's cursor, colours it or turns text around: C0, C1, line separators, controls of direction.
CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
PRINTABLE = dict.fromkeys(CONTROLS, "\N{REPLACEMENT CHARACTER}") | dict.fromkeys(b"\t\n\r", " ")

ERRORS = (RedisError, RedisClusterException, OSError)
FATAL = (AuthenticationError, NoPermissionError)  # the operator must fix this, all else passes

OPTIONS: dict[str, Any] = {
    "decode_responses": True,
    "encoding_errors": "replace",
    "protocol": 2,
    "socket_timeout": TIMEOUT,
    "socket_connect_timeout": TIMEOUT,
    "retry": Retry(NoBackoff(), 0),
}

log = logging.getLogger("fetcher")


def describe(event: Event) -> str:
    """Return the event in one line for people, without control characters."""
    where = f"in «{event.peer.name}»" if event.peer.cid else "in private"
    if event.message:
        what = _describe_message(event, event.message)
    elif event.button:
        what = f"pressed {_json(event.button.payload)} below message {event.button.cmid}"
    elif event.reaction and event.reaction.rid:
        what = f"reaction {event.reaction.rid} to message {event.reaction.cmid}"
    elif event.reaction:
        what = f"took back the reaction to message {event.reaction.cmid}"
    else:
        what = _json(event.raw.get("object"))[:MAX_UPDATE] if event.raw else ""
    return f"{event.event_type:8} {event.user.name} (@{event.user.nick}) {where}: {what}".translate(PRINTABLE)


def _describe_message(event: Event, message: Message) -> str:
    parts = [message.text] if message.text else []
    if action := event.action:
        whom = action.user and (action.user.name or str(action.user.uuid))
        parts.append(f"[{' '.join(part for part in (action.type, whom, action.text) if part)}]")
    parts += [f"[{', '.join(message.attachments)}]"] if message.attachments else []
    parts += [f"(in reply to «{message.reply.text}»)"] if message.reply else []
    parts += [f"(forwards «{forward.text}»)" for forward in message.forward]
    parts += [f"(payload {_json(event.payload)})"] if event.payload else []
    return " ".join(parts) or "(no text)"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def watch(url: str, bus: str, group: int | None, out: TextIO) -> int:
    """Print what flows on the bus until Ctrl-C, or until nobody reads it any more; return the exit code 0.

    A terminal also gets a last line: events in a second, and the fetchers that are alive, of this community or of all.
    Raise redis-py's exceptions for a wrong password or a missing permission.
    """
    out.reconfigure(errors="replace")  # type: ignore[attr-defined]  # not every terminal knows Cyrillic
    events: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(url, bus, events), daemon=True).start()
    keys = _Keys(url, bus, group)
    times: deque[float] = deque(maxlen=100_000)
    try:
        while True:
            lines = keys.look()
            while times and times[0] < time.monotonic() - RATE_WINDOW:
                times.popleft()
            status = f"{len(times) / RATE_WINDOW:.1f} events/s, {keys.status}"
            _show(out, lines, status)
            look_at = time.monotonic() + LOOK_INTERVAL
            while (left := look_at - time.monotonic()) > 0:
                with suppress(queue.Empty):
                    event = events.get(timeout=left)
                    if isinstance(event, Exception):
                        raise event
                    times.append(time.monotonic())
                    _show(out, [event], status)
    except KeyboardInterrupt:
        out.write("\n" if out.isatty() else "")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # Python flushes what is left when it ends
    return 0


def _show(out: TextIO, lines: list[str], status: str) -> None:
    """Print the lines; on a terminal they take the place of the last line, and it is drawn anew below them."""
    text = "".join(f"{line}\n" for line in lines)
    if out.isatty():
        text = f"\r\x1b[K{text}{status[: shutil.get_terminal_size().columns - 1]}"
    if text:
        out.write(text)
        out.flush()


def _listen(url: str, bus: str, events: "queue.SimpleQueue[str | Exception]") -> None:
    """Put a line for each event into the queue, for ever, or the exception that the operator must fix."""
    while True:
        try:
            for event in subscribe(connect(url, **OPTIONS), bus=bus):  # pragma: no branch  # it never ends
                events.put(describe(event))
        except Exception as error:
            if isinstance(error, FATAL) or not isinstance(error, ERRORS):
                events.put(error)
                return
            time.sleep(LOOK_INTERVAL)  # only the first connection is ours, the subscriber sees to all others


class _Keys:
    """What is on the bus besides events: new dead letters, and the heartbeats of fetchers."""

    def __init__(self, url: str, bus: str, group: int | None) -> None:
        self.url, self.dead_letters = url, f"{{{bus}}}:dead-letter"
        self.heartbeats = f"{{{bus}}}:alive:" + (f"{group}:" if group else "")
        self.client: Any = None
        self.last_id, self.status, self.problem, self.look_alive_at = "", "", "", 0.0

    def look(self) -> list[str]:
        """Return a line for each dead letter since the last look, and bring the status up to date."""
        try:
            self.client = self.client or connect(self.url, **OPTIONS)
            if not self.last_id:
                newest = self.client.xrevrange(self.dead_letters, count=1)
                self.last_id = newest[0][0] if newest else "0-0"
            letters = self.client.xrange(self.dead_letters, f"({self.last_id}", count=100)
            if time.monotonic() >= self.look_alive_at:
                found = self.client.scan_iter(f"{self.heartbeats}*", count=1000)
                alive = sorted(key.removeprefix(self.heartbeats) for key in found)
                self.status = f"fetchers alive: {', '.join(alive) or 'none'}".translate(PRINTABLE)
                self.look_alive_at = time.monotonic() + ALIVE_INTERVAL
        except FATAL:
            raise
        except ERRORS as error:
            if not self.problem:
                log.warning("Redis is unavailable (%s), trying again", type(error).__name__)
            self.problem = self.status = f"Redis is unavailable ({type(error).__name__})"
            self.look_alive_at = 0.0
            return []
        if self.problem:
            log.info("Recovered")
            self.problem = ""
        self.last_id = letters[-1][0] if letters else self.last_id
        return [_describe_letter(fields) for _, fields in letters]


def _describe_letter(fields: dict[str, str]) -> str:
    if "since" in fields:
        text = f"gap      from ts {fields['since']} to ts {fields.get('until')}: {fields.get('error')}"
    else:
        text = f"dead     letter: {fields.get('error')}: {fields.get('update', '')[:MAX_UPDATE]}"
    return text.translate(PRINTABLE)
