"""VK as a client meets it: its API and its Bots Long Poll, over real HTTP on loopback, faults included.

In a test `with VK() as vk:`; for a benchmark a process of its own, `python -m tests.vk --help`.
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import random
import re
import secrets
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

from tests import HOST, Loopback, free_port

GROUP = 123456789
TOKEN = "vk1.a.Tests-0f_secret-T0ken.3bF9xQ"
CHAT = 2000000000  # peers above it are chats
PERSON, PEER = 111222333, CHAT + 7  # the person and the chat of an update that names none

CALLS_AT_ONCE = 25
PEOPLE_AT_ONCE = 1000
COMMUNITIES_AT_ONCE = 500
PEERS_AT_ONCE = 100
MESSAGES_AT_ONCE = 100

Fault = int | str | dict[str, Any] | list[Any]
Params = dict[str, Any]


class Request(NamedTuple):
    time: float  # of time.monotonic()
    kind: str  # "poll" or "api"
    name: str  # of the method; "a_check" for a poll
    params: Params
    inner: list[tuple[str, Params]]  # the calls inside an execute


class Refused(Exception):
    """Say that VK refuses a call, with its code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


# --- Updates ---------------------------------------------------------------------------------------------

_numbers = itertools.count(1)

CLIENT_INFO = {
    "button_actions": ["text", "vkpay", "open_app", "location", "open_link", "open_photo", "callback",
                       "intent_subscribe", "intent_unsubscribe"],
    "keyboard": True, "inline_keyboard": True, "carousel": True, "lang_id": 0,
}  # fmt: skip


def update(type: str, object: Any, **more: Any) -> dict[str, Any]:
    """Wrap an object of VK's in the envelope of its type, with an event_id of its own."""
    envelope = {"group_id": GROUP, "type": type, "event_id": secrets.token_hex(20), "v": "5.199"}
    return envelope | {"object": object} | more


def message(text: str | None = None, user: int = PERSON, peer: int = PEER, **more: Any) -> dict[str, Any]:
    """Make a message_new; `more` goes into the message. Without a text it tells its running number."""
    number = next(_numbers)
    body = {
        "date": 1764500000 + number, "from_id": user, "id": 0 if peer > CHAT else number, "version": 10004000,
        "out": 0, "important": False, "is_hidden": False, "attachments": [], "fwd_messages": [],
        "conversation_message_id": number, "text": f"сообщение {number}" if text is None else text,
        "peer_id": peer, "random_id": 0,
    }  # fmt: skip
    return update("message_new", {"client_info": CLIENT_INFO, "message": body | more})


def button(payload: Any = None, user: int = PERSON, peer: int = PEER, **more: Any) -> dict[str, Any]:
    """Make a message_event; `more` goes into the object. Without a payload it tells its running number."""
    number = next(_numbers)
    body = {
        "user_id": user, "peer_id": peer, "event_id": secrets.token_hex(6),
        "payload": {"number": number} if payload is None else payload, "conversation_message_id": number,
    }  # fmt: skip
    return update("message_event", body | more)


def reaction(rid: int | None = 1, user: int = PERSON, peer: int = PEER, **more: Any) -> dict[str, Any]:
    """Make a message_reaction_event; `more` goes into the object, and rid=None takes a reaction back."""
    body = {"reacted_id": user, "peer_id": peer, "cmid": next(_numbers)}
    if rid is not None:
        body["reaction_id"] = rid
    return update("message_reaction_event", body | more)


def traffic(seed: int, people: int, chats: int, count: int) -> list[dict[str, Any]]:
    """Make mixed updates, the same ones for the same arguments.

    Everybody is equally likely to act; one in ten in the dialog with the community, the rest in chats.
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
        more: Params = {"id": 0 if peer > CHAT else number, "date": 1764500000 + number}
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
    """Make the answer by which VK refuses a call."""
    return {"error": {"error_code": code, "error_msg": message}}


# --- The API ---------------------------------------------------------------------------------------------

FIRST = ["Руслан", "Анна", "Игорь", "Мария", "Пётр", "Ольга", "Юрий", "Ксения", "Фёдор", "Жанна", "Илья"]
LAST = ["Шевченко", "Черных", "Бойко", "Седых", "Мельник", "Ткаченко", "Гончар", "Долгих", "Щерба", "Цой"]
_latin = dict(zip("абвгдеёзийклмнопрстуфыэ", "abvgdeeziyklmnoprstufye", strict=True))
_latin |= {"ж": "zh", "х": "kh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ю": "yu", "я": "ya"}
_latin |= dict.fromkeys("ъь", "")
LATIN = str.maketrans(_latin | {letter.upper(): latin.capitalize() for letter, latin in _latin.items()})
ALWAYS = ("id", "first_name", "last_name", "deactivated", "is_closed", "can_access_closed")


def numbers(value: Any) -> list[int]:
    """Read ids as VK does: a number, a list, or a text with commas."""
    parts = value if isinstance(value, list) else str("" if value is None else value).split(",")
    return [int(part) for part in parts if re.fullmatch(r"\s*-?\d+\s*", str(part))]


def inner_calls(code: str) -> list[tuple[str, Params]]:
    """Read the calls out of the code that vk_api gives to execute: a list, or a loop over values.

    Raises ValueError for any other code.
    """
    if start := re.match(r"\s*return\s*\[", code):
        return _listed_calls(code, start.end())
    variables, rest = _variables(code)
    call = re.search(r"API\.([\w.]+)\(\s*(\w+)", rest)
    if not call or not isinstance(variables.get("values"), list):
        raise ValueError("neither a list nor a loop")
    if call[2] == "values":
        return [(call[1], values) for values in variables["values"]]
    changing = re.search(rf"{call[2]}\.(\w+)\s*=\s*values\[", rest)
    if not changing:
        raise ValueError("nothing changes in the loop")
    return [(call[1], variables[call[2]] | {changing[1]: value}) for value in variables["values"]]


def _listed_calls(code: str, position: int) -> list[tuple[str, Params]]:
    calls = []
    while call := re.compile(r"\s*,?\s*API\.([\w.]+)\(\s*").match(code, position):
        values: Params = {}
        position = call.end()
        if code[position : position + 1] != ")":
            values, position = json.JSONDecoder().raw_decode(code, position)
        closing = re.compile(r"\s*\)").match(code, position)
        if not closing:
            raise ValueError("a call without its end")
        calls.append((call[1], values))
        position = closing.end()
    if not re.compile(r"\s*\]\s*;?\s*$").match(code, position):
        raise ValueError("a list without its end")
    return calls


def _variables(code: str) -> tuple[Params, str]:
    start = re.match(r"\s*var\s", code)
    variables: Params = {}
    position = start.end() if start else 0
    while variable := re.compile(r"\s*,?\s*(\w+)\s*=\s*").match(code, position):
        variables[variable[1]], position = json.JSONDecoder().raw_decode(code, variable.end())
    return variables, code[position:]


def get_long_poll_server(vk: "VK", params: Params) -> Any:
    check_group(vk, params)
    if not vk.settings["is_enabled"]:
        raise Refused(100, "One of the parameters specified was missing or invalid: "
                           "longpoll for this group is not enabled")  # fmt: skip
    key = f"eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.{secrets.token_urlsafe(48)}.{secrets.token_urlsafe(32)}"
    vk.keys.append(key)
    return {"key": key, "server": f"https://lp.vk.ru/whp/{vk.group_id}", "ts": vk.ts_type(vk.ts)}


def get_long_poll_settings(vk: "VK", params: Params) -> Any:
    check_group(vk, params)
    return vk.settings


def users_get(vk: "VK", params: Params) -> Any:
    ids = numbers(params.get("user_ids"))
    check(vk, ids, PEOPLE_AT_ONCE, "user_ids")
    if any(id <= 0 for id in ids):
        raise Refused(113, "Invalid user id")
    fields = params.get("fields", "")
    fields = fields if isinstance(fields, list) else str(fields).split(",")
    russian = str(params.get("lang", "")) in ("ru", "0")
    return [person(vk, id, fields, russian) for id in ids if id not in vk.unknown]


def person(vk: "VK", id: int, fields: Iterable[str], russian: bool) -> dict[str, Any]:
    """Tell of a person what VK would tell; what `vk.people` gives goes before what is invented."""
    first, last = FIRST[id % 11], LAST[id // 11 % 10]
    given = vk.people.get(id, {})
    nick = given.get("domain") or (f"{first.translate(LATIN).lower()}{id}" if id % 3 else f"id{id}")
    invented = {"first_name": first, "last_name": last, "domain": nick, "screen_name": nick,
                "is_closed": False, "can_access_closed": True}  # fmt: skip
    known: dict[str, Any] = {"id": id} | invented | given
    wanted = ALWAYS if known.get("deactivated") else (*ALWAYS, *fields)
    told = {name: value for name, value in known.items() if name in wanted and value is not None}
    if not russian:
        for name in ("first_name", "last_name"):
            told[name] = (told.get(name) or "").translate(LATIN)
    return told


def groups_get_by_id(vk: "VK", params: Params) -> Any:
    ids = numbers(params.get("group_ids") or params.get("group_id") or vk.group_id)
    check(vk, [-id for id in ids], COMMUNITIES_AT_ONCE, "group_ids")
    if any(id <= 0 for id in ids):
        raise Refused(100, "One of the parameters specified was missing or invalid: group_ids")
    return {"groups": [community(vk, id) for id in ids if -id not in vk.unknown], "profiles": []}


def community(vk: "VK", id: int) -> dict[str, Any]:
    """Tell of a community what VK would tell; what `vk.communities` gives goes before what is invented."""
    invented = {"name": f"Сообщество {id}", "screen_name": f"club{id}", "is_closed": 0, "type": "group"}
    known: dict[str, Any] = {"id": id} | invented | vk.communities.get(id, {})
    return {name: value for name, value in known.items() if value is not None}


def get_conversations_by_id(vk: "VK", params: Params) -> Any:
    check_group(vk, {"group_id": vk.group_id} | params)
    peers = numbers(params.get("peer_ids"))
    check(vk, peers, PEERS_AT_ONCE, "peer_ids")
    items = [conversation(vk, peer) for peer in peers if peer not in vk.hidden]
    answer: dict[str, Any] = {"count": len(items), "items": items}
    if str(params.get("extended", "0")) not in ("0", "False", "false", ""):
        told = dict(params) | {"user_ids": [peer for peer in peers if 0 < peer < CHAT]}
        answer["profiles"] = users_get(vk, told)
        answer["groups"] = [community(vk, -peer) for peer in peers if -CHAT < peer < 0]
    return answer


def conversation(vk: "VK", peer: int) -> dict[str, Any]:
    """Tell of a dialog or chat what VK would tell; titles come from `vk.chats` or are invented."""
    kind, local = ("user", peer) if peer > 0 else ("group", -peer)
    if peer > CHAT:
        kind, local = "chat", peer - CHAT
    elif peer < -CHAT:
        kind, local = "email", -peer - CHAT
    known: dict[str, Any] = {"peer": {"id": peer, "type": kind, "local_id": local}, "last_message_id": 0}
    if kind == "chat" and peer not in vk.untitled:
        title = vk.chats.get(peer, f"Беседа {local}")
        known["chat_settings"] = {"title": title, "owner_id": PERSON, "members_count": 3, "state": "in"}
    return known


def get_by_conversation_message_id(vk: "VK", params: Params) -> Any:
    peer = (numbers(params.get("peer_id")) or [0])[0]
    cmids = numbers(params.get("conversation_message_ids"))
    check(vk, [peer], 1, "peer_id")
    check(vk, [(peer, cmid) for cmid in cmids], MESSAGES_AT_ONCE, "conversation_message_ids")
    items = [vk.messages[peer, cmid] for cmid in cmids if (peer, cmid) in vk.messages]
    return {"count": len(items), "items": items}


def check_group(vk: "VK", params: Params) -> None:
    if str(params.get("group_id")) != str(vk.group_id):
        raise Refused(100, "One of the parameters specified was missing or invalid: group_id is incorrect")


def check(vk: "VK", ids: list[Any], most: int, parameter: str) -> None:
    if not ids or len(ids) > most:
        raise Refused(100, f"One of the parameters specified was missing or invalid: {parameter}")
    for id in ids:
        if id in vk.refused:
            raise Refused(vk.refused[id], "You don't have access to this chat")


METHODS: dict[str, Callable[["VK", Params], Any]] = {
    "groups.getLongPollServer": get_long_poll_server,
    "groups.getLongPollSettings": get_long_poll_settings,
    "users.get": users_get,
    "groups.getById": groups_get_by_id,
    "messages.getConversationsById": get_conversations_by_id,
    "messages.getByConversationMessageId": get_by_conversation_message_id,
}


# --- VK itself -------------------------------------------------------------------------------------------


class VK:
    """Answer like VK: a log of updates, people, chats, and the faults that a test asks for.

    All of it may be changed at any time from the test, `history`, `batch`, `latency` and `rps` too.
    Ids: people > 0, communities < 0 (but in `communities`, as in VK's answer, > 0), chats > 2000000000.
    """

    def __init__(
        self, group_id: int = GROUP, token: str = TOKEN, *, port: int = 0, ts: int = 1000, history: int = 256,
        batch: int = 100, latency: float = 0, rps: int = 0,
    ) -> None:  # fmt: skip
        self.group_id, self.token = group_id, token
        self.port = port or free_port()
        self.history, self.batch = history, batch
        self.latency, self.rps = latency, rps  # seconds an answer of the API takes; 0: no limit
        self.ts_type: type[str] | type[int] = str
        self.drip = 3.0  # seconds that a slow answer takes
        flags = ("message_new", "message_event", "message_reaction_event")
        self.settings: dict[str, Any] = {
            "is_enabled": True, "api_version": "5.199",
            "events": dict.fromkeys(flags, 1) | {"message_reply": 0, "message_read": 0, "group_join": 0},
        }  # fmt: skip

        self.people: dict[int, dict[str, Any]] = {}  # id: what differs from an invented person; None: absent
        self.communities: dict[int, dict[str, Any]] = {}
        self.chats: dict[int, str] = {}  # peer: title
        self.unknown: set[int] = set()  # people, and communities with a minus, whom VK leaves out
        self.hidden: set[int] = set()  # peers that VK leaves out
        self.untitled: set[int] = set()  # chats of which VK gives no chat_settings
        self.refused: dict[Any, int] = {}  # person, -community, peer or (peer, cmid): the code of the error
        self.messages: dict[tuple[int, int], dict[str, Any]] = {}  # (peer, cmid): message

        self.keys: list[str] = []  # all that were ever given
        self.requests: list[Request] = []
        self.asked: Counter[int] = Counter()  # how often for each person, -community and peer
        self.injected: Counter[str] = Counter()
        self.too_many = 0  # requests refused because of `rps`

        self._ts = ts
        self._log: list[Any] = []
        self._expired: set[str] = set()
        self._lost: set[str] = set()
        self._silent: set[str] = set()
        self.unreadable: set[str] = set()  # every answer at such a ts is cut in the middle
        self._faults: list[list[Any]] = []  # kind, fault, method, times
        self._accepted: deque[float] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._server: Loopback | None = None
        self._openings = 0
        self.up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    # The long poll

    @property
    def ts(self) -> int:
        """The number of the newest update."""
        return self._ts

    def push(self, *updates: Any) -> int:
        """Append updates to the log and tell the new ts."""
        with self._changed:
            self._log += updates
            self._ts += len(updates)
            del self._log[: max(0, len(self._log) - self.history)]
            self._changed.notify_all()
            return self._ts

    def replay(self, count: int) -> int:
        """Send the latest updates once more, under new numbers."""
        with self._changed:
            self.injected["replay"] += 1
            return self.push(*self._log[-count:] if count else ())

    def expire_keys(self) -> None:
        """Answer {"failed": 2} to all keys given so far."""
        with self._changed:
            self.injected["expired keys"] += 1
            self._expired.update(self.keys)
            self._changed.notify_all()

    def lose(self, ts: int | None = None) -> None:
        """Forget all updates and answer {"failed": 3} to all keys given so far; ts jumps."""
        with self._changed:
            self.injected["lost information"] += 1
            self._lost.update(self.keys)
            self._log.clear()
            self._ts = self._ts + 1000 if ts is None else ts
            self._changed.notify_all()

    def forget(self) -> None:
        """Keep no update: who has not had them all is answered {"failed": 1}."""
        with self._changed:
            self.injected["forgotten history"] += 1
            self._log.clear()

    def silence(self) -> None:
        """Tell nothing any more to those who poll with a key given so far."""
        with self._changed:
            self.injected["silence"] += 1
            self._silent.update(self.keys)

    def _look(self, key: str, ts: str) -> dict[str, Any] | None:
        """Answer a poll; None when there is nothing to tell yet."""
        if key in self._lost:
            return {"failed": 3}
        if key in self._expired or key not in self.keys:
            return {"failed": 2}
        if key in self._silent:
            return None
        oldest = self._ts - min(len(self._log), self.history)
        if not ts.isdigit() or int(ts) > self._ts:
            return {"failed": 1, "ts": self._ts}
        if int(ts) < oldest:
            return {"failed": 1, "ts": oldest}
        behind = self._ts - int(ts)
        updates = self._log[-behind:][: self.batch] if behind else []
        return {"ts": self.ts_type(int(ts) + len(updates)), "updates": updates} if updates else None

    def poll(self, params: Params) -> tuple[Fault | None, Any]:
        """Answer a request of the long poll, as late as it asks for."""
        key, ts = params.get("key", ""), params.get("ts", "")
        wait = min(float(params.get("wait") or 25), 90)
        with self._changed:
            self.requests.append(Request(time.monotonic(), "poll", params.get("act", ""), params, []))
            fault, _ = self._take("poll", [])
            if not fault and ts in self.unreadable:
                fault = "cut"
            if isinstance(fault, dict | list):
                return None, fault
            opening, found = self._openings, None

            def told() -> bool:
                nonlocal found
                found = self._look(key, ts)
                return found is not None or self._openings != opening

            self._changed.wait_for(told, 0 if fault else wait)
            return fault, found or {"ts": ts if self.ts_type is str else int(ts), "updates": []}

    # The API

    def ask(self, name: str, params: Params) -> tuple[Fault | None, Any]:
        """Answer a request of the API."""
        inner: list[tuple[str, Params]] = []
        refusal: Refused | None = None
        if name == "execute":
            try:
                inner = inner_calls(params.get("code", ""))
            except ValueError:
                refusal = Refused(12, "Unable to compile code")
            if len(inner) > CALLS_AT_ONCE:
                refusal = Refused(13, "Runtime error occurred during code invocation: Too many API calls")
        with self._changed:
            now = time.monotonic()
            self.requests.append(Request(now, "api", name, params, inner))
            self._count(inner or [(name, params)])
            fault, method = self._take("api", [name, *(called for called, _ in inner)])
            if not fault and self._is_too_often(now):
                refusal = Refused(6, "Too many requests per second")
            if params.get("access_token") != self.token:
                refusal = Refused(5, "User authorization failed: invalid access_token (4).")
            inside = fault if isinstance(fault, dict) and "error" in fault and method != name else None
            if isinstance(fault, dict | list) and not inside:
                answer = fault
            elif refusal:
                answer = error(refusal.code, refusal.message)
            else:
                answer = self._answer(name, params, inner, method, inside)
        time.sleep(self.latency)
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            open_params = {"method": name, "oauth": "1"} | params
            open_params.pop("access_token", None)
            told = [{"key": key, "value": value} for key, value in open_params.items()]
            answer = answer | {"error": answer["error"] | {"request_params": told}}
        return None if isinstance(fault, dict | list) else fault, answer

    def _answer(self, name: str, params: Params, inner: Any, failing: str | None, failure: Any) -> Any:
        if name != "execute":
            try:
                return {"response": self._call(name, params)}
            except Refused as refusal:
                return error(refusal.code, refusal.message)
        response: list[Any] = []
        errors = []
        for method, values in inner:
            try:
                if failure and method == failing:
                    told, failure = failure["error"], None
                    raise Refused(told["error_code"], told["error_msg"])
                response.append(self._call(method, {"lang": params.get("lang", "")} | values))
            except Refused as refusal:
                response.append(False)
                told = {"method": method, "error_code": refusal.code, "error_msg": refusal.message}
                errors.append(told)
        return {"response": response} | ({"execute_errors": errors} if errors else {})

    def _call(self, name: str, params: Params) -> Any:
        if name not in METHODS:
            raise Refused(3, "Unknown method passed")
        return METHODS[name](self, params)

    def _count(self, calls: list[tuple[str, Params]]) -> None:
        for method, values in calls:
            if method == "users.get":
                self.asked.update(numbers(values.get("user_ids")))
            elif method == "groups.getById":
                self.asked.update(-id for id in numbers(values.get("group_ids") or values.get("group_id")))
            elif method == "messages.getConversationsById":
                self.asked.update(numbers(values.get("peer_ids")))

    def _is_too_often(self, now: float) -> bool:
        while self._accepted and self._accepted[0] <= now - 1:
            self._accepted.popleft()
        if self.rps and len(self._accepted) >= self.rps:
            self.too_many += 1
            return True
        self._accepted.append(now)
        return False

    def busiest_second(self) -> int:
        """Count the requests of the API in that second which had most of them."""
        with self._changed:
            times = [request.time for request in self.requests if request.kind == "api"]
        most = first = 0
        for last, moment in enumerate(times):
            while times[first] <= moment - 1:
                first += 1
            most = max(most, last - first + 1)
        return most

    # Faults

    def fail_poll(self, fault: Fault, times: float = 1) -> None:
        """Answer the next polls with a fault.

        A fault is an HTTP status, "html", "cut", "short", "reset", "hang", "slow", or what to send as JSON.
        """
        with self._changed:
            self._faults.append(["poll", fault, None, times])

    def fail_api(self, fault: Fault, times: float = 1, method: str | None = None) -> None:
        """Answer the next requests of the API with a fault, or those of one method; "captcha" is one, too.

        An execute that calls the method inside counts as well: VK's errors then befall the inner call.
        """
        if fault == "captcha":
            sid = "872349871261"
            fault = error(14, "Captcha needed")
            fault["error"] |= {"captcha_sid": sid, "captcha_img": f"https://api.vk.ru/captcha.php?sid={sid}"}
        with self._changed:
            self._faults.append(["api", fault, method, times])

    @property
    def faults_left(self) -> int:
        """How many kinds of faults are still to come."""
        return len(self._faults)

    def heal(self) -> None:
        """Take back all faults that have not happened yet, and the silence."""
        with self._changed:
            self._faults.clear()
            self._silent.clear()
            self._changed.notify_all()

    def _take(self, kind: str, methods: list[str]) -> tuple[Fault | None, str | None]:
        for entry in self._faults:
            of_kind, fault, method, _ = entry
            if of_kind == kind and (method is None or method in methods):
                entry[3] -= 1
                if entry[3] <= 0:
                    self._faults.remove(entry)
                self.injected[f"{kind} {_name(fault)}"] += 1
                return fault, method or (methods[0] if methods else None)
        return None, None

    def cut(self) -> None:
        """Drop all connections."""
        self.injected["cut"] += 1
        if self._server:
            self._server.disconnect()

    def down(self) -> None:
        """Refuse connections and drop those that are open."""
        self.injected["down"] += 1
        self.close()

    def up(self) -> None:
        """Listen, on the same port as ever."""
        if not self._server:
            self._server = Loopback(self.port, functools.partial(Handler, self))

    def close(self) -> None:
        if self._server:
            self._server.close()
            self._server = None
        with self._changed:
            self._openings += 1
            self._changed.notify_all()

    def stats(self) -> dict[str, Any]:
        """Tell in figures what was asked."""
        busiest = self.busiest_second()
        with self._changed:
            api = [request for request in self.requests if request.kind == "api"]
            return {
                "ts": self._ts, "polls": len(self.requests) - len(api), "api": len(api),
                "methods": Counter(request.name for request in api),
                "inner": Counter(method for request in api for method, _ in request.inner),
                "busiest_second": busiest, "too_many": self.too_many, "asked": len(self.asked),
                "asked_again": sum(times > 1 for times in self.asked.values()), "injected": self.injected,
            }  # fmt: skip


def _name(fault: Fault) -> str:
    if isinstance(fault, int | str):
        return str(fault)
    if isinstance(fault, dict) and "failed" in fault:
        return f"failed {fault['failed']}"
    if isinstance(fault, dict) and isinstance(fault.get("error"), dict):
        return f"error {fault['error'].get('error_code')}"
    return "odd answer"


class Handler(BaseHTTPRequestHandler):
    """Speak HTTP for a VK."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, vk: VK, *of_connection: Any) -> None:
        self.vk = vk
        super().__init__(*of_connection)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, body: bytes) -> None:
        address = urlsplit(self.path)
        fault: Fault | None = None
        answer: Any = {}
        match address.path.split("/")[1:]:
            case ["push"]:
                answer = {"ts": self.vk.push(*json.loads(body))}
            case ["stats"]:
                answer = self.vk.stats()
            case ["method", name]:
                fault, answer = self.vk.ask(name, self._params(address.query, body))
            case ["whp", _]:
                fault, answer = self.vk.poll(self._params(address.query, body))
            case _:
                fault = 404
        self._answer(fault, answer)

    def _params(self, query: str, body: bytes) -> Params:
        both = f"{query}&{body.decode()}"
        return dict(parse_qsl(both, keep_blank_values=True, errors="surrogatepass"))

    def _answer(self, fault: Fault | None, answer: Any) -> None:
        page = b"<html><head><title>VK</title></head><body>Something went wrong</body></html>"
        body = page
        if not isinstance(fault, int) and fault != "html":
            try:
                body = json.dumps(answer, ensure_ascii=False).encode()
            except UnicodeEncodeError:  # lone surrogates
                body = json.dumps(answer).encode()
        if fault == "cut":
            body = body[: len(body) // 2]
        status = fault if isinstance(fault, int) else 200
        length = len(body) + (100 if fault == "short" else 0)
        of_type = "text/html" if body is page else "application/json"
        head = (f"HTTP/1.1 {status} {self.responses.get(status, ('?',))[0]}\r\nServer: kittenx\r\n"
                f"Content-Type: {of_type}; charset=utf-8\r\nContent-Length: {length}\r\n\r\n")  # fmt: skip
        self.close_connection = self.close_connection or fault in ("short", "reset", "hang")
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == "hang":
            self.connection.recv(1)  # until it is closed, from here or there
        elif fault == "slow":
            self.wfile.write(head.encode())
            piece = math.ceil(len(body) / 30)
            for start in range(0, len(body), piece):
                time.sleep(self.vk.drip / 30)
                self.wfile.write(body[start : start + piece])
        else:
            self.wfile.write(head.encode() + body)


def main() -> None:
    """Be VK until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.vk", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--group", type=int, default=GROUP)
    parser.add_argument("--token", default=TOKEN)
    parser.add_argument("--ts", type=int, default=1000, help="number of the last update")
    parser.add_argument("--history", type=int, default=256, help="updates that are kept")
    parser.add_argument("--batch", type=int, default=100, help="most updates in one answer")
    parser.add_argument("--latency", type=float, default=0, help="seconds that an answer of the API takes")
    parser.add_argument("--rps", type=int, default=0, help="most requests of the API in a second")
    options = vars(parser.parse_args())
    vk = VK(options.pop("group"), options.pop("token"), **options)
    with vk, contextlib.suppress(KeyboardInterrupt):
        print(vk.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
