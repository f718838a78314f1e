"""From VK's update to our event: one pure function per type of update, found through BUILDERS at the foot.

Each takes the update as VK sent it and the pattern of a command, returns the event, with the names of people and chats
still empty, and raises ValueError with the reason where VK left out what an event cannot do without.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from ..events import CHATS, Action, Button, Event, Message, Peer, Reaction, Reply, User

Json = dict[str, Any]
Builder = Callable[[Json, re.Pattern[str]], Event]

# Who caused an update is the first of these that is there.
ACTORS = ("user_id", "from_id", "liker_id", "admin_id", "deleter_id", "owner_id")


def command_pattern(group: int, prefixes: str) -> re.Pattern[str]:
    """Return the pattern of a command; its group 1 is the command without the mention of the community before it.

    A text button in a chat sends such a mention: https://dev.vk.com/ru/api/bots/development/keyboard
    """
    mention = rf"(?:\[(?:club|public){group}\|[^\]]*\]|@(?:club|public){group})[\s,:]*"
    return re.compile(rf"(?:{mention})?([{re.escape(prefixes)}][^\W_].*)", re.DOTALL)


def message_new(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/reference/objects/message"""
    message = require_message(update)
    text = text_or_empty(message, "text")
    found = command.fullmatch(text)
    attachments = [require_text(require_object(item), "type") for item in list_or_empty(message, "attachments")]
    more = (("geo", "geo"), ("reply", "reply_message"), ("forward", "fwd_messages"))
    action = action_of(message["action"]) if message.get("action") else None
    payload = message.get("payload")
    return Event(
        "command" if found else "message",
        require_text(update, "event_id"),
        user_of(require_id(message, "from_id")),
        peer_of(require_id(message, "peer_id"), action.text if action and action.type == "chat_title_update" else ""),
        message=Message(
            number_or_zero(message, "conversation_message_id"),
            found[1] if found else text,
            reply_of(message["reply_message"]) if message.get("reply_message") else None,
            [reply_of(item) for item in list_or_empty(message, "fwd_messages")],
            attachments + [name for name, key in more if message.get(key)],
        ),
        action=action,
        payload=None if payload in (None, "") else payload_of(payload),
    )


def message_event(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/api/community-events/json-schema#message_event"""
    pressed = require_object(update.get("object"))
    return Event(
        "button",
        require_text(update, "event_id"),
        user_of(require_id(pressed, "user_id")),
        peer_of(require_id(pressed, "peer_id")),
        button=Button(
            number_or_zero(pressed, "conversation_message_id"),
            require_text(pressed, "event_id"),
            payload_of(pressed.get("payload")),
        ),
    )


def message_reaction_event(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/api/community-events/json-schema#message_reaction_event"""
    reaction = require_object(update.get("object"))
    rid = number_or_zero(reaction, "reaction_id")
    if rid < 0:
        raise ValueError("reaction_id is negative")
    return Event(
        "reaction",
        require_text(update, "event_id"),
        user_of(require_id(reaction, "reacted_id")),
        peer_of(require_id(reaction, "peer_id")),
        reaction=Reaction(number_or_zero(reaction, "cmid"), rid),
    )


def other(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/api/community-events/json-schema"""
    fields = require_object(update.get("object"))
    actor = next((key for key in ACTORS if fields.get(key)), None)
    uuid = require_id(fields, actor) if actor else -require_id(update, "group_id")
    return Event(
        require_text(update, "type"),
        require_text(update, "event_id"),
        user_of(uuid),
        peer_of(number_or_zero(fields, "peer_id") or uuid),
    )


def user_of(uuid: int) -> User:
    """Return the person or community; the names are looked up later."""
    return User(uuid, "", "", "", "")


def peer_of(bpid: int, name: str = "") -> Peer:
    """Return the place; its name is looked up later unless the update tells it."""
    return Peer(bpid, max(bpid - CHATS, 0), name)


def reply_of(value: Any) -> Reply:
    """Return a message inside a message."""
    message = require_object(value)
    return Reply(
        number_or_zero(message, "conversation_message_id"),
        text_or_empty(message, "text"),
        number_or_zero(message, "from_id"),
    )


def action_of(value: Any) -> Action:
    """Return what a message reports about its chat. Types that are new to us are like any other."""
    action = require_object(value)
    member = number_or_zero(action, "member_id")  # of a person, a community or an e-mail address
    return Action(
        require_text(action, "type"),
        user_of(member) if member else None,
        text_or_empty(action, "text") or text_or_empty(action, "email"),
        number_or_zero(action, "conversation_message_id"),
    )


def payload_of(value: Any) -> Json:
    """Return an object as it is, nothing as {}, JSON text of an object parsed, any other value v as {"value": v}."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value, parse_constant=_refuse)
        except (ValueError, RecursionError):
            parsed = value
        value = parsed if isinstance(parsed, dict) else value
    if value in (None, "") or value == []:
        return {}
    return require_json(value if isinstance(value, dict) else {"value": value}, "payload")


def require_message(update: Json) -> Json:
    """Return the message of a message_new. Before 5.103 the object is the message itself."""
    contents = require_object(update.get("object"))
    return require_object(contents.get("message", contents))


def require_json(value: Json, name: str) -> Json:
    """Return the value; raise ValueError if there is NaN or Infinity in it, or if it is nested too deep."""
    try:
        json.dumps([[[value]]], allow_nan=False)  # deeper than it is in the event
    except (ValueError, RecursionError):
        raise ValueError(f"{name} cannot be written as JSON") from None
    return value


def require_object(value: Any) -> Json:
    """Return the value; raise ValueError if it is no object."""
    if not isinstance(value, dict):
        raise ValueError(f"{_kind(value)} where an object is due")
    return value


def require_text(fields: Json, key: str) -> str:
    """Return the text; raise ValueError if it is empty, missing or something else."""
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {_kind(value)}, not text")
    return value


def require_id(fields: Json, key: str) -> int:
    """Return the number, also if VK sent it as text; raise ValueError if it is missing or something else."""
    if fields.get(key) is None:
        raise ValueError(f"{key} is missing")
    return number_or_zero(fields, key)


def list_or_empty(fields: Json, key: str) -> list[Any]:
    """Return the list, [] if it is missing; raise ValueError if it is something else."""
    value = fields.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"{key} is {_kind(value)}, not a list")
    return value


def text_or_empty(fields: Json, key: str) -> str:
    """Return the text, also if VK sent a number, "" if it is missing; raise ValueError if it is something else."""
    value = fields.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is {_kind(value)}, not text")
    return value or ""


def number_or_zero(fields: Json, key: str) -> int:
    """Return the number, also if VK sent it as text, 0 if it is missing; raise ValueError if it is something else."""
    value = fields.get(key)
    if type(value) is int:  # nearly always
        return value
    if value is None:
        return 0
    if isinstance(value, str) and re.fullmatch("-?[0-9]{1,20}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"{key} is {_kind(value)}, not a whole number")
    return int(value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _kind(value: Any) -> str:
    return "missing" if value is None else "empty" if value == "" else f"of type {type(value).__name__}"


BUILDERS: dict[str, Builder] = {
    "message_new": message_new,
    "message_event": message_event,
    "message_reaction_event": message_reaction_event,
}
