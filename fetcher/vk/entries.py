"""Build bus entries from VK's updates: full messages, events, names, JSON.

A name is looked up first in memory, which is cleared once a minute, then on the bus, where all fetchers share a cache,
then at VK. Chat titles also arrive in events, and apply from that event on.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

from ..core.backlog import Pending
from ..core.history import DeadLetter, Entry, Name
from ..core.relay import Bus
from ..errors import Failure
from ..events import CHATS, Event, Peer, User
from ..fastjson import event_to_json
from ..logs import log
from . import lookups
from .api import API_VERSION, Api
from .builders import BUILDERS, command_pattern, other, require_message
from .fields import MAX_NUMBER, Json, object_or_empty, require_number, require_object, require_text

NAMES_MEMORY_TTL = 60.0  # seconds until memory is cleared: titles change, and missing names may appear
UNKNOWN = Name()


class EntryBuilder:
    """Builds the entries of several batches at a time, so that one request to VK serves all of them."""

    def __init__(self, api: Api, bus: Bus, group: int, prefixes: str, raw: bool) -> None:
        """Each character of `prefixes` begins a command; with `raw` all types are published, with VK's own update."""
        self.api, self.bus = api, bus
        self.command, self.raw = command_pattern(group, prefixes), raw
        self.names: dict[int, Name] = {}
        self.forget_at = 0.0  # when `names` is cleared
        self.is_warned = False  # whether the log has the warning about VK's notices

    def build(self, batches: Sequence[Pending], give_up: bool) -> Failure:
        """Build the entries of these batches.

        Raise TransientError or FatalError if VK or Redis does not return what the batches need now. With `give_up`, a
        failure of VK is returned instead, and the entries are built without the missing names and full messages.
        """
        places = {place for batch in batches for update in batch.updates if (place := cropped_message(update))}
        messages, failure = lookups.full_messages(self.api, places)  # sends no request if there are no places
        for batch in batches:  # even after a failure, so that messages that VK has returned are not requested again
            batch.updates = [with_full_message(update, messages) for update in batch.updates]
        # For each update its event, with empty names, or its dead letter, or None.
        drafts = [[self.or_dead_letter(self.event_of, update) for update in batch.updates] for batch in batches]
        events = [event for draft in drafts for event in draft if isinstance(event, Event)]
        if give_up or not failure:
            failure = self.resolve_names(events) or failure
        if failure and not give_up:
            raise failure
        # New titles. Before `with_names` stores them: if this fails, the events are built again, from the old titles.
        self.bus.cache_names({event.peer.bpid: Name(event.peer.name) for event in events if event.peer.name})
        for batch, draft in zip(batches, drafts, strict=True):
            pairs = zip(batch.updates, draft, strict=True)
            batch.set_entries([self.or_dead_letter(self.entry_of, *pair) for pair in pairs])
        return failure

    def resolve_names(self, events: list[Event]) -> Failure:
        """Load the names that the events need into memory; return the failure if VK does not return some, or None.

        Raise TransientError or FatalError if Redis fails.
        """
        if time.monotonic() >= self.forget_at:
            self.names.clear()
            self.forget_at = time.monotonic() + min(NAMES_MEMORY_TTL, self.bus.names_ttl)
        missing = ids_to_resolve(events) - self.names.keys()
        self.names |= self.bus.names(missing)
        names, failure = lookups.names(self.api, missing - self.names.keys())  # sends no request if none is missing
        self.names |= names
        if self.bus.is_connected:  # in an outage, thousands of names could pile up; VK returns them again later
            self.bus.cache_names(names)
        return failure

    def or_dead_letter(self, make: Callable[..., Any], update: Any, *more: Any) -> Any:
        """Return what `make` returns for an update, or the update's dead letter if `make` raises an exception."""
        try:
            return make(update, *more)
        except Exception as error:  # a bad update must not keep its neighbours from being published
            return self.dead_letter(update, error)

    def event_of(self, update: Any) -> Event | None:
        """Return the update's event, without names; raise ValueError if the update is malformed.

        Return None for a type that is not in BUILDERS, unless `raw` is set; with `raw` every event holds the update
        itself, not a copy. If VK sends a notice in place of an object, log a warning and return None:
        https://dev.vk.com/ru/api/deprecated-version-message
        """
        kind = require_text(require_object(update), "type")
        if object_or_empty(update.get("object")).keys() == {"warning"}:
            if not self.is_warned:
                self.is_warned = True
                log.warning("VK sends a notice in place of an event: set %s in the community's settings", API_VERSION)
            return None
        builder = BUILDERS.get(kind, other if self.raw else None)
        if not builder:
            log.debug("Passed over: an update of type %s", kind)
            return None
        event = builder(update, self.command)
        return event._replace(raw=update) if self.raw else event

    def entry_of(self, update: Any, event: Event | DeadLetter | None) -> Entry | DeadLetter | None:
        """Return the entry of an event; return a dead letter or None unchanged.

        Raise ValueError if the event cannot be written as JSON.
        """
        if not isinstance(event, Event):
            return event
        text = event_to_json(with_names(event, self.names))
        return Entry(event.event_id, event.event_type, text, sent_at(update))

    def dead_letter(self, update: Any, error: Exception) -> DeadLetter:
        """Return the dead letter of an update.

        If the update has no event_id, the id is a hash of its text; "" if it is nested too deep to have one.
        """
        raw = ""
        with suppress(RecursionError):  # an update that is nested too deep is left out
            raw = json.dumps(update)
        reason = str(error) if type(error) is ValueError else repr(error)
        id = object_or_empty(update).get("event_id")
        if not isinstance(id, str) or not id:
            id = f"sha256:{sha256(raw.encode()).hexdigest()}" if raw else ""
        return DeadLetter(id, {"update": raw, "error": reason})


def sent_at(update: Any) -> int:
    """Return the Unix time at which a message_new was sent; 0 for other types, or if VK does not say."""
    date = require_message(update).get("date") if update["type"] == "message_new" else 0
    return date if type(date) is int and 0 < date <= MAX_NUMBER else 0


def cropped_message(update: Any) -> tuple[int, int] | None:
    """Return (peer_id, conversation_message_id) of a message_new that VK has cropped, None for other updates."""
    with suppress(ValueError):  # `event_of` reports what is malformed
        is_message = require_object(update).get("type") == "message_new"
        if is_message and (message := require_message(update)).get("is_cropped"):
            return require_number(message, "peer_id"), require_number(message, "conversation_message_id", 0)
    return None


def with_full_message(update: Any, messages: dict[Any, Json]) -> Any:
    """Return the update with the full message in place of a cropped one, if VK has returned it.

    Fields that only the cropped message has are kept.
    """
    place = cropped_message(update) if messages else None
    if place not in messages:
        return update
    contents = update["object"]
    full = {name: value for name, value in require_message(update).items() if name != "is_cropped"} | messages[place]
    return {**update, "object": {**contents, "message": full} if "message" in contents else full}


def ids_to_resolve(events: list[Event]) -> set[int]:
    """Return the ids that need a name: people, communities (negative) and chats (over 2,000,000,000)."""
    users = [event.user for event in events]
    users += [event.action.user for event in events if event.action and event.action.user]
    ids = {user.uuid for user in users if abs(user.uuid) < CHATS} | {event.peer.bpid for event in events}
    return {id for id in ids if id > -CHATS and id not in (0, CHATS)}  # below -CHATS: e-mail addresses, without a name


def with_names(event: Event, names: dict[int, Name]) -> Event:
    """Return the event with the names of its users and its peer.

    A title that the event brings is put into `names`, so that it also applies to the events after it.
    """
    peer, action = event.peer, event.action
    if peer.name:
        names[peer.bpid] = Name(peer.name)
    if action and action.user:
        event = event._replace(action=action._replace(user=with_name(action.user, names)))
    user, peer = with_name(event.user, names), Peer(peer.bpid, peer.cid, names.get(peer.bpid, UNKNOWN).name)
    return Event(event.event_type, event.event_id, user, peer, *event[4:])


def with_name(user: User, names: dict[int, Name]) -> User:
    """Return the user with its name. A number of CHATS or more has none: `names` may hold a chat's title for it."""
    return User(user.uuid, *(names.get(user.uuid, UNKNOWN) if abs(user.uuid) < CHATS else UNKNOWN))
