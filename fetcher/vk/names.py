"""The directory of names: whose names a batch needs, where they come from, and putting them into events.

A name is looked for in memory first, which is emptied once a minute, then on the bus, where all fetchers share names,
then at VK. Titles of chats also come with events, and hold from that event on: a fetcher that sees all events knows as
much as the bus.
"""

import time

from ..core.history import Name
from ..core.ports import Bus
from ..errors import Failure
from ..events import CHATS, Event, Peer, User
from .lookups import Lookups

MEMORY_TTL = 60.0  # seconds before the cache is read again: titles change, and VK may have a missing name soon
MAX_NAMES = 20_000  # in memory

UNKNOWN = Name()


class Directory:
    """Names of people, communities and chats, each looked up as rarely as possible."""

    def __init__(self, bus: Bus, lookups: Lookups) -> None:
        """Begin without any names."""
        self.bus, self.lookups = bus, lookups
        self.memory: dict[int, Name] = {}
        self.forget_at = 0.0

    def resolve(self, events: list[Event], give_up: bool) -> Failure:
        """Get all names of the events into memory.

        Raise TransientError or FatalError if VK or Redis does not answer now; what they do answer is kept. With
        `give_up` events go out with "" in place of what VK does not return; return the failure then.
        """
        if time.monotonic() >= self.forget_at or len(self.memory) > MAX_NAMES:
            self.forget()
        ids, failure = ids_to_resolve(events), None
        self.memory |= self.bus.names([id for id in ids if id not in self.memory])
        if missing := [id for id in ids if id not in self.memory]:
            names, failure = self.lookups.names(missing)
            self.memory |= names
            if self.bus.is_connected:  # else thousands could pile up in an outage; VK answers them again
                self.bus.cache_names(names)
            if failure and not give_up:
                raise failure
        titles = {event.peer.bpid: Name(event.peer.name) for event in events if event.peer.name}
        self.bus.cache_names(titles)  # before the rest: if it fails, the events are built again, with the old titles
        return failure

    def forget(self) -> None:
        """Empty the memory: another fetcher may have had an event with a new title, and put it into the cache."""
        self.memory.clear()
        self.forget_at = time.monotonic() + min(MEMORY_TTL, self.bus.names_ttl)


def ids_to_resolve(events: list[Event]) -> set[int]:
    """Return the ids that need a name: people, communities (negative) and chats (over 2,000,000,000)."""
    users = [event.user for event in events]
    users += [event.action.user for event in events if event.action and event.action.user]
    ids = {user.uuid for user in users if abs(user.uuid) < CHATS} | {event.peer.bpid for event in events}
    return {id for id in ids if id > -CHATS and id not in (0, CHATS)}  # below are e-mail addresses, which have no name


def with_names(event: Event, names: dict[int, Name]) -> Event:
    """Return the event with the names of users and peer; a title in it goes to `names` and holds from then on."""
    peer, action = event.peer, event.action
    if peer.name:
        names[peer.bpid] = Name(peer.name)
    if action and action.user:
        event = event._replace(action=action._replace(user=with_name(action.user, names)))
    user, peer = with_name(event.user, names), Peer(peer.bpid, peer.cid, names.get(peer.bpid, UNKNOWN).name)
    return Event(event.event_type, event.event_id, user, peer, *event[4:])


def with_name(user: User, names: dict[int, Name]) -> User:
    """Return the user with a name, if there is one; a chat's title under the same number is not one."""
    return User(user.uuid, *(names.get(user.uuid, UNKNOWN) if abs(user.uuid) < CHATS else UNKNOWN))
