"""From pending updates to what goes out for them: full messages, events, names, JSON."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import islice
from typing import Any

from ..events import Event
from .backlog import Pending
from .history import DeadLetter, Entry, Position
from .names import Directory
from .ports import Updates

log = logging.getLogger("fetcher")


class EntryBuilder:
    """Builds the entries of batches, several at a time, so that one request to VK serves all of them."""

    def __init__(self, updates: Updates, directory: Directory, to_json: Callable[[Event], bytes]) -> None:
        """`to_json` writes an event; it raises ValueError or RecursionError if it cannot."""
        self.updates, self.directory, self.to_json = updates, directory, to_json
        self.built_until = Position(0, 0)
        self.nameless = Counter[str]()  # dead letters without event_id, by their text

    def build(self, batches: Sequence[Pending], give_up: bool) -> None:
        """Build the entries of these batches.

        Raise TransientError or FatalError if VK or Redis does not return what they need now; with `give_up` they are
        built without what VK does not return.
        """
        for batch in batches:
            if batch.since > self.built_until:  # another fetcher had what is between, or it is in a gap
                self.directory.forget()
            self.built_until = max(self.built_until, batch.until)
        updates, failure = self.updates.with_full_messages([update for batch in batches for update in batch.updates])
        if failure and not give_up:
            raise failure
        full, built = iter(updates), list[Event | DeadLetter | None]()
        for batch in batches:
            batch.updates = list(islice(full, len(batch.updates)))
            self.nameless.clear()  # batches may overlap: the same text is another update only within one batch
            built += map(self.event_or_error, batch.updates)
        named = iter(self.directory.with_names([event for event in built if isinstance(event, Event)], give_up))
        events = iter([next(named) if isinstance(event, Event) else event for event in built])
        for batch in batches:
            batch.built([self.entry_of(update, event) for update, event in zip(batch.updates, events, strict=False)])

    def event_or_error(self, update: Any) -> Event | DeadLetter | None:
        """Return the update's event, its dead letter if it is malformed, or None if its type is not published."""
        try:
            event = self.updates.build(update)
        except Exception as error:  # whatever is wrong with one update, its neighbours go out
            return self.dead_letter(update, error)
        if not event:
            log.debug("Passed over: an update of type %s", update["type"])
        return event

    def entry_of(self, update: Any, event: Event | DeadLetter | None) -> Entry | DeadLetter | None:
        """Return what is published: an event as JSON, or a dead letter if it cannot be written."""
        if not isinstance(event, Event):
            return event
        try:
            return Entry(event.event_id, event.event_type, self.to_json(event), self.updates.sent_at(update))
        except (ValueError, RecursionError) as error:
            return self.dead_letter(update, error)

    def dead_letter(self, update: Any, error: Exception) -> DeadLetter:
        """Return the dead letter of an update; without an event_id, its text and how often that occurs make its id."""
        try:
            raw = json.dumps(update)
        except RecursionError:
            fields = update if isinstance(update, dict) else {}
            raw = json.dumps({key: value for key, value in fields.items() if isinstance(value, str | int)})  # its top
        reason = str(error) if type(error) is ValueError else repr(error)
        id = update.get("event_id") if isinstance(update, dict) else None
        if not isinstance(id, str) or not id:
            self.nameless[raw] += 1
            id = f"sha256:{sha256(raw.encode()).hexdigest()}" + f"#{self.nameless[raw]}" * (self.nameless[raw] > 1)
        return DeadLetter(id, {"update": raw, "error": reason})
