"""From pending updates to what goes out for them: full messages, events, names, JSON."""

import json
import logging
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from typing import Any

from ..events import Event, User
from ..vk import builders
from ..vk.lookups import Lookups
from .backlog import Pending
from .batch import DeadLetter, Entry, utf8
from .names import Directory

MAX_USERS_WRITTEN = 1_000  # users whose JSON is remembered

log = logging.getLogger("fetcher")


class EntryBuilder:
    """Builds the entries of batches, several at a time, so that VK is asked once for all of them."""

    def __init__(self, lookups: Lookups, directory: Directory, command: re.Pattern[str], raw: bool) -> None:
        """`command` is the pattern of a command's text; with `raw` every update is published as VK sent it."""
        self.lookups, self.directory, self.command, self.raw = lookups, directory, command, raw

    def build(self, batches: Sequence[Pending], give_up: bool, use_cache: bool) -> None:
        """Build the entries of these batches.

        Raise TransientError or FatalError when VK cannot be asked now for what they need; with `give_up` they go out
        without it. Without `use_cache` Redis is left alone.
        """
        updates = self.with_full_messages([update for batch in batches for update in batch.updates], give_up)
        built = [self.event_or_error(update) for update in updates]
        events = [event for event in built if isinstance(event, Event)]
        named = iter(self.directory.with_names(events, give_up, use_cache))
        rest = zip(updates, built, strict=True)
        for batch in batches:
            entries = list[Entry | DeadLetter]()
            for update, event in islice(rest, len(batch.updates)):
                if isinstance(event, Event):
                    entries.append(entry_of(next(named), update))
                elif event:
                    entries.append(dead_letter(update, event))
            for entry in entries:
                if isinstance(entry, DeadLetter):
                    log.warning("Dead letter: %s", entry.fields["error"])
            batch.built(entries)

    def with_full_messages(self, updates: list[Any], give_up: bool) -> list[Any]:
        """Return the updates with full messages in place of those that VK has cropped, where VK still has them."""
        places = [builders.cropped_message(update) for update in updates]
        wanted = {place for place in places if place}
        messages, failure = self.lookups.full_messages(wanted) if wanted else ({}, None)
        if failure and not give_up:
            raise failure
        return [
            builders.with_full_message(update, messages[place]) if place in messages else update
            for update, place in zip(updates, places, strict=True)
        ]

    def event_or_error(self, update: Any) -> Event | Exception | None:
        """Return the update's event, what is wrong with it, or None if nobody wants its type."""
        try:
            event = builders.build(update, self.command, self.raw)
        except Exception as error:  # whatever is wrong with one update, its neighbours go out
            return error
        if not event:
            log.debug("Passed over: an update of type %s", update["type"])
        return event


def entry_of(event: Event, update: Any) -> Entry | DeadLetter:
    """Return the event as it is published, or a dead letter if it cannot be written as JSON."""
    try:
        return Entry(event.event_id, event.event_type, utf8(to_json(event)), builders.sent_at(update) or 0)
    except (ValueError, RecursionError) as error:
        return dead_letter(update, error)


def to_json(event: Event) -> str:
    """Return the JSON of event.as_dict(), in half the time; raise ValueError or RecursionError as json.dumps does."""
    fields = zip(event._fields, event, strict=True)
    texts = [f'"{name}": {WRITERS[type(value)](value)}' for name, value in fields if value is not None]
    return f"{{{', '.join(texts)}}}"


def writer(kind: Any) -> Callable[[Any], str]:
    """Return the function that writes this noun of the contract as JSON."""
    form = "{" + ", ".join(f'"{name}": %s' for name in kind._fields) + "}"
    return lambda noun: form % tuple([WRITERS[type(value)](value) for value in noun])


def dead_letter(update: Any, error: Exception) -> DeadLetter:
    """Return the dead letter of an update; one without event_id is known by its text."""
    try:
        raw = json.dumps(update)
    except RecursionError:
        fields = update if isinstance(update, dict) else {}
        raw = json.dumps({key: value for key, value in fields.items() if isinstance(value, str | int)})  # the top of it
    reason = str(error) if type(error) is ValueError else repr(error)
    id = update.get("event_id") if isinstance(update, dict) else None
    if not isinstance(id, str) or not id:
        id = f"sha256:{sha256(raw.encode()).hexdigest()}"
    return DeadLetter(id, {"update": raw, "error": reason})


class Writers(dict[type, Callable[[Any], str]]):
    """The function that writes a value of each type as JSON; nouns and all others get theirs when one comes."""

    def __missing__(self, kind: Any) -> Callable[[Any], str]:
        """Make the function for one more type."""
        self[kind] = writer(kind) if hasattr(kind, "_fields") else encode
        return self[kind]


encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode  # json.dumps would make one for each value
WRITERS: Writers = Writers(
    {
        User: lru_cache(MAX_USERS_WRITTEN)(writer(User)),
        int: str,
        list: lambda items: f"[{', '.join([WRITERS[type(item)](item) for item in items])}]",
        str: json.encoder.encode_basestring,
    }
)
