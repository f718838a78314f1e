"""The methods of VK's API that the fetcher calls, each a function of a VK and the parameters.

Each raises RequestRejected where VK would refuse the call.
"""

import re
import secrets
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tests.vk.updates import CHAT, PERSON, Json

if TYPE_CHECKING:
    from tests.vk.server import VK

MAX_PEOPLE = 1000  # in one call
MAX_COMMUNITIES = 500
MAX_PEERS = 100
MAX_MESSAGES = 100
RIGHTS = {"stories": 1, "photos": 4, "app_widget": 64, "messages": 4096, "docs": 131072, "manage": 262144}


class RequestRejected(Exception):
    """Raised if VK refuses a call, with VK's code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


FIRST = ["Руслан", "Анна", "Игорь", "Мария", "Пётр", "Ольга", "Юрий", "Ксения", "Фёдор", "Жанна", "Илья"]
LAST = ["Шевченко", "Черных", "Бойко", "Седых", "Мельник", "Ткаченко", "Гончар", "Долгих", "Щерба", "Цой"]
_latin = dict(zip("абвгдеёзийклмнопрстуфыэ", "abvgdeeziyklmnoprstufye", strict=True))
_latin |= {"ж": "zh", "х": "kh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ю": "yu", "я": "ya"}
_latin |= dict.fromkeys("ъь", "")
LATIN = str.maketrans(_latin | {letter.upper(): latin.capitalize() for letter, latin in _latin.items()})
ALWAYS = ("id", "first_name", "last_name", "deactivated", "is_closed", "can_access_closed")


def numbers(value: Any) -> list[int]:
    """Read ids as VK does: from a number, a list, or a text with commas."""
    parts = value if isinstance(value, list) else str("" if value is None else value).split(",")
    return [int(part) for part in parts if re.fullmatch(r"\s*-?\d+\s*", str(part))]


def get_long_poll_server(vk: "VK", params: Json) -> Any:
    check_group(vk, params)
    check_manage(vk)
    if not vk.settings["is_enabled"]:
        raise RequestRejected(100, "One of the parameters specified was missing or invalid: "
                           "longpoll for this group is not enabled")  # fmt: skip
    key = f"eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.{secrets.token_urlsafe(48)}.{secrets.token_urlsafe(32)}"
    vk.keys.append(key)
    return {"key": key, "server": f"https://lp.vk.ru/whp/{vk.group_id}", "ts": vk.ts_type(vk.ts)}


def get_long_poll_settings(vk: "VK", params: Json) -> Any:
    check_group(vk, params)
    check_manage(vk)
    return vk.settings


def set_long_poll_settings(vk: "VK", params: Json) -> Any:
    """Change the settings.

    VK does not document what it does with types that are not named; here they are switched off.
    """
    check_group(vk, params)
    check_manage(vk)
    flags = {kind: int(params.get(kind, 0)) for kind in vk.settings["events"]}
    version = params.get("api_version", vk.settings["api_version"])
    enabled = bool(int(params.get("enabled", vk.settings["is_enabled"])))
    vk.settings = {"is_enabled": enabled, "api_version": version, "events": flags}
    return 1


def get_token_permissions(vk: "VK", params: Json) -> Any:
    permissions = [{"name": name, "setting": RIGHTS[name]} for name in vk.rights]
    return {"mask": sum(RIGHTS[name] for name in vk.rights), "permissions": permissions}


def users_get(vk: "VK", params: Json) -> Any:
    ids = numbers(params.get("user_ids"))
    check(vk, ids, MAX_PEOPLE, "user_ids")
    if any(id <= 0 for id in ids):
        raise RequestRejected(113, "Invalid user id")
    fields = params.get("fields", "")
    fields = fields if isinstance(fields, list) else str(fields).split(",")
    russian = str(params.get("lang", "")) in ("ru", "0")
    return [person(vk, id, fields, russian) for id in ids if id not in vk.unknown]


def person(vk: "VK", id: int, fields: Iterable[str], russian: bool) -> dict[str, Any]:
    """Return what VK knows about a person; `vk.people` overrides what is invented."""
    first, last = FIRST[id % 11], LAST[id // 11 % 10]
    given = vk.people.get(id, {})
    nick = given.get("domain") or (f"{first.translate(LATIN).lower()}{id}" if id % 3 else f"id{id}")
    invented = {"first_name": first, "last_name": last, "domain": nick, "screen_name": nick,
                "is_closed": False, "can_access_closed": True}  # fmt: skip
    known: dict[str, Any] = {"id": id} | invented | given
    visible = ALWAYS if known.get("deactivated") else (*ALWAYS, *fields)
    answer = {name: value for name, value in known.items() if name in visible and value is not None}
    if not russian:
        for name in ("first_name", "last_name"):
            answer[name] = (answer.get(name) or "").translate(LATIN)
    return answer


def groups_get_by_id(vk: "VK", params: Json) -> Any:
    ids = numbers(params.get("group_ids") or params.get("group_id") or vk.group_id)
    check(vk, [-id for id in ids], MAX_COMMUNITIES, "group_ids")
    if any(id <= 0 for id in ids):
        raise RequestRejected(100, "One of the parameters specified was missing or invalid: group_ids")
    return {"groups": [community(vk, id) for id in ids if -id not in vk.unknown], "profiles": []}


def community(vk: "VK", id: int) -> dict[str, Any]:
    """Return what VK knows about a community; `vk.communities` overrides what is invented."""
    invented = {"name": f"Сообщество {id}", "screen_name": f"club{id}", "is_closed": 0, "type": "group"}
    known: dict[str, Any] = {"id": id} | invented | vk.communities.get(id, {})
    return {name: value for name, value in known.items() if value is not None}


def get_conversations_by_id(vk: "VK", params: Json) -> Any:
    check_group(vk, {"group_id": vk.group_id} | params)
    peers = numbers(params.get("peer_ids"))
    check(vk, peers, MAX_PEERS, "peer_ids")
    items = [conversation(vk, peer) for peer in peers if peer not in vk.hidden]
    answer: dict[str, Any] = {"count": len(items), "items": items}
    if str(params.get("extended", "0")) not in ("0", "False", "false", ""):
        people = [peer for peer in peers if 0 < peer < CHAT]
        answer["profiles"] = users_get(vk, params | {"user_ids": people}) if people else []
        answer["groups"] = [community(vk, -peer) for peer in peers if -CHAT < peer < 0]
    return answer


def conversation(vk: "VK", peer: int) -> dict[str, Any]:
    """Return what VK knows about a dialog or chat; titles come from `vk.chats` or are invented."""
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


def get_by_conversation_message_id(vk: "VK", params: Json) -> Any:
    peer = (numbers(params.get("peer_id")) or [0])[0]
    cmids = numbers(params.get("conversation_message_ids"))
    check(vk, [peer], 1, "peer_id")
    check(vk, [(peer, cmid) for cmid in cmids], MAX_MESSAGES, "conversation_message_ids")
    items = [vk.messages[peer, cmid] for cmid in cmids if (peer, cmid) in vk.messages]
    return {"count": len(items), "items": items}


def check_group(vk: "VK", params: Json) -> None:
    if str(params.get("group_id")) != str(vk.group_id):
        raise RequestRejected(100, "One of the parameters specified was missing or invalid: group_id is incorrect")


def check_manage(vk: "VK") -> None:
    if "manage" not in vk.rights:
        raise RequestRejected(15, "Access denied: no access to call this method")


def check(vk: "VK", ids: list[Any], limit: int, parameter: str) -> None:
    if not ids or len(ids) > limit:
        raise RequestRejected(100, f"One of the parameters specified was missing or invalid: {parameter}")
    for id in ids:
        if id in vk.refused:
            raise RequestRejected(vk.refused[id], "You don't have access to this chat")
        if id in vk.failing:
            vk.injected[f"lookup error {vk.failing[id]}"] += 1
            raise RequestRejected(vk.failing[id], "Internal server error: could not get application")


METHODS: dict[str, Callable[["VK", Json], Any]] = {
    "groups.getLongPollServer": get_long_poll_server,
    "groups.getLongPollSettings": get_long_poll_settings,
    "groups.setLongPollSettings": set_long_poll_settings,
    "groups.getTokenPermissions": get_token_permissions,
    "users.get": users_get,
    "groups.getById": groups_get_by_id,
    "messages.getConversationsById": get_conversations_by_id,
    "messages.getByConversationMessageId": get_by_conversation_message_id,
}
