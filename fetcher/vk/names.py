"""Names in events: find the ids that need a name, and fill the names in."""

from ..core.history import Name
from ..events import CHATS, Event, Peer, User

UNKNOWN = Name()


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
