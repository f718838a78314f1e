"""The loop: from VK's updates to the bus, each once and in VK's order."""

import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Never

from redis.backoff import EqualJitterBackoff
from redis.retry import Retry

from . import builders
from .bus import Bus, Entries, Letter
from .errors import Away, Trouble
from .events import Event
from .names import Name, fill, told, wanted
from .vk import VK, Batch

BACKOFF_LEAST = 0.2  # seconds between two steps in trouble, growing to…
BACKOFF_MOST = 2.0
REMIND_AFTER = 60.0  # seconds between two log lines about the same trouble
REMEMBER = 10.0  # seconds that names stay in memory, so that not every batch asks the cache
BEAT_AFTER = 1.0  # seconds between two heartbeats
MOST_HELD = 10_000  # updates in memory: no poll beyond
POLL_ON = 1.0  # seconds of polls, one after the other, in a step with trouble: VK keeps few updates
BURST = 100  # updates in one answer mean that VK has more: these are polled first…
BURST_HELD = 500  # …up to so many, so that one request names them all

to_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for each event
log = logging.getLogger("fetcher")


@dataclass
class Held:
    """A batch in memory, and what it puts on the bus once that is known."""

    batch: Batch
    entries: Entries | None = None


class Backoff(EqualJitterBackoff):
    """A jittered exponential back-off that counts the time which the failed step has already taken."""

    def __init__(self) -> None:
        """Begin now."""
        super().__init__(cap=BACKOFF_MOST, base=BACKOFF_LEAST)
        self.begun = time.monotonic()

    def reset(self) -> None:
        """Begin anew."""
        self.begun = time.monotonic()

    def compute(self, failures: int) -> float:
        """Return the seconds to sleep before the next step, which begins after them."""
        now = time.monotonic()
        pause = max(0.0, self.begun + super().compute(min(failures, 10)) - now)  # 2 ** failures outgrows a float
        self.begun = now + pause
        return pause


class Relay:
    """Hand VK's updates over to the bus.

    The only state is what can be had again: where the bus stands, and the batches that it has not got yet.
    """

    def __init__(self, vk: VK, bus: Bus, command: re.Pattern[str], poll_wait: int) -> None:
        """`command` is the pattern of a command's text, `poll_wait` is in seconds."""
        self.vk, self.bus, self.command, self.poll_wait = vk, bus, command, poll_wait
        self.first = ""  # VK's newest ts when this fetcher began
        self.confirmed: str | None = None  # the ts in Redis, "" if there is none, None while unknown
        self.held: deque[Held] = deque()
        self.names: dict[int, Name] = {}  # of held batches, which the cache does not have yet, and of late
        self.forget_at = self.beat_at = 0.0  # when these names are forgotten, and when the next heartbeat is due
        self.polled = False
        self.told: dict[str, float] = {}  # troubles, and when the log last told of them

    def run(self) -> Never:
        """Step for ever; this is where trouble is caught. Raise Fatal for what only the operator can mend."""
        retry = Retry(Backoff(), -1, supported_errors=(Trouble,))
        while True:
            retry.call_with_retry(self.step, self.report)
            if self.told:
                log.warning("The trouble is over")
                self.told.clear()

    def step(self) -> None:
        """Commit what is held, poll from its end, hold what comes; trouble waits, for VK forgets what nobody polls."""
        self.first = self.first or self.vk.newest()
        troubles: list[Trouble] = []
        with postponed(troubles):
            self.commit()
        away = any(isinstance(trouble, Away) for trouble in troubles)
        self.vk.hurry(away)
        with postponed(troubles):
            if away:
                self.prepare()
            elif self.polled and time.monotonic() >= self.beat_at:
                self.bus.beat()
                self.beat_at = time.monotonic() + BEAT_AFTER
        self.polled = False
        until = time.monotonic() + POLL_ON
        while (held := sum(len(held.batch.updates) for held in self.held)) < MOST_HELD:
            burst = self.poll() >= BURST and held < BURST_HELD - BURST
            if not (burst or troubles) or time.monotonic() >= until:
                break
        if troubles:
            raise troubles[0]

    def poll(self) -> int:
        """Hold what VK has after the end of what is held, and return how many updates that are."""
        since = self.held[-1].batch.until if self.held else self.confirmed or self.first
        batch = self.vk.poll(since, 1 if self.held or self.told else self.poll_wait)
        self.polled = True
        if batch.error and batch.until != since:
            log.warning("A gap from ts %s to %s: %s", since, batch.until, batch.error)
        last = self.held[-1] if self.held else None
        if last and not (last.entries or last.batch.error or batch.error):
            last.batch = Batch(last.batch.since, batch.until, last.batch.updates + batch.updates)
        elif batch.updates or batch.until != since:
            self.held.append(Held(batch))
        if batch.again:
            raise Trouble("VK's long poll does not get on")
        return len(batch.updates)

    def commit(self) -> None:
        """Put all that is held on the bus, one batch after the other."""
        if self.confirmed is None:
            self.settle(self.bus.checkpoint(self.first))
        while self.held:
            batch = self.held[0].batch
            entries = self.held[0].entries = self.held[0].entries or self.entries(batch, self.bus.names)
            self.settle(self.bus.commit(self.confirmed or "", batch.until, entries))
        if time.monotonic() >= self.forget_at:
            self.names.clear()
            self.forget_at = time.monotonic() + min(REMEMBER, self.bus.names_ttl)

    def prepare(self) -> None:
        """Get ready what is held while Redis is away, so that nothing is wanted from VK when it is back."""
        for held in self.held:
            held.entries = held.entries or self.entries(held.batch, lambda ids: {})

    def settle(self, stored: str) -> None:
        """Go on from the stored ts: drop what is on the bus up to there, or all if it is no place in what is held."""
        if self.confirmed and not stored:
            log.warning("Redis had lost the checkpoint: going on from ts %s", self.confirmed)
            self.held.appendleft(Held(Batch(self.confirmed, self.confirmed, [], "Redis had lost the checkpoint")))
            self.confirmed = ""
            return
        self.confirmed = stored
        if self.held and self.held[0].batch.until != stored:
            self.names.clear()  # another fetcher was first, and may have been told newer titles
        while self.held and not begins_in(self.held[0].batch, stored):
            if self.held.popleft().batch.until == stored:
                return

    def entries(self, batch: Batch, cached: Callable[[Iterable[int]], dict[int, Name]]) -> Entries:
        """Return what the batch puts on the bus, with the names from the cache and, for the rest, from VK."""
        if batch.error:
            return Entries([], [Letter("", {"since": batch.since, "until": batch.until, "error": batch.error})], {})
        places = [builders.cropped(update) for update in batch.updates]
        whole = self.vk.whole({place for place in places if place})
        events: list[Event] = []
        letters: list[Letter] = []
        for ts, (update, place) in enumerate(zip(batch.updates, places, strict=True), int(batch.since) + 1):
            try:
                found = whole.get(place) if place else None
                event = builders.build(builders.completed(update, found) if found else update, self.command)
            except Exception as error:  # whatever is wrong with one update, its neighbours go out
                letters.append(letter(update, ts, error))
            else:
                if event:
                    events.append(event)
                else:
                    log.debug("Passed over: an update of type %s", update["type"])
        ids = wanted(events)
        known = {id: self.names[id] for id in ids & self.names.keys()}
        known |= cached(ids - known.keys())
        asked = self.vk.names(ids - known.keys())
        named = fill(events, known | asked)
        fresh = asked | told(events)
        self.names |= known | fresh
        for one in letters:
            log.warning("Dead letter: %s", one.fields["error"])
        texts = [(event.event_id, event.event_type, to_json(event.as_dict())) for event in named]
        return Entries(texts, letters, fresh)

    def report(self, trouble: Exception) -> None:
        """Log when trouble begins, and once a minute while it lasts."""
        now, sentence = time.monotonic(), str(trouble)
        if now - self.told.get(sentence, -REMIND_AFTER) >= REMIND_AFTER:
            self.told[sentence] = now
            log.warning("%s: trying again", sentence)


@contextmanager
def postponed(troubles: list[Trouble]) -> Iterator[None]:
    """Keep the trouble for later."""
    try:
        yield
    except Trouble as trouble:
        troubles.append(trouble)


def begins_in(batch: Batch, ts: str) -> bool:
    """Tell whether the batch is what follows `ts`; a gap has no place inside."""
    if batch.error or not ts:
        return batch.since == ts != batch.until
    return int(batch.since) <= int(ts) < int(batch.until)


def letter(update: Any, ts: int, error: Exception) -> Letter:
    """Return the dead letter of an update; without an id of its own it is known by its place and text."""
    raw, reason = json.dumps(update), str(error) if type(error) is ValueError else repr(error)
    id = update.get("event_id") if isinstance(update, dict) else None
    if not isinstance(id, str) or not id:
        id = f"{ts}:{sha256(raw.encode()).hexdigest()}"
    return Letter(id, {"update": raw, "error": reason})
