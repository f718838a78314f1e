"""The contract: what consumers get. An event is a NamedTuple here and a JSON object on the bus."""

from functools import cache
from types import NoneType
from typing import Any, NamedTuple, Self, get_args, get_origin, get_type_hints

CHATS = 2_000_000_000  # a chat's peer_id is this and its number: https://dev.vk.com/ru/reference/objects/message


class User(NamedTuple):
    """Who caused the event: a person, or a community (`uuid` < 0); whom VK does not know has "" in the rest."""

    uuid: int
    name: str
    firstname: str
    lastname: str
    nick: str


class Peer(NamedTuple):
    """Where it happened: `bpid` is VK's peer_id, `cid` a chat's number, else 0, `name` its title or who is there."""

    bpid: int
    cid: int
    name: str


class Reply(NamedTuple):
    """A message that is replied to or forwarded."""

    cmid: int
    text: str


class Message(NamedTuple):
    """A message; `attachments` are VK's type names, with "geo" last when a place is attached."""

    cmid: int
    text: str
    reply: Reply | None
    forward: list[Reply]
    attachments: list[str]


class Button(NamedTuple):
    """A pressed callback button; `beid` is what messages.sendMessageEventAnswer wants as event_id."""

    cmid: int
    beid: str
    payload: dict[str, Any]


class Reaction(NamedTuple):
    """A reaction to a message; `rid` is 0 when it is taken back."""

    cmid: int
    rid: int


class Event(NamedTuple):
    """One event of the bus: `event_type` says which of the last three attributes is there, if any."""

    event_type: str
    event_id: str
    user: User
    peer: Peer
    message: Message | None = None
    button: Button | None = None
    reaction: Reaction | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the event as it is published: keys in the order of the fields, attributes of other types left out."""
        return {name: _plain(value) for name, value in zip(self._fields, self, strict=True) if value is not None}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read back what `as_dict` gave; unknown keys are passed over, and ValueError is raised for no event."""
        event: Self = _typed(cls, data)
        return event


_hints = cache(get_type_hints)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return {name: _plain(item) for name, item in zip(value._fields, value, strict=True)}  # type: ignore[attr-defined]
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _typed(kind: Any, value: Any) -> Any:
    """Return the value as the annotation `kind` says: a NamedTuple, an optional one, a list or a scalar."""
    inner = get_args(kind)
    if NoneType in inner:
        return None if value is None else _typed(inner[0], value)
    if hasattr(kind, "_fields") and isinstance(value, dict):
        given = {name: _typed(hint, value[name]) for name, hint in _hints(kind).items() if name in value}
        if missing := kind._fields[: len(kind._fields) - len(kind._field_defaults)] - given.keys():
            raise ValueError(f"no {', '.join(sorted(missing))} in {kind.__name__}")
        return kind(**given)
    if type(value) is not (get_origin(kind) or kind):  # exactly, for True is an int as well
        raise ValueError(f"{type(value).__name__} instead of {kind.__name__}")
    return [_typed(inner[0], item) for item in value] if isinstance(value, list) else value


def channel(bus: str, event_type: str) -> str:
    """Return the channel of one type of event."""
    return f"{bus}:{event_type}"
