"""Names in events: whose names a batch needs, and putting them in."""

from ..core.history import Name
from ..events import CHATS, Event, Peer, User

UNKNOWN = Name()


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
