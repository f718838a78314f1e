"""From VK's update to our event: one pure function per type of update, found through BUILDERS at the foot.

Each takes the update as VK sent it and the pattern of a command, returns the event, with the names of user and peer
still empty, and raises ValueError with the reason where VK left out what an event cannot do without.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from .events import CHATS, Button, Event, Message, Peer, Reaction, Reply, User

Json = dict[str, Any]
Builder = Callable[[Json, re.Pattern[str]], Event]


def command_pattern(group: int, prefixes: str) -> re.Pattern[str]:
    """Return the pattern of a command; its group 1 is the command without the mention of the community before it.

    A text button in a chat sends such a mention: https://dev.vk.com/ru/api/bots/development/keyboard
    """
    mention = rf"(?:\[(?:club|public){group}\|[^\]]*\]|@(?:club|public){group})[\s,:]*"
    return re.compile(rf"(?:{mention})?([{re.escape(prefixes)}][^\W_].*)", re.DOTALL)


def build(update: Any, command: re.Pattern[str]) -> Event | None:
    """Return the update's event, or None for a type that nobody here builds; raise ValueError if it is malformed."""
    if not isinstance(update, dict) or not isinstance(update.get("type"), str):
        raise ValueError("the update has no type")
    builder = BUILDERS.get(update["type"])
    return builder(update, command) if builder else None


def cropped(update: Any) -> tuple[int, int] | None:
    """Return (peer_id, conversation_message_id) of a message that VK has cut short, else None."""
    try:
        message = _message(update) if update["type"] == "message_new" else {}
        return (
            (_id(message, "peer_id"), _number(message, "conversation_message_id"))
            if message.get("is_cropped")
            else None
        )
    except (KeyError, TypeError, ValueError):
        return None  # malformed: building it tells why


def completed(update: Json, whole: Json) -> Json:
    """Return the update with the whole message in place of the cropped one."""
    return {**update, "object": {**update["object"], "message": {**_message(update), **whole}}}


def message_new(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/reference/objects/message"""
    message = _message(update)
    text = _text(message, "text")
    found = command.fullmatch(text)
    attachments = [_word(_object(item), "type") for item in _list(message, "attachments")]
    action = _object(message.get("action") or {})
    title = _text(action, "text") if action.get("type") == "chat_title_update" else ""
    return Event(
        "command" if found else "message",
        _word(update, "event_id"),
        _user(message, "from_id"),
        _peer(message, title),
        message=Message(
            _number(message, "conversation_message_id"),
            found[1] if found else text,
            _reply(message["reply_message"]) if message.get("reply_message") else None,
            [_reply(item) for item in _list(message, "fwd_messages")],
            [*attachments, "geo"] if message.get("geo") else attachments,
        ),
    )


def message_event(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/api/community-events/json-schema#message_event"""
    pressed = _object(update.get("object"))
    return Event(
        "button",
        _word(update, "event_id"),
        _user(pressed, "user_id"),
        _peer(pressed),
        button=Button(
            _number(pressed, "conversation_message_id"), _word(pressed, "event_id"), _payload(pressed.get("payload"))
        ),
    )


def message_reaction_event(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/api/community-events/json-schema#message_reaction_event"""
    reaction = _object(update.get("object"))
    return Event(
        "reaction",
        _word(update, "event_id"),
        _user(reaction, "reacted_id"),
        _peer(reaction),
        reaction=Reaction(_number(reaction, "cmid"), _number(reaction, "reaction_id")),
    )


def _message(update: Json) -> Json:
    contents = _object(update.get("object"))
    return _object(contents.get("message", contents))  # before 5.103 the object is the message itself


def _user(fields: Json, key: str) -> User:
    return User(_id(fields, key), "", "", "", "")


def _peer(fields: Json, title: str = "") -> Peer:
    bpid = _id(fields, "peer_id")
    return Peer(bpid, max(bpid - CHATS, 0), title)


def _reply(message: Any) -> Reply:
    return Reply(_number(_object(message), "conversation_message_id"), _text(message, "text"))


def _payload(value: Any) -> Json:
    """An object as it is, nothing as {}, JSON text of an object parsed, any other value v as {"value": v}."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value, parse_constant=_no_json)
        except (ValueError, RecursionError):
            parsed = value
        value = parsed if isinstance(parsed, dict) else value
    if value in (None, "") or value == []:
        return {}
    try:
        json.dumps([[[value]]], allow_nan=False)  # as deep as in the event
    except (ValueError, RecursionError):
        raise ValueError("payload cannot be written as JSON") from None
    return value if isinstance(value, dict) else {"value": value}


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ValueError(f"{_kind(value)} where an object is due")
    return value


def _list(fields: Json, key: str) -> list[Any]:
    value = fields.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"{key} is {_kind(value)}, not a list")
    return value


def _text(fields: Json, key: str) -> str:
    value = fields.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is {_kind(value)}, not text")
    return value or ""


def _word(fields: Json, key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {_kind(value)}, not text")
    return value


def _id(fields: Json, key: str) -> int:
    if fields.get(key) is None:
        raise ValueError(f"{key} is missing")
    return _number(fields, key)


def _number(fields: Json, key: str) -> int:
    """Return the number, also if VK sent it as text; 0 if it is missing."""
    value = fields.get(key)
    if value is None:
        return 0
    if isinstance(value, str) and re.fullmatch("-?[0-9]{1,20}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"{key} is {_kind(value)}, not a whole number")
    return int(value)


def _kind(value: Any) -> str:
    return "missing" if value is None else "empty" if value == "" else f"of type {type(value).__name__}"


BUILDERS: dict[str, Builder] = {
    "message_new": message_new,
    "message_event": message_event,
    "message_reaction_event": message_reaction_event,
}
