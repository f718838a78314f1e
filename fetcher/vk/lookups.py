"""Look up names and full messages at VK, many in one request. https://dev.vk.com/ru/method/execute

`names` and `full_messages` return VK's answers, and the failure that kept VK from answering the rest, or None. A
permanent refusal counts as an answer, so that one person, chat or message that VK refuses never delays the others.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Self

from vk_api.requests_pool import VkRequestsPool

from ..core.history import Name
from ..errors import CallFailed, Failure, FatalError, RequestRejected, TransientError
from ..events import CHATS
from .api import Api, translate_errors
from .fields import Json, object_or_empty, require_number, require_object, require_text

MAX_CALLS = 25  # in one `execute`
MAX_TIME = 2.0  # seconds after which the remaining lookups are left for later, because VK must be polled, too
MAX_IDS, MAX_IDS_OF = 100, {"users.get": 1000, "groups.getById": 500}  # ids in one call, and in one of these methods


class Lookup(NamedTuple):
    """One call for many ids; `read` turns an item of its answer into an id and a value.

    `ids` are in the caller's form: negative for communities, (peer_id, conversation_message_id) for messages.
    """

    method: str
    param: str
    ids: list[Any]
    more: Json
    read: Callable[[Json], tuple[Any, Any]]

    def chunks(self, size: int) -> list[Self]:
        """Return the same lookup in chunks of at most `size` ids."""
        return [self._replace(ids=self.ids[i : i + size]) for i in range(0, len(self.ids), size)]

    def parameters(self) -> Json:
        """Return the parameters of the call."""
        numbers = [id[1] if isinstance(id, tuple) else abs(id) for id in self.ids]
        return {self.param: ",".join(map(str, numbers)), "lang": "ru", **self.more}

    def values(self, answer: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the id and the value of each well-formed item.

        VK's answer is a list, or an object with `items` or `groups`.
        """
        if isinstance(answer, dict):
            answer = answer.get("items", answer.get("groups"))
        for item in answer if isinstance(answer, list) else ():
            with suppress(ValueError):
                yield self.read(require_object(item))


def names(api: Api, ids: Iterable[int]) -> tuple[dict[int, Name], Failure]:
    """Return the names by id, empty ones if VK has none; 1000 people and 100 chats together cost one request."""
    ids = sorted(ids)
    fields = {"fields": "domain,screen_name"}
    people = Lookup("users.get", "user_ids", [id for id in ids if 0 < id < CHATS], fields, read_person)
    communities = Lookup("groups.getById", "group_ids", [id for id in ids if id < 0], {}, read_community)
    chats = Lookup("messages.getConversationsById", "peer_ids", [id for id in ids if id > CHATS], {}, read_chat)
    resolved, failure = resolve(api, [people, communities, chats])
    return {id: name or Name() for id, name in resolved.items()}, failure


def full_messages(api: Api, places: Iterable[tuple[int, int]]) -> tuple[dict[tuple[int, int], Json], Failure]:
    """Return the full messages that VK still has, by (peer_id, conversation_message_id)."""
    lookups, method, param = [], "messages.getByConversationMessageId", "conversation_message_ids"
    for peer, group in groupby(sorted(places), key=lambda place: place[0]):
        lookups.append(Lookup(method, param, list(group), {"peer_id": peer}, partial(read_message, peer)))
    resolved, failure = resolve(api, lookups)
    return {place: message for place, message in resolved.items() if message}, failure


def resolve(api: Api, lookups: list[Lookup]) -> tuple[dict[Any, Any], Failure]:
    """Return VK's answers by id, None if VK has nothing for an id, and a failure if any id is left out.

    A call for several ids that fails or is refused is split, and so is a request that is too large for VK. If a
    request has several calls and all of them fail, the ids are not the cause, so no further request is sent.
    """
    resolved: dict[Any, Any] = {}
    failure: Failure = None
    lookups = [chunk for lookup in lookups for chunk in lookup.chunks(MAX_IDS_OF.get(lookup.method, MAX_IDS))]
    calls, until = MAX_CALLS, time.monotonic() + MAX_TIME
    while lookups and time.monotonic() <= until:
        now, lookups = lookups[:calls], lookups[calls:]
        try:
            answers = execute(api, now)
        except RequestRejected:
            answers = [[]] * len(now)
        except CallFailed as too_large:
            if len(now) > 1:
                calls, lookups = len(now) // 2, now + lookups
                continue
            answers = [too_large]
        except (TransientError, FatalError) as error:
            return resolved, error
        if len(now) > 1 and all(isinstance(answer, CallFailed) for answer in answers):
            return resolved, answers[0]
        for lookup, answer in zip(now, answers, strict=True):
            if isinstance(answer, TransientError) and len(lookup.ids) > 1:
                lookups = lookups + lookup.chunks(-(-len(lookup.ids) // MAX_CALLS))
            elif isinstance(answer, CallFailed):
                failure = answer
            else:
                resolved |= dict.fromkeys(lookup.ids) | dict(lookup.values(answer))
    return resolved, failure or (TransientError("VK's API is slow") if lookups else None)


def execute(api: Api, lookups: list[Lookup]) -> list[Any]:
    """Send the lookups as one request, and return an answer for each.

    The answer is a RequestRejected if VK refuses that call, and a CallFailed if the call failed. Raise CallFailed
    if the request is too large for VK, and RequestRejected if VK refuses it as a whole.
    """
    pool = VkRequestsPool(api)
    results = [pool.method(lookup.method, lookup.parameters()) for lookup in lookups]
    with translate_errors("execute"):
        pool.execute()
        return [  # compare with False, because VK's error may be null or empty
            result.result if result.error is False else api.failure(lookup.method, result.error, lookup.ids)
            for lookup, result in zip(lookups, results, strict=True)
        ]


# Each of these functions reads one item, and raises ValueError if it is malformed; the item is then ignored.


def read_person(person: Json) -> tuple[int, Name]:
    """Read a person; VK leaves out people it does not know. https://dev.vk.com/ru/method/users.get"""
    id = require_number(person, "id")
    first, last = require_text(person, "first_name", ""), require_text(person, "last_name", "")
    nick = require_text(person, "domain", "") or require_text(person, "screen_name", "") or f"id{id}"
    return id, Name(f"{first.strip()} {last.strip()}".strip(), first, last, nick)


def read_community(group: Json) -> tuple[int, Name]:
    """Read a community; VK's ids are positive here. Before 5.139 the answer was the list itself.

    https://dev.vk.com/ru/method/groups.getById
    """
    name = require_text(group, "name", "")
    return -require_number(group, "id"), Name(name, name, "", require_text(group, "screen_name", ""))


def read_chat(item: Json) -> tuple[int, Name]:
    """Read a chat; VK may leave a chat out, or return it without settings.

    https://dev.vk.com/ru/method/messages.getConversationsById
    """
    settings = object_or_empty(item.get("chat_settings"))
    return require_number(object_or_empty(item.get("peer")), "id"), Name(require_text(settings, "title", ""))


def read_message(peer: int, message: Json) -> tuple[tuple[int, int], Json]:
    """Read a message of this peer. https://dev.vk.com/ru/method/messages.getByConversationMessageId"""
    return (peer, require_number(message, "conversation_message_id")), message
