"""Updates as VK sends them, and what becomes of each: an event, a dead letter, or nothing.

A file is a whole update and its event. A variation differs from such a file in a field or two; its row has what is
different in the update, by place, and what becomes of it: what is different in the event, by place, or the reason of
the dead letter, or None for a type that is passed over.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Row = tuple[Json, Json | str | None]

FILES: dict[str, Json] = {
    path.stem: json.loads(path.read_text("utf-8")) for path in sorted(Path(__file__).parent.glob("*.json"))
}
MESSAGE, BUTTON, REACTION = "04-chat-text", "37-message-event-object", "39-reaction-added"  # files that are varied
MISSING = ...  # the value of what is not there

NOTHING = "of type NoneType where an object is expected"
TYPES = ["photo", "audio", "video", "video_playlist", "doc", "link", "market", "market_album", "gift", "sticker"]
TYPES += ["wall", "wall_reply", "article", "poll", "podcasts", "call", "graffiti", "audio_message", "story"]


def attached(*types: str) -> list[Json]:
    return [{"type": type, type: {"id": number, "owner_id": 111222333}} for number, type in enumerate(types)]


def foreign(cmid: Any, text: Any, user: Any = 444555666, **more: Any) -> Json:
    """Make a message inside a message."""
    return {"date": 1764500100, "from_id": user, "text": text, "conversation_message_id": cmid} | more


def nested(depth: int, level: int = 1) -> Json:
    inner = {"fwd_messages": [nested(depth, level + 1)]} if level < depth else {}
    return foreign(100 + level, str(level), **inner)


def reply(cmid: int, text: str, uuid: int = 444555666) -> Json:
    return {"cmid": cmid, "text": text, "uuid": uuid}


def action(type: str, user: int | None = None, text: str = "", cmid: int = 0) -> Json:
    named = user and {"uuid": user, "name": "", "firstname": "", "lastname": "", "nick": ""}
    return {"type": type, "user": named, "text": text, "cmid": cmid}


TEXTS: dict[str, tuple[str, str | None]] = {  # name: the text, and the command that it is
    "command-cyrillic": ("/помощь по ботам", "/помощь по ботам"),
    "command-digit": ("/1", "/1"),
    "command-of-many-lines": ("/say раз\nдва\n", "/say раз\nдва\n"),
    "command-other-prefix": ("!бан 5", "!бан 5"),
    "command-with-mention-behind": ("/ban [club123456789|@testbot] спам", "/ban [club123456789|@testbot] спам"),
    "mention-and-command-inside": ("[club123456789|@testbot] выполни /help", None),
    "mention-and-prefix-alone": ("[club123456789|@testbot] / help", None),
    "mention-at": ("@club123456789: /help", "/help"),
    "mention-at-longer-number": ("@club1234567890 /help", None),
    "mention-at-other-community": ("@club987654 /help", None),
    "mention-club": ("[club123456789|@testbot] /help", "/help"),
    "mention-inside": ("эй, [club123456789|@testbot] /help", None),
    "mention-of-any-label": (
        "[club123456789|Бот № 1 | (главный)\n👍]  ,: /help [club123456789|я]", "/help [club123456789|я]"
    ),
    "mention-of-longer-number": ("[club1234567890|@otherbot] /help", None),
    "mention-of-other-community": ("[club987654|@otherbot] /help", None),
    "mention-of-other-public": ("[public987654|Другой бот], /help", None),
    "mention-of-person": ("[id123456789|Иван] /help", None),
    "mention-public": ("[public123456789|Тестовый бот], !старт сейчас", "!старт сейчас"),
    "prefix-alone": ("/", None),
    "prefix-and-emoji": ("!👍", None),
    "prefix-and-punctuation": ("!?", None),
    "prefix-and-space": ("/ help", None),
    "prefix-and-underscore": ("/_help", None),
    "prefix-behind-space": (" /help", None),
    "prefix-inside": ("напиши /help", None),
    "prefix-of-others": (".help", None),
    "prefix-twice": ("//help", None),
    "text-of-any-unicode": (
        "👨\u200d👩\u200d👧\u200d👦 é й \u202eעברית\u202c \u2028 \x00 \ufeff 🇷🇺 &amp; &lt;b&gt; \\ \"", None
    ),
    "text-with-lone-surrogates": ("полпары \ud83d и \udc4d вторая", None),
}  # fmt: skip

MESSAGES: dict[str, Row] = {  # in object.message
    "from-e-mail": ({"from_id": -2000000123}, {"user.uuid": -2000000123}),
    "from-is-empty": ({"from_id": ""}, "from_id is missing or not a whole number of 64 bits"),
    "from-is-endless": ({"from_id": float("inf")}, "from_id is missing or not a whole number of 64 bits"),
    "from-is-fraction": ({"from_id": 111222333.5}, "from_id is missing or not a whole number of 64 bits"),
    "from-is-list": ({"from_id": [111222333]}, "from_id is missing or not a whole number of 64 bits"),
    "from-is-text": ({"from_id": "durov"}, "from_id is missing or not a whole number of 64 bits"),
    "from-is-true": ({"from_id": True}, "from_id is missing or not a whole number of 64 bits"),
    "from-missing": ({"from_id": MISSING}, "from_id is missing or not a whole number of 64 bits"),
    "from-null": ({"from_id": None}, "from_id is missing or not a whole number of 64 bits"),
    "from-own-community": ({"from_id": -123456789}, {"user.uuid": -123456789}),
    "peer-is-object": ({"peer_id": {"id": 2000000007}}, "peer_id is missing or not a whole number of 64 bits"),
    "peer-missing": ({"peer_id": MISSING}, "peer_id is missing or not a whole number of 64 bits"),
    "peer-null": ({"peer_id": None}, "peer_id is missing or not a whole number of 64 bits"),
    "peer-of-chat-zero": ({"peer_id": 2000000000}, {"peer.bpid": 2000000000, "peer.cid": 0}),
    "peer-of-community": ({"peer_id": -987654}, {"peer.bpid": -987654, "peer.cid": 0}),
    "peer-of-e-mail": ({"peer_id": -2000000123}, {"peer.bpid": -2000000123, "peer.cid": 0}),
    "peer-of-first-chat": ({"peer_id": 2000000001}, {"peer.bpid": 2000000001, "peer.cid": 1}),
    "peer-of-last-person": ({"peer_id": 1999999999}, {"peer.bpid": 1999999999, "peer.cid": 0}),
    "command-in-dialog": (
        {"peer_id": 111222333, "text": "@club123456789: /help"},
        {"event_type": "command", "peer.bpid": 111222333, "peer.cid": 0, "message.text": "/help"},
    ),
    "cmid-is-text": (
        {"conversation_message_id": "первое"}, "conversation_message_id is missing or not a whole number of 64 bits"
    ),
    "text-is-number": ({"text": 42}, {"message.text": "42"}),
    "text-is-object": ({"text": {"a": 1}}, "text is missing or not text"),
    "text-is-true": ({"text": True}, "text is missing or not text"),
    "missing": (
        dict.fromkeys(("conversation_message_id", "text", "fwd_messages", "attachments", "date", "id"), MISSING),
        {"message.cmid": 0, "message.text": ""},
    ),
    "nulls": (
        {
            **dict.fromkeys(("attachments", "conversation_message_id", "fwd_messages", "text", "reply_message", "geo")),
            **dict.fromkeys(("action", "is_cropped", "payload")),
        },
        {"message.cmid": 0, "message.text": ""},
    ),
    "numbers-as-text": (
        {"from_id": "-987654", "conversation_message_id": "1100", "peer_id": "2000000007"},
        {"user.uuid": -987654, "message.cmid": 1100},
    ),
    "number-with-point": ({"peer_id": 2000000007.0}, "peer_id is missing or not a whole number of 64 bits"),
    # Attachments
    "attachment-is-text": ({"attachments": ["photo"]}, "of type str where an object is expected"),
    "attachment-without-type": ({"attachments": [{"photo": {"id": 1}}]}, "type is missing or not text"),
    "attachments-are-object": ({"attachments": {"type": "photo"}}, "of type str where an object is expected"),
    "attachments-in-order": (
        {"attachments": attached("photo", "doc", "photo", "audio", "doc")},
        {"message.attachments": ["photo", "doc", "photo", "audio", "doc"]},
    ),
    "attachments-of-every-type": ({"attachments": attached(*TYPES)}, {"message.attachments": TYPES}),
    "attachments-unknown": (
        {"attachments": [*attached("mini_app"), {"type": "narrative"}, {"type": "call", "call": 0}, {"type": "2030"}]},
        {"message.attachments": ["mini_app", "narrative", "call", "2030"]},
    ),
    "geo-behind-attachments": (
        {"attachments": attached("photo", "doc"), "geo": {"type": "point", "coordinates": {"latitude": 59.9}}},
        {"message.attachments": ["photo", "doc", "geo"]},
    ),
    "geo-reply-and-forward-last": (
        {
            "fwd_messages": [foreign(1, "раз")],
            "reply_message": foreign(2, "два"),
            "geo": {"type": "point"},
            "attachments": attached("reply", "photo"),
        },
        {
            "message.reply": reply(2, "два"),
            "message.forward": [reply(1, "раз")],
            "message.attachments": ["reply", "photo", "geo", "reply", "forward"],
        },
    ),
    # Messages inside
    "forward-is-null": ({"fwd_messages": [None]}, NOTHING),
    "forwards-are-text": ({"fwd_messages": "Первое"}, "of type str where an object is expected"),
    "forwards-deep": (
        {"text": "", "fwd_messages": [nested(45)]},
        {"message.text": "", "message.forward": [reply(101, "1")], "message.attachments": ["forward"]},
    ),
    "forwards-hundred": (
        {"fwd_messages": [foreign(number, str(number)) for number in range(1, 101)]},
        {
            "message.forward": [reply(number, str(number)) for number in range(1, 101)],
            "message.attachments": ["forward"],
        },
    ),
    "reply-and-forwards": (
        {
            "reply_message": foreign(7, "Вопрос", fwd_messages=[foreign(3, "Внутри")]),
            "fwd_messages": [
                foreign(21, "Первое", -987654, fwd_messages=[foreign(3, "Внутри")]),
                foreign(22, "Второе", reply_message=foreign(4, "Ответ")),
            ],
        },
        {
            "message.reply": reply(7, "Вопрос"),
            "message.forward": [reply(21, "Первое", -987654), reply(22, "Второе")],
            "message.attachments": ["reply", "forward"],
        },
    ),
    "reply-by-nobody": (
        {"reply_message": foreign(7, "Вопрос", None)},
        {"message.reply": reply(7, "Вопрос", 0), "message.attachments": ["reply"]},
    ),
    "reply-by-text": (
        {"reply_message": foreign(7, "да", "durov")},
        "from_id is missing or not a whole number of 64 bits",
    ),
    "reply-is-empty": ({"reply_message": {}}, {}),
    "reply-is-text": ({"reply_message": "Вопрос"}, "of type str where an object is expected"),
    "reply-of-nothing": (
        {"reply_message": {"date": 1, "from_id": 5, "text": None}, "fwd_messages": [{"conversation_message_id": None}]},
        {
            "message.reply": reply(0, "", 5),
            "message.forward": [reply(0, "", 0)],
            "message.attachments": ["reply", "forward"],
        },
    ),
    "reply-of-numbers-as-text": (
        {"reply_message": foreign("7", 8, "444555666")},
        {"message.reply": reply(7, "8"), "message.attachments": ["reply"]},
    ),
    # Actions
    "action-is-empty": ({"action": {}}, {}),
    "action-is-text": ({"action": "chat_title_update"}, "of type str where an object is expected"),
    "action-without-type": ({"action": {"member_id": 5}}, "type is missing or not text"),
    "action-of-unknown-type": (
        {"action": {"type": "chat_kick_don", "text": "Не название", "member_id": 444555666}},
        {"action": action("chat_kick_don", 444555666, "Не название")},
    ),
    "action-of-numbers-as-text": (
        {"action": {"type": "chat_pin_message", "member_id": "5", "conversation_message_id": "7", "message": "да"}},
        {"action": action("chat_pin_message", 5, cmid=7)},
    ),
    "action-by-text": (
        {"action": {"type": "chat_kick_user", "member_id": "durov"}},
        "member_id is missing or not a whole number of 64 bits",
    ),
    "action-of-nulls": (
        {"action": {"type": "chat_photo_remove", "member_id": None, "text": None, "conversation_message_id": None}},
        {"action": action("chat_photo_remove")},
    ),
    "invitation-of-e-mail": (
        {"action": {"type": "chat_invite_user", "member_id": -2000000123, "email": "ivan@example.org"}},
        {"action": action("chat_invite_user", -2000000123, "ivan@example.org")},
    ),
    "invitation-of-other-community": (
        {"action": {"type": "chat_invite_user", "member_id": -987654}},
        {"action": action("chat_invite_user", -987654)},
    ),
    "title-update-of-number": (
        {"text": "", "action": {"type": "chat_title_update", "text": 2030}},
        {"peer.name": "2030", "message.text": "", "action": action("chat_title_update", text="2030")},
    ),
    "title-update-untold": (
        {"text": "", "action": {"type": "chat_title_update", "text": None}},
        {"message.text": "", "action": action("chat_title_update")},
    ),
    "title-update-with-member": (
        {
            "peer_id": 2000000008,
            "action": {"type": "chat_title_update", "text": "Беседа «Ёлка» 👍", "member_id": 111222333},
        },
        {
            "peer": {"bpid": 2000000008, "cid": 8, "name": "Беседа «Ёлка» 👍"},
            "action": action("chat_title_update", 111222333, "Беседа «Ёлка» 👍"),
        },
    ),
    "command-with-action-and-payload": (
        {"text": "/kick", "action": {"type": "chat_kick_user", "member_id": 5}, "payload": {"a": 1}},
        {
            "event_type": "command",
            "message.text": "/kick",
            "action": action("chat_kick_user", 5),
            "payload": {"a": 1},
        },
    ),
}  # fmt: skip

PAYLOADS: dict[str, tuple[Any, Json | str]] = {  # of buttons and of messages: VK's, ours
    "empty-list": ([], {}),
    "empty-object": ({}, {}),
    "false": (False, {"value": False}),
    "fraction": (0.5, {"value": 0.5}),
    "list": ([1, {"a": 2}], {"value": [1, {"a": 2}]}),
    "nested": (
        {"а": [1, 2.5, None, True, {"б": "в"}], "value": {}},
        {"а": [1, 2.5, None, True, {"б": "в"}], "value": {}},
    ),
    "number": (5, {"value": 5}),
    "of-infinity": ({"price": float("inf")}, "it cannot be written as JSON"),
    "of-nan": ({"price": float("nan")}, "it cannot be written as JSON"),
    "text": ("купить {", {"value": "купить {"}),
    "text-of-empty-object": ("{}", {}),
    "text-of-list": ("[1]", {"value": "[1]"}),
    "text-of-nan": ('{"a": NaN}', {"value": '{"a": NaN}'}),
    "text-of-number": ("5", {"value": "5"}),
    "text-of-object": ('{"action":"buy","n":[1,null]}', {"action": "buy", "n": [1, None]}),
    "text-of-text": ('"{\\"a\\":1}"', {"value": '"{\\"a\\":1}"'}),
    "true": (True, {"value": True}),
    "zero": (0, {"value": 0}),
}
NO_PAYLOAD = {"empty-text": "", "missing": MISSING, "null": None}  # {} for a button, absent for a message

BUTTONS: dict[str, Row] = {  # in object
    "button-by-community": ({"user_id": -987654}, {"user.uuid": -987654}),
    "button-of-numbers-as-text": (
        {"user_id": "111222333", "peer_id": "2000000007", "conversation_message_id": "7"}, {"button.cmid": 7}
    ),
    "button-without-beid": ({"event_id": MISSING}, "event_id is missing or not text"),
    "button-without-cmid": ({"conversation_message_id": MISSING}, {"button.cmid": 0}),
    "button-without-peer": ({"peer_id": None}, "peer_id is missing or not a whole number of 64 bits"),
    "button-without-user": ({"user_id": MISSING}, "user_id is missing or not a whole number of 64 bits"),
}  # fmt: skip

REACTIONS: dict[str, Row] = {  # in object
    "reaction-by-community": ({"reacted_id": -987654}, {"user.uuid": -987654}),
    "reaction-in-dialog": (
        {"peer_id": 111222333, "reaction_id": 64}, {"peer.bpid": 111222333, "peer.cid": 0, "reaction.rid": 64}
    ),
    "reaction-negative": ({"reaction_id": -1}, "reaction_id is negative"),
    "reaction-null": ({"reaction_id": None}, {"reaction.rid": 0}),
    "reaction-of-numbers-as-text": (
        {"reacted_id": "111222333", "peer_id": "2000000007", "cmid": "5", "reaction_id": "6"},
        {"reaction.cmid": 5, "reaction.rid": 6},
    ),
    "reaction-of-wrong-kind": ({"reaction_id": "heart"}, "reaction_id is missing or not a whole number of 64 bits"),
    "reaction-without-peer": ({"peer_id": MISSING}, "peer_id is missing or not a whole number of 64 bits"),
    "reaction-without-who": ({"reacted_id": MISSING}, "reacted_id is missing or not a whole number of 64 bits"),
}  # fmt: skip

UPDATES: dict[str, Row] = {  # in the update itself
    "event-id-empty": ({"event_id": ""}, "event_id is missing or not text"),
    "event-id-is-number": ({"event_id": 5}, "event_id is missing or not text"),
    "event-id-missing": ({"event_id": MISSING}, "event_id is missing or not text"),
    "event-id-null": ({"event_id": None}, "event_id is missing or not text"),
    "form-before-5.103": (
        {"object": FILES[MESSAGE]["update"]["object"]["message"] | {"text": "/help"}},
        {"event_type": "command", "message.text": "/help"},
    ),
    "form-before-5.80": (
        {"object": {"id": 5, "date": 1500000000, "user_id": 5, "body": "Привет"}},
        "from_id is missing or not a whole number of 64 bits",
    ),
    "message-is-text": ({"object.message": "Привет"}, "of type str where an object is expected"),
    "message-null": ({"object.message": None}, NOTHING),
    "object-empty-list": ({"type": "message_event", "object": []}, "of type list where an object is expected"),
    "object-is-text": ({"type": "message_reaction_event", "object": "👍"}, "of type str where an object is expected"),
    "object-missing": ({"object": MISSING}, NOTHING),
    "object-null": ({"object": None}, NOTHING),
    "nan-unpublished": ({"object.message.date": float("nan")}, {}),
    "passed-over-malformed": ({"type": "brand_new", "object": []}, None),
    "passed-over-message": ({"type": "message_new_v2"}, None),
    "passed-over-unknown": ({"type": "brand_new", "object": {"anything": [1]}}, None),
    "passed-over-without-id": ({"type": "brand_new", "object": None, "event_id": MISSING}, None),
    "type-is-empty": ({"type": ""}, "type is missing or not text"),
    "type-is-number": ({"type": 4}, "type is missing or not text"),
    "type-missing": ({"type": MISSING}, "type is missing or not text"),
    "type-null": ({"type": None}, "type is missing or not text"),
}
NO_UPDATES: dict[str, Any] = {"empty": {}, "list": [], "null": None, "number": 5, "text": "message_new"}


def put(tree: Json, places: Json) -> None:
    """Change what stands at each place, like "peer.cid", of a tree."""
    for place, value in places.items():
        *path, last = place.split(".")
        branch = tree
        for name in path:
            branch = branch[name]
        if value is MISSING:
            del branch[last]
        else:
            branch[last] = value


def rows() -> Iterator[tuple[str, str, str, Json, Json | str | None]]:
    """List name, file, place of what is different, what is different there, and what becomes of it."""
    for name, (text, command) in TEXTS.items():
        kind = {"event_type": "command"} if command else {}
        yield name, MESSAGE, "object.message.", {"text": text}, {"message.text": command or text} | kind
    for prefix, file, place in (("payload", BUTTON, "object."), ("text-payload", MESSAGE, "object.message.")):
        base = "button." if file is BUTTON else ""
        for name, (payload, ours) in PAYLOADS.items():
            outcome = ours if isinstance(ours, str) else {base + "payload": ours}
            yield f"{prefix}-{name}", file, place, {"payload": payload}, outcome
        for name, payload in NO_PAYLOAD.items():
            changes = {} if file is MESSAGE and payload is MISSING else {"payload": payload}
            yield f"{prefix}-{name}", file, place, changes, {"button.payload": {}} if file is BUTTON else {}
    tables = [(MESSAGES, MESSAGE, "object.message."), (UPDATES, MESSAGE, "")]
    for table, file, place in [*tables, (BUTTONS, BUTTON, "object."), (REACTIONS, REACTION, "object.")]:
        for name, (changes, different) in table.items():
            yield name, file, place, changes, different


def variation(name: str, file: str, place: str, changes: Json, outcome: Json | str | None) -> Json:
    sample = copy.deepcopy(FILES[file])
    event_id = {"event_id": hashlib.sha1(name.encode()).hexdigest()}
    put(sample["update"], event_id | {place + key: copy.deepcopy(value) for key, value in changes.items()})
    if isinstance(outcome, dict):
        put(sample["event"], event_id | copy.deepcopy(outcome))
        return sample
    return {"update": sample["update"]} | ({"dead_letter": outcome} if outcome else {"passed_over": True})


SAMPLES: dict[str, Json] = FILES | {row[0]: variation(*row) for row in rows()}
for name, no_update in NO_UPDATES.items():
    not_object = f"of type {type(no_update).__name__} where an object is expected"
    reason = "type is missing or not text" if no_update == {} else not_object
    SAMPLES[f"update-is-{name}"] = {"update": no_update, "dead_letter": reason}
