"""Build our event from VK's update: one pure function per type of update, listed in BUILDERS at the end.

Each function takes the update as VK sent it and the pattern of a command. It returns the event, in which the names of
people and chats are still empty, or raises ValueError with the reason if a field that the event needs is missing or
malformed.
"""

import re
from contextlib import suppress
from typing import Any

from ..events import CHATS, Action, Button, Event, Message, Peer, Reaction, Reply, User
from ..fastjson import dumps, loads, utf8
from .fields import Json, object_or_empty, require_number, require_object, require_text

# The first of these fields that an update has says who caused it.
ACTORS = ("user_id", "from_id", "liker_id", "admin_id", "deleter_id", "owner_id")


def command_pattern(group: int, prefixes: str) -> re.Pattern[str]:
    """Return the pattern of a command; its group 1 is the command without a leading mention of the community.

    A text button in a chat sends such a mention: https://dev.vk.com/ru/api/bots/development/keyboard
    """
    mention = rf"(?:\[(?:club|public){group}\|[^\]]*\]|@(?:club|public){group})[\s,:]*"
    # Keyboards put U+FE0F after many emoji; it only selects how they are displayed.
    return re.compile(rf"(?:{mention})?([{re.escape(prefixes)}]\ufe0f?[^\W_].*)", re.DOTALL)


def message_new(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/reference/objects/message"""
    fields = require_message(update)
    kind, text = "message", require_text(fields, "text", "")
    if found := command.fullmatch(text):
        kind, text = "command", found[1]
    reply = reply_of(fields["reply_message"]) if fields.get("reply_message") else None
    forward = [reply_of(item) for item in fields.get("fwd_messages") or ()]
    attachments = [require_text(require_object(item), "type") for item in fields.get("attachments") or ()]
    more = (("geo", "geo"), ("reply", "reply_message"), ("forward", "fwd_messages"))
    attachments += [name for name, key in more if fields.get(key)]
    message = Message(require_number(fields, "conversation_message_id", 0), text, reply, forward, attachments)
    action = action_of(fields["action"]) if fields.get("action") else None
    payload = None if fields.get("payload") in (None, "") else payload_of(fields["payload"])
    user, peer = user_of(require_number(fields, "from_id")), peer_of(require_number(fields, "peer_id"))
    if action and action.type == "chat_title_update":
        peer = peer._replace(name=action.text)
    return Event(kind, require_text(update, "event_id"), user, peer, message, action=action, payload=payload)


def message_event(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/api/community-events/json-schema#message_event"""
    fields = require_object(update.get("object"))
    cmid, beid = require_number(fields, "conversation_message_id", 0), require_text(fields, "event_id")
    button = Button(cmid, beid, payload_of(fields.get("payload")))
    user, peer = user_of(require_number(fields, "user_id")), peer_of(require_number(fields, "peer_id"))
    return Event("button", require_text(update, "event_id"), user, peer, button=button)


def message_reaction_event(update: Json, command: re.Pattern[str]) -> Event:
    """https://dev.vk.com/ru/api/community-events/json-schema#message_reaction_event"""
    fields = require_object(update.get("object"))
    reaction = Reaction(require_number(fields, "cmid", 0), require_number(fields, "reaction_id", 0))
    if reaction.rid < 0:
        raise ValueError("reaction_id is negative")
    user, peer = user_of(require_number(fields, "reacted_id")), peer_of(require_number(fields, "peer_id"))
    return Event("reaction", require_text(update, "event_id"), user, peer, reaction=reaction)


def other(update: Json, command: re.Pattern[str]) -> Event:
    """Build the event of a type that has no builder. VK may send [] for an object, and "" for a number.

    https://dev.vk.com/ru/api/community-events/json-schema
    """
    fields = object_or_empty(update.get("object"))
    actor = next((key for key in ACTORS if fields.get(key)), None)
    uuid = require_number(fields, actor) if actor else -require_number(update, "group_id")
    peer = peer_of(require_number(fields, "peer_id") if fields.get("peer_id") else uuid)
    kind = utf8(require_text(update, "type")).decode()  # it names a channel and a metric
    return Event(kind, require_text(update, "event_id"), user_of(uuid), peer)


def user_of(uuid: int) -> User:
    """Return the person or community; its names are looked up later."""
    return User(uuid, "", "", "", "")


def peer_of(bpid: int) -> Peer:
    """Return the peer; its name is looked up later, unless the update contains it."""
    return Peer(bpid, max(bpid - CHATS, 0), "")


def reply_of(value: Any) -> Reply:
    """Return a message that another one replies to or forwards."""
    fields = require_object(value)
    cmid, uuid = require_number(fields, "conversation_message_id", 0), require_number(fields, "from_id", 0)
    return Reply(cmid, require_text(fields, "text", ""), uuid)


def action_of(value: Any) -> Action:
    """Return what a message reports about its chat. Types that VK adds later are accepted, too."""
    fields = require_object(value)
    member = require_number(fields, "member_id", 0)  # a person, a community or an e-mail address
    text = require_text(fields, "text", "") or require_text(fields, "email", "")
    cmid = require_number(fields, "conversation_message_id", 0)
    return Action(require_text(fields, "type"), user_of(member) if member else None, text, cmid)


def payload_of(value: Any) -> Json:
    """Return an object as it is, JSON text of an object parsed, an empty value as {}, any other v as {"value": v}."""
    with suppress(ValueError):
        payload = require_object(loads(utf8(value)) if isinstance(value, str) else value)
        dumps(payload)  # NaN is not JSON
        return payload
    return {} if value in (None, "", []) else {"value": value}


def require_message(update: Json) -> Json:
    """Return the message of a message_new. Before API version 5.103 the object was the message itself."""
    contents = require_object(update.get("object"))
    return require_object(contents.get("message", contents))


BUILDERS = {
    "message_new": message_new,
    "message_event": message_event,
    "message_reaction_event": message_reaction_event,
}
