"""The contract: what consumers get. An event is a NamedTuple here and a JSON object on the bus."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Self, get_args, get_origin, get_type_hints

CHATS = 2_000_000_000  # a chat's peer_id is this plus its number: https://dev.vk.com/ru/reference/objects/message


class User(NamedTuple):
    """A person or a community (`uuid` < 0) that caused the event or is affected by it.

    If VK knows no name, all fields but `uuid` are empty.
    """

    uuid: int
    name: str
    firstname: str
    lastname: str
    nick: str


class Peer(NamedTuple):
    """Where it happened: `bpid` is VK's peer_id, `cid` the number of a chat, otherwise 0.

    `name` is the title of a chat, or the name of the other side of a private dialog.
    """

    bpid: int
    cid: int
    name: str


class Reply(NamedTuple):
    """A message that is replied to or forwarded; `uuid` is its author, 0 if VK does not say."""

    cmid: int
    text: str
    uuid: int = 0  # missing in entries written by version 1.0


class Message(NamedTuple):
    """A message; `attachments` are VK's type names, then "geo", "reply" and "forward" if the message has them."""

    cmid: int
    text: str
    reply: Reply | None
    forward: list[Reply]
    attachments: list[str]


class Button(NamedTuple):
    """A pressed callback button; `beid` is the event_id for messages.sendMessageEventAnswer."""

    cmid: int
    beid: str
    payload: dict[str, Any]


class Reaction(NamedTuple):
    """A reaction to a message; `rid` is 0 if it was removed."""

    cmid: int
    rid: int


class Action(NamedTuple):
    """What a message reports about its chat.

    `type` is VK's: https://dev.vk.com/ru/reference/objects/message. `user` is who is affected: a person, a community
    (`uuid` < 0) or an e-mail address (`uuid` < -2,000,000,000); None if nobody is named. `text` is the new title or
    the e-mail address, otherwise "". `cmid` is the id of the pinned message, otherwise 0.
    """

    type: str
    user: User | None
    text: str
    cmid: int


class Event(NamedTuple):
    """One event on the bus; `event_type` says which of `message`, `button` and `reaction` is set, if any.

    `action` and `payload` are set if the message has them; `raw`, VK's whole update, is set with RAW=1.
    """

    event_type: str
    event_id: str
    user: User
    peer: Peer
    message: Message | None = None
    button: Button | None = None
    reaction: Reaction | None = None
    action: Action | None = None
    payload: dict[str, Any] | None = None
    raw: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the event as it is published: keys in the order of the fields, without attributes that are None.

        `payload` and `raw` are not copied.
        """
        return {name: _plain(value) for name, value in zip(self._fields, self, strict=True) if value is not None}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Return the event that `as_dict` has turned into `data`, ignoring unknown keys.

        Raise ValueError if `data` is not an event.
        """
        return _reader(cls)(data)  # type: ignore[arg-type, no-any-return]  # classes are hashable


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return {name: _plain(item) for name, item in zip(value._fields, value, strict=True)}  # type: ignore[attr-defined]
    return [_plain(item) for item in value] if isinstance(value, list) else value


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """Return a function that reads a value of the annotated type `kind`; it raises ValueError for other values.

    A missing field counts as its default or None. The function is cached, because inspecting annotations takes longer
    than reading an event.
    """
    inner, plain = get_args(kind), get_origin(kind) or kind
    if type(None) in inner:
        read_value = _reader(inner[0])
        return lambda value: None if value is None else read_value(value)
    fields = [(name, plain._field_defaults.get(name), _reader(hint)) for name, hint in get_type_hints(plain).items()]
    expected = dict if fields else plain

    def read(value: Any) -> Any:
        if type(value) is not expected:  # not isinstance: True is an int, too
            raise ValueError(f"{type(value).__name__} instead of {plain.__name__}")
        if fields:
            return plain(*[read_field(value.get(name, default)) for name, default, read_field in fields])
        return [*map(_reader(inner[0]), value)] if plain is list else value

    return read


def channel(bus: str, event_type: str) -> str:
    """Return the channel on which events of this type are published."""
    return f"{bus}:{event_type}"
