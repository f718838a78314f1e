"""Look-ups at VK: names and full messages, many at once. https://dev.vk.com/ru/method/execute"""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, Self

from vk_api.requests_pool import VkRequestsPool

from ..core.ports import Failure, Name
from ..errors import FatalError, RequestRejected, TransientError
from ..events import CHATS
from .api import ERRORS, Api, Json, Kind, translate_errors

MAX_CALLS = 25  # of one `execute`
MAX_PEOPLE, MAX_COMMUNITIES, MAX_CHATS, MAX_MESSAGES = 1000, 500, 100, 100  # ids of one call

log = logging.getLogger("fetcher")


class Lookup(NamedTuple):
    """One call for many ids, and how to read its answer into a dict by id.

    An id is what the caller knows it by: negative for communities, (peer_id, conversation_message_id) for messages.
    """

    method: str
    param: str
    ids: list[Any]
    more: Json
    read: Callable[[Any], dict[Any, Any]]

    def chunks(self, most: int) -> list[Self]:
        """Return the same look-up in chunks of at most `most` ids."""
        return [self._replace(ids=self.ids[i : i + most]) for i in range(0, len(self.ids), most)]

    @property
    def values(self) -> Json:
        """The parameters of the call."""
        numbers = [id[1] if isinstance(id, tuple) else abs(id) for id in self.ids]
        return {self.param: ",".join(map(str, numbers)), "lang": "ru", **self.more}


class Lookups:
    """Names and full messages from VK.

    Methods return what VK answered, and the failure that kept it from answering the rest, or None. What VK refuses for
    good counts as answered: one person, chat or message that it does not tell never delays the others.
    """

    def __init__(self, api: Api) -> None:
        """Ask nothing yet."""
        self.api = api

    def names(self, ids: Iterable[int]) -> tuple[dict[int, Name], Failure]:
        """Return the names by id, empty ones where VK tells none; 1000 people and 100 chats cost one request."""
        ids = sorted(ids)
        people = [id for id in ids if 0 < id < CHATS]
        communities = [id for id in ids if id < 0]
        chats = [id for id in ids if id > CHATS]
        fields = {"fields": "domain,screen_name"}
        lookups = Lookup("users.get", "user_ids", people, fields, read_people).chunks(MAX_PEOPLE)
        lookups += Lookup("groups.getById", "group_ids", communities, {}, read_communities).chunks(MAX_COMMUNITIES)
        lookups += Lookup("messages.getConversationsById", "peer_ids", chats, {}, read_chats).chunks(MAX_CHATS)
        resolved, failure = self.resolve(lookups)
        if nameless := [id for id, name in resolved.items() if not name]:
            log.debug("VK tells no name of %s", nameless)
        return {id: name or Name() for id, name in resolved.items()}, failure

    def full_messages(self, places: Iterable[tuple[int, int]]) -> tuple[dict[tuple[int, int], Json], Failure]:
        """Return the full messages by (peer_id, conversation_message_id), those that VK still has."""
        lookups, method = [], "messages.getByConversationMessageId"
        for peer, group in groupby(sorted(places), key=itemgetter(0)):
            read = partial(read_messages, peer)
            lookups += Lookup(method, "conversation_message_ids", list(group), {"peer_id": peer}, read).chunks(
                MAX_MESSAGES
            )
        resolved, failure = self.resolve(lookups)
        return {place: message for place, message in resolved.items() if message}, failure

    def resolve(self, lookups: list[Lookup]) -> tuple[dict[Any, Any], Failure]:
        """Return what VK answers, None where it has nothing.

        What it refuses for several ids is asked in chunks; so is what fails for them, as long as VK answers anything.
        """
        resolved: dict[Any, Any] = {}
        failure: Failure = None
        cause: Failure = None
        answering = True
        while lookups:
            now, lookups = lookups[:MAX_CALLS], lookups[MAX_CALLS:]
            try:
                answers = self.execute(now)
            except (TransientError, FatalError) as error:
                return resolved, cause or error
            for lookup, answer in zip(now, answers, strict=True):
                rejected = isinstance(answer, RequestRejected)
                failed = isinstance(answer, TransientError) and not rejected
                if rejected:
                    log.debug("%s of %s", answer, lookup.ids)
                cause = answer if failed else cause
                if len(lookup.ids) > 1 and (rejected or (failed and answering)):
                    lookups = lookups + lookup.chunks(-(-len(lookup.ids) // MAX_CALLS))
                elif failed:
                    failure = answer
                else:
                    resolved |= dict.fromkeys(lookup.ids) | lookup.read(None if rejected else answer)
            answering = any(not isinstance(answer, TransientError) for answer in answers)
        return resolved, failure

    def execute(self, lookups: list[Lookup]) -> list[Any]:
        """Return the answer of each look-up, or what is wrong with it, from one request."""
        pool = VkRequestsPool(self.api)
        results = [pool.method(lookup.method, lookup.values) for lookup in lookups]
        try:
            with translate_errors("execute"):
                pool.execute()
                return [
                    result.result if result.ok else self.api.failure(lookup.method, result.error, inside=True)
                    for lookup, result in zip(lookups, results, strict=True)
                ]
        except RequestRejected as rejected:
            if rejected.code not in ERRORS or ERRORS[rejected.code].kind is not Kind.TOO_LARGE:
                log.debug("%s", rejected)
                return [None] * len(lookups)
            if any(len(lookup.ids) > 1 for lookup in lookups):
                return [rejected] * len(lookups)
            if len(lookups) > 1:
                return [answer for lookup in lookups for answer in self.execute([lookup])]
            raise TransientError(str(rejected)) from None


def read_people(answer: Any) -> dict[int, Name]:
    """https://dev.vk.com/ru/method/users.get: whom VK does not know is left out."""
    found = {}
    for person in objects_or_empty(answer):
        first, last = text_or_empty(person, "first_name"), text_or_empty(person, "last_name")
        id = id_or_zero(person)
        nick = text_or_empty(person, "domain") or text_or_empty(person, "screen_name") or f"id{id}"
        found[id] = Name(f"{first.strip()} {last.strip()}".strip(), first, last, nick)
    return found


def read_communities(answer: Any) -> dict[int, Name]:
    """https://dev.vk.com/ru/method/groups.getById: ids are positive; before 5.139 the answer was the list itself."""
    found = {}
    for group in objects_or_empty(answer.get("groups") if isinstance(answer, dict) else answer):
        name = text_or_empty(group, "name")
        found[-id_or_zero(group)] = Name(name, name, "", text_or_empty(group, "screen_name"))
    return found


def read_chats(answer: Any) -> dict[int, Name]:
    """https://dev.vk.com/ru/method/messages.getConversationsById: a chat may be left out, or come without settings."""
    found = {}
    for item in items_or_empty(answer):
        peer, settings = object_or_empty(item.get("peer")), object_or_empty(item.get("chat_settings"))
        found[id_or_zero(peer)] = Name(text_or_empty(settings, "title"))
    return found


def read_messages(peer: int, answer: Any) -> dict[tuple[int, int], Json]:
    """https://dev.vk.com/ru/method/messages.getByConversationMessageId"""
    return {(peer, id_or_zero(item, "conversation_message_id")): item for item in items_or_empty(answer)}


def object_or_empty(value: Any) -> Json:
    """Return the object, {} for anything else."""
    return value if isinstance(value, dict) else {}


def objects_or_empty(value: Any) -> list[Json]:
    """Return the objects in a list, [] for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def items_or_empty(answer: Any) -> list[Json]:
    """Return the objects in `items`."""
    return objects_or_empty(object_or_empty(answer).get("items"))


def id_or_zero(fields: Json, key: str = "id") -> int:
    """Return the id, 0 for anything that is none."""
    value = fields.get(key)
    return value if isinstance(value, int) else 0


def text_or_empty(fields: Json, key: str) -> str:
    """Return the text, "" for anything else."""
    value = fields.get(key)
    return value if isinstance(value, str) else ""
