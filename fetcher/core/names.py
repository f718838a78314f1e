"""The directory of names: whose names a batch needs, where they come from, and filling them in.

A name is looked for in memory first, then in the cache that all fetchers share, then at VK.
"""

import time
from collections.abc import Iterable, Iterator, Mapping

from ..events import CHATS, Event, Peer, User
from .ports import Cache, Lookups, Name

NAMES_MEMORY_TTL = 10.0  # seconds that names stay in memory, so that not every batch asks the cache


UNKNOWN = Name()


class Directory:
    """Names of people, communities and chats, each asked for as rarely as possible."""

    def __init__(self, cache: Cache, lookups: Lookups) -> None:
        """Know nobody yet."""
        self.cache, self.lookups = cache, lookups
        self.memory: dict[int, Name] = {}
        self.uncached: dict[int, Name] = {}  # newer than what the cache has, because Redis was unavailable
        self.forget_at = 0.0

    def with_names(self, events: list[Event], give_up: bool) -> list[Event]:
        """Return the events with all names filled in.

        Raise TransientError or FatalError if VK or Redis cannot be asked for some of them now; what is known is kept.
        With `give_up` they go out with "" in place of what VK does not answer, which is not remembered.
        """
        now = time.monotonic()
        if now >= self.forget_at:
            self.memory.clear()
            self.forget_at = now + min(NAMES_MEMORY_TTL, self.cache.ttl)
        missing = ids_to_resolve(events) - self.memory.keys()
        if missing:
            self.memory |= self.cache.names(missing)
            missing -= self.memory.keys()
        resolved, failure = self.lookups.names(missing) if missing else ({}, None)
        self.memory |= resolved
        self.uncached |= resolved
        missing -= resolved.keys()
        if failure and missing and not give_up:
            raise failure
        named = list(fill(events, self.memory))
        titles = {event.peer.bpid: Name(event.peer.name) for event in events if event.peer.name}
        self.memory |= titles
        self.uncached |= titles
        self.cache.cache_names(self.uncached)
        self.uncached = {}
        return named


def ids_to_resolve(events: Iterable[Event]) -> set[int]:
    """Return the ids that need a name: people, communities (negative) and chats (over 2,000,000,000)."""
    ids: set[int] = set()
    for event in events:
        ids.update((person_or_zero(event.user.uuid), event.peer.bpid))
        if event.action and event.action.user:
            ids.add(person_or_zero(event.action.user.uuid))
    return {id for id in ids if id > -CHATS and id not in (0, CHATS)}  # below are e-mail addresses, which have no name


def fill(events: Iterable[Event], names: Mapping[int, Name]) -> Iterator[Event]:
    """Yield the events with the names of users and peer; a title that an event tells holds from that event on."""
    titles: dict[int, str] = {}
    for event in events:
        peer, action = event.peer, event.action
        if peer.name:
            titles[peer.bpid] = peer.name
        title = titles.get(peer.bpid) or names.get(peer.bpid, UNKNOWN).name
        if action and action.user:
            event = event._replace(action=action._replace(user=with_name(action.user, names)))
        user = with_name(event.user, names)
        yield Event(event.event_type, event.event_id, user, Peer(peer.bpid, peer.cid, title), *event[4:])


def with_name(user: User, names: Mapping[int, Name]) -> User:
    """Return the user with a name, if there is one."""
    return User(user.uuid, *names.get(person_or_zero(user.uuid), UNKNOWN))


def person_or_zero(uuid: int) -> int:
    """Return the id, or 0 for one that no person or community can have: a chat's title is no user's name."""
    return uuid if -CHATS < uuid < CHATS else 0
