"""Names of people, communities and chats: who is wanted for a batch, and filling them in."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .events import CHATS, Event, Peer, User


class Name(NamedTuple):
    """What VK calls someone; a chat has only `name`, and whom VK does not know has nothing."""

    name: str = ""
    firstname: str = ""
    lastname: str = ""
    nick: str = ""


def wanted(events: Iterable[Event]) -> set[int]:
    """Return the ids that need a name: people, communities (negative) and chats (over 2,000,000,000)."""
    ids = {id for event in events for id in (_person(event.user.uuid), event.peer.bpid)}
    return {id for id in ids if id > -CHATS and id not in (0, CHATS)}  # below are e-mail addresses, which have no name


def told(events: Iterable[Event]) -> dict[int, Name]:
    """Return the chat titles that the events themselves tell, the latest of each chat."""
    return {event.peer.bpid: Name(event.peer.name) for event in events if event.peer.name}


def fill(events: Iterable[Event], names: dict[int, Name]) -> Iterator[Event]:
    """Yield the events with the names of user and peer; a title that an event tells holds from that event on."""
    names, unknown = dict(names), Name()
    for event in events:
        user, peer = event.user, event.peer
        if peer.name:
            names[peer.bpid] = Name(peer.name)
        user = User(user.uuid, *names.get(_person(user.uuid), unknown))
        peer = Peer(peer.bpid, peer.cid, names.get(peer.bpid, unknown).name)
        yield event._replace(user=user, peer=peer)


def _person(uuid: int) -> int:
    """Return the id, or 0 for one that no person or community can have: a chat's title is no user's name."""
    return uuid if -CHATS < uuid < CHATS else 0
