"""From VK's update to our event: one pure function per type of update, found through BUILDERS at the foot.

Each takes the update as VK sent it and the pattern of a command, returns the event, with the names of people and chats
still empty, and raises ValueError with the reason where VK left out what an event cannot do without.
"""

import re
from collections.abc import Callable
from typing import Any

from ..events import CHATS, Action, Button, Event, Message, Peer, Reaction, Reply, User
from ..fastjson import dumps, loads, utf8
from .fields import Json, require_list, require_number, require_object, require_text

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
    text = require_text(message, "text", "")
    found = command.fullmatch(text)
    attachments = [require_text(require_object(item), "type") for item in require_list(message, "attachments")]
    more = (("geo", "geo"), ("reply", "reply_message"), ("forward", "fwd_messages"))
    action = action_of(message["action"]) if message.get("action") else None
    payload = message.get("payload")
    return Event(
        "command" if found else "message",
        require_text(update, "event_id"),
        user_of(require_number(message, "from_id")),
        peer_of(
            require_number(message, "peer_id"), action.text if action and action.type == "chat_title_update" else ""
        ),
        message=Message(
            require_number(message, "conversation_message_id", 0),
            found[1] if found else text,
            reply_of(message["reply_message"]) if message.get("reply_message") else None,
            [reply_of(item) for item in require_list(message, "fwd_messages")],
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
        user_of(require_number(pressed, "user_id")),
        peer_of(require_number(pressed, "peer_id")),
        button=Button(
            require_number(pressed, "conversation_message_id", 0),
            require_text(pressed, "event_id"),
            payload_of(pressed.get("payload")),
        ),
    )


def message_reaction_event(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/api/community-events/json-schema#message_reaction_event"""
    reaction = require_object(update.get("object"))
    rid = require_number(reaction, "reaction_id", 0)
    if rid < 0:
        raise ValueError("reaction_id is negative")
    return Event(
        "reaction",
        require_text(update, "event_id"),
        user_of(require_number(reaction, "reacted_id")),
        peer_of(require_number(reaction, "peer_id")),
        reaction=Reaction(require_number(reaction, "cmid", 0), rid),
    )


def other(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/api/community-events/json-schema"""
    fields = require_object(update.get("object"))
    actor = next((key for key in ACTORS if fields.get(key)), None)
    uuid = require_number(fields, actor) if actor else -require_number(update, "group_id")
    return Event(
        require_text(update, "type"),
        require_text(update, "event_id"),
        user_of(uuid),
        peer_of(require_number(fields, "peer_id", 0) or uuid),
    )


def user_of(uuid: int) -> User:
    """Return the person or community; the names are looked up later."""
    return User(uuid, "", "", "", "")


def peer_of(bpid: int, name: str = "") -> Peer:
    """Return the place; its name is looked up later unless the update has it."""
    return Peer(bpid, max(bpid - CHATS, 0), name)


def reply_of(value: Any) -> Reply:
    """Return a message inside a message."""
    message = require_object(value)
    return Reply(
        require_number(message, "conversation_message_id", 0),
        require_text(message, "text", ""),
        require_number(message, "from_id", 0),
    )


def action_of(value: Any) -> Action:
    """Return what a message reports about its chat. Types that are new to us are like any other."""
    action = require_object(value)
    member = require_number(action, "member_id", 0)  # of a person, a community or an e-mail address
    return Action(
        require_text(action, "type"),
        user_of(member) if member else None,
        require_text(action, "text", "") or require_text(action, "email", ""),
        require_number(action, "conversation_message_id", 0),
    )


def payload_of(value: Any) -> Json:
    """Return an object as it is, nothing as {}, JSON text of an object parsed, any other value v as {"value": v}."""
    if isinstance(value, str):
        try:
            parsed = loads(utf8(value))
            dumps(parsed)  # NaN is no JSON
        except ValueError:
            parsed = None
        value = parsed if isinstance(parsed, dict) else value
    if value in (None, "", []):
        return {}
    return value if isinstance(value, dict) else {"value": value}


def require_message(update: Json) -> Json:
    """Return the message of a message_new. Before 5.103 the object is the message itself."""
    contents = require_object(update.get("object"))
    return require_object(contents.get("message", contents))


BUILDERS: dict[str, Builder] = {
    "message_new": message_new,
    "message_event": message_event,
    "message_reaction_event": message_reaction_event,
}
