"""Updates as VK sends them: made one by one, or as mixed traffic."""

import itertools
import random
import secrets
from collections import Counter
from typing import Any

Json = dict[str, Any]

GROUP = 123456789
CHAT = 2000000000  # peers above it are chats
PERSON, PEER = 111222333, CHAT + 7  # the person and the chat of an update that names none

_numbers = itertools.count(1)

CLIENT_INFO = {
    "button_actions": ["text", "vkpay", "open_app", "location", "open_link", "open_photo", "callback",
                       "intent_subscribe", "intent_unsubscribe"],
    "keyboard": True, "inline_keyboard": True, "carousel": True, "lang_id": 0,
}  # fmt: skip


def update(type: str, object: Any, **more: Any) -> dict[str, Any]:
    """Wrap a VK object in the envelope of its type, with an event_id of its own."""
    envelope = {"group_id": GROUP, "type": type, "event_id": secrets.token_hex(20), "v": "5.199"}
    return envelope | {"object": object} | more


def message(text: str | None = None, user: int = PERSON, peer: int = PEER, **more: Any) -> dict[str, Any]:
    """Make a message_new; `more` is added to the message, whose text is its running number by default."""
    number = next(_numbers)
    body = {
        "date": 1764500000 + number, "from_id": user, "id": 0 if peer > CHAT else number, "version": 10004000,
        "out": 0, "important": False, "is_hidden": False, "attachments": [], "fwd_messages": [],
        "conversation_message_id": number, "text": f"сообщение {number}" if text is None else text,
        "peer_id": peer, "random_id": 0,
    }  # fmt: skip
    return update("message_new", {"client_info": CLIENT_INFO, "message": body | more})


def button(payload: Any = None, user: int = PERSON, peer: int = PEER, **more: Any) -> dict[str, Any]:
    """Make a message_event; `more` is added to the object, whose payload is its running number by default."""
    number = next(_numbers)
    body = {
        "user_id": user, "peer_id": peer, "event_id": secrets.token_hex(6),
        "payload": {"number": number} if payload is None else payload, "conversation_message_id": number,
    }  # fmt: skip
    return update("message_event", body | more)


def reaction(rid: int | None = 1, user: int = PERSON, peer: int = PEER, **more: Any) -> dict[str, Any]:
    """Make a message_reaction_event; `more` is added to the object, and rid=None takes a reaction back."""
    body = {"reacted_id": user, "peer_id": peer, "cmid": next(_numbers)}
    if rid is not None:
        body["reaction_id"] = rid
    return update("message_reaction_event", body | more)


def traffic(seed: int, people: int, chats: int, count: int) -> list[dict[str, Any]]:
    """Make mixed updates, always the same ones for the same arguments.

    Everybody is equally likely to act; one update in ten is in the dialog with the community, the rest in chats.
    """
    rng = random.Random(seed)
    cmids: Counter[int] = Counter()
    return [_one_of_traffic(rng, cmids, people, chats, number) for number in range(1, count + 1)]


def _one_of_traffic(rng: random.Random, cmids: Counter[int], people: int, chats: int, number: int) -> Any:
    user = 206000000 + 37 * rng.randrange(people)
    peer = user if rng.random() < 0.1 or not chats else CHAT + 1 + rng.randrange(chats)
    cmids[peer] += 1
    cmid, kind = cmids[peer], rng.random()
    if kind < 0.15:
        made = button({"action": rng.choice(["buy", "help", "next"]), "number": number}, user, peer,
                      conversation_message_id=cmid, event_id=rng.randbytes(6).hex())  # fmt: skip
    elif kind < 0.3:
        made = reaction(rng.choice([1, 4, 16, None]), user, peer, cmid=cmid)
    else:
        texts = ["Всем привет", "Кто сегодня дома?", "спасибо!", "ок 👍"]
        text = rng.choice(["/help", "!ban", "/start"] if kind < 0.5 else texts)
        more: Json = {"id": 0 if peer > CHAT else number, "date": 1764500000 + number}
        if rng.random() < 0.15:
            of_type = rng.choice(["photo", "doc", "sticker", "audio_message"])
            more["attachments"] = [{"type": of_type, of_type: {"id": number, "owner_id": user}}]
        if rng.random() < 0.15:
            replied = {"date": 1764500000, "from_id": -GROUP, "text": "Выберите пункт меню",
                       "conversation_message_id": max(1, cmid - 1), "id": 0, "peer_id": peer}  # fmt: skip
            more["reply_message"] = replied
        made = message(f"{text} {number}", user, peer, conversation_message_id=cmid, **more)
    return made | {"event_id": rng.randbytes(20).hex()}


def error(code: int, message: str = "Error of the tests") -> dict[str, Any]:
    """Make the answer with which VK refuses a call."""
    return {"error": {"error_code": code, "error_msg": message}}
