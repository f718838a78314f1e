"""VK through vk_api: long polls, whole messages and names. No other file knows vk_api.

Every method raises Trouble for what passes by itself, and Fatal for what the operator must mend.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, Self

import requests
from jconfig.memory import MemoryConfig
from redis.backoff import EqualJitterBackoff
from urllib3.exceptions import HTTPError
from vk_api import ApiError, ApiHttpError, VkApiGroup
from vk_api.bot_longpoll import VkBotLongPoll
from vk_api.requests_pool import VkRequestsPool

from .errors import Fatal, Trouble, Unreadable
from .events import CHATS
from .names import Name

API_VERSION = "5.199"
API_TIMEOUT = 5.0  # seconds, to connect and for the answer
POLL_MARGIN = 10.0  # seconds past its `wait` that a poll may take
API_SPACING = 0.0525  # seconds from start to start: VK allows a community 20 requests a second
QUIET_UP_TO = 60.0  # seconds without a request after the errors in QUIET
UNREADABLE_LIMIT = 600.0  # seconds of unreadable answers at one ts before a fresh ts is tried
ASK_AGAIN = 60.0  # seconds between two tries of something that may go on as it is

# https://dev.vk.com/ru/reference/errors
FATAL = {
    5: "VK refuses the token: put a valid community token into TOKEN",
    27: "VK refuses the community token: make a new one in the community's settings and put it into TOKEN",
    28: "VK refuses the token: put a community token, not an application's, into TOKEN",
    42: "VK refuses this server's address for the token: allow it, or make a token without such a limit",
    1117: "The token has expired: put a new one into TOKEN",
}
FATAL_AT_START = {
    15: "the token lacks the right to manage the community: make one with the rights 'manage' and 'messages'",
    100: "VK does not know the community, or Long Poll is off: check GROUPID and switch Long Poll on in its settings",
    125: "VK does not know the community: check GROUPID",
}
PASSING = {1, 6, 9, 10, 13, 14, 29, 36, 43, 995}
QUIET = {9, 14, 29}
TOO_BIG = 13  # runtime error of `execute`: fewer ids at once may work
CALLS = 25  # of one `execute`

Json = dict[str, Any]
log = logging.getLogger("fetcher")


class Refused(Trouble):
    """VK does not answer this request, now or later."""

    def __init__(self, sentence: str, code: Any) -> None:
        """Keep VK's error code beside the sentence."""
        super().__init__(sentence)
        self.code = code


class Batch(NamedTuple):
    """The updates from `since` to `until`, or a gap there: `error` instead of updates. `again`: VK fails repeatedly."""

    since: str
    until: str
    updates: list[Any]
    error: str = ""
    again: bool = False


class Question(NamedTuple):
    """One call for many ids, and how to read its answer into a dict by id."""

    method: str
    param: str
    ids: list[int]
    more: dict[str, Any]
    read: Callable[[Any], dict[Any, Any]]

    def parts(self, most: int) -> list[Self]:
        """Return the same question in parts of at most `most` ids."""
        return [self._replace(ids=self.ids[i : i + most]) for i in range(0, len(self.ids), most)]


class Session(requests.Session):
    """A session whose every request has a time-out; vk_api gives none to API calls."""

    timeout = API_TIMEOUT

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send the request with our time-out, unless the caller has one."""
        kwargs.setdefault("timeout", self.timeout)
        return super().request(*args, **kwargs)


class Api(VkApiGroup):  # type: ignore[misc]
    """VK's API: errors in our classes, 20 requests a second counted from start to start, Russian names."""

    RPS_DELAY = 0  # ours is counted from the start of a request, and by a clock that nobody sets

    def __init__(self, token: str) -> None:
        """Ask nothing yet."""
        super().__init__(token=token, api_version=API_VERSION, session=Session(), config=MemoryConfig)
        self.error_handlers.clear()  # they wait for a person, or call themselves without end
        self.next_request = self.quiet_until = 0.0
        self.refusals = 0

    def method(self, method: str, values: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Call a method of the API. https://dev.vk.com/ru/api/api-requests"""
        now = time.monotonic()
        if now < self.quiet_until:
            raise Trouble("VK has asked for a pause in API requests")
        time.sleep(max(0.0, self.next_request - now))
        self.next_request = time.monotonic() + API_SPACING
        self.last_request = 0.0
        with understood("API", Trouble):
            try:
                answer = super().method(method, {"lang": "ru", **(values or {})}, **kwargs)
            except ApiError as error:
                raise self.failure(method, error.error) from None
            if "execute_errors" not in answer:
                self.refusals = 0
        return answer

    def failure(self, method: str, error: Json, inside: bool = False) -> Trouble | Fatal:
        """Return what VK's error means, to a request of ours or `inside` an execute; after some VK wants a pause."""
        code = error["error_code"]
        text = str(error.get("error_msg")).replace(self.token["access_token"], "***")
        sentence = f"VK error {code} in {method}: {text}"
        hint = FATAL.get(code)
        if method == "groups.getLongPollServer":
            hint = hint or FATAL_AT_START.get(100 if "not enabled" in text else code)
        if hint and not inside:
            return Fatal(f"{hint} ({sentence})")
        if code in QUIET:
            self.refusals += 1
            pause = EqualJitterBackoff(cap=QUIET_UP_TO, base=1).compute(min(self.refusals, 10))
            self.quiet_until = time.monotonic() + pause
        passing = code in PASSING and (code, method) != (TOO_BIG, "execute")
        return Trouble(sentence) if passing else Refused(sentence, code)


class LongPoll(VkBotLongPoll):  # type: ignore[misc]
    """The SDK's long poll, with a check of its own: ts comes from the caller, and VK's answer goes out as it is."""

    def __init__(self, vk: Api, group: int) -> None:
        """Ask VK for key, server and ts."""
        super().__init__(vk, group)
        self.session = vk.http

    def update_longpoll_server(self, update_ts: bool = True) -> None:
        """Take a new key and server, and VK's newest ts. https://dev.vk.com/ru/method/groups.getLongPollServer"""
        answer = self.vk.method("groups.getLongPollServer", {"group_id": self.group_id})
        with understood("groups.getLongPollServer", Trouble):
            key, server, ts = answer["key"], answer["server"], _ts(answer["ts"])
            if not server.startswith("http"):
                raise ValueError("no address")
        self.key, self.url, self.ts = key, server, ts
        # Proxies and certificates of the environment: requests would look for them at each poll.
        self.environment = self.session.merge_environment_settings(server, {}, None, None, None)

    def check(self, ts: str, wait: int, timeout: float) -> Json:
        """Return VK's answer at this ts. https://dev.vk.com/ru/api/bots-long-poll/getting-started"""
        params = {"act": "a_check", "key": self.key, "ts": ts, "wait": wait}
        with understood("long poll", Trouble):
            request = requests.Request("GET", self.url, self.session.headers, params=params).prepare()
            times = (min(timeout, API_TIMEOUT), timeout)
            response = self.session.get_adapter(self.url).send(request, timeout=times, **self.environment)
        if response.status_code != 200:
            raise Unreadable(f"VK's long poll answers HTTP {response.status_code}")
        with understood("long poll", Unreadable):
            answer: Json = json.loads(response.content.decode("utf-8-sig", "replace"))
            failed = answer.get("failed")
            if failed not in (2, 3):
                answer["ts"] = _ts(answer["ts"])
            if failed not in (1, 2, 3) and ("failed" in answer or not isinstance(answer["updates"], list)):
                raise ValueError("an unknown `failed`, or updates that are no list")
            return answer


class VK:
    """VK as one community's fetcher needs it."""

    def __init__(self, token: str, group: int, renew_after: float, types: Iterable[str]) -> None:
        """Ask nothing yet; `renew_after` is in seconds, `types` are the types of update that VK should send."""
        self.api, self.group, self.renew_after, self.types = Api(token), group, renew_after, types
        self.renew_at = self.stuck_until = 0.0
        self.stuck_ts, self.poll_margin = "", POLL_MARGIN
        self.polled = self.settings_due = self.failed = False

    @cached_property
    def longpoll(self) -> LongPoll:
        """The long poll: making it asks VK, so it is made when it is first needed."""
        self.renew_at = time.monotonic() + self.renew_after
        return LongPoll(self.api, self.group)

    def newest(self) -> str:
        """Return the ts at which a first start begins."""
        return str(self.longpoll.ts)

    def renew(self) -> str:
        """Take a new key and server, and return VK's newest ts."""
        self.longpoll.update_longpoll_server()
        self.renew_at = time.monotonic() + self.renew_after
        return str(self.longpoll.ts)

    def hurry(self, needed: bool) -> None:
        """Wait no longer than needed for VK's answers, while Redis may come back at any moment; or as long as usual."""
        self.api.http.timeout, self.poll_margin = (1.0, 0.5) if needed else (API_TIMEOUT, POLL_MARGIN)

    def poll(self, ts: str, wait: int) -> Batch:
        """Return what VK has after `ts`, waiting for it up to `wait` seconds, or a gap that VK tells of."""
        now = time.monotonic()
        if now >= self.renew_at:  # VK's polls are known to fall silent after hours; a new key helps
            self.renew_at = now + ASK_AGAIN  # the old key serves if there is no new one
            self.renew()
        if self.settings_due:
            self.settings_due = False
            self.check_settings()
        try:
            wait = wait if self.polled else 1
            answer = self.longpoll.check(ts, wait, wait + self.poll_margin)
        except Trouble as error:
            self.renew_at = min(self.renew_at, now + ASK_AGAIN)  # VK's server may have moved
            if isinstance(error, Unreadable):
                return self.jump(ts, error)
            raise
        self.stuck_ts = ""
        if not self.polled:  # the first poll is a short one, so that the first events need not wait for the settings
            self.polled = self.settings_due = True
        failed = answer.get("failed")
        again, self.failed = bool(failed and self.failed), bool(failed)
        if failed == 2:
            self.renew()
            return Batch(ts, ts, [], again=again)
        if failed:
            until = answer["ts"] if failed == 1 else self.renew()
            return Batch(ts, until, [], f"VK has forgotten the updates between (failed {failed})", again)
        updates, until = answer["updates"], answer["ts"]
        if updates:
            self.renew_at = time.monotonic() + self.renew_after
        return Batch(ts, until, updates, again=bool(updates) and until == ts)

    def jump(self, ts: str, error: Unreadable) -> Batch:
        """Return a gap from a ts that was unreadable for too long to a fresh one that can be read, else raise."""
        now = time.monotonic()
        if self.stuck_ts != ts:
            self.stuck_ts, self.stuck_until = ts, now + UNREADABLE_LIMIT
        if now < self.stuck_until:
            raise error
        self.stuck_until = now + ASK_AGAIN
        fresh = self.renew()
        self.longpoll.check(fresh, 1, 1 + self.poll_margin)
        return Batch(ts, fresh, [], "VK's answer there could not be read for too long")

    def check_settings(self) -> None:
        """Say what would leave the operator waiting in silence. https://dev.vk.com/ru/method/groups.getLongPollSettings"""
        try:
            settings = self.api.method("groups.getLongPollSettings", {"group_id": self.group})
            with understood("groups.getLongPollSettings", Trouble):
                off = settings.get("is_enabled", True) in (False, 0)
                events = settings.get("events") or dict.fromkeys(self.types, 1)
                version = str(settings.get("api_version", API_VERSION))
                old = [int(part) for part in version.split(".")] < [5, 103]
                missing = [kind for kind in self.types if not events.get(kind)]
        except Trouble as trouble:
            log.debug("VK does not tell the Long Poll settings: %s", trouble)
            return
        if off:
            raise Fatal(
                "Long Poll is switched off: switch it on in the community's settings (API usage, Long Poll API)"
            )
        if old:
            log.warning("Long Poll's API version is %s: set %s in the community's settings", version, API_VERSION)
        if missing:
            log.warning(
                "Long Poll does not send %s: tick these event types in the community's settings", ", ".join(missing)
            )

    def names(self, ids: Iterable[int]) -> dict[int, Name]:
        """Return the name of each id, an empty one where VK tells none; 1000 people and 100 chats cost one request."""
        ids = sorted(ids)
        people = [id for id in ids if 0 < id < CHATS]
        groups = [-id for id in ids if id < 0]
        chats = [id for id in ids if id > CHATS]
        fields = {"fields": "domain,screen_name"}
        questions = Question("users.get", "user_ids", people, fields, _people).parts(1000)
        questions += Question("groups.getById", "group_ids", groups, {}, _communities).parts(500)
        questions += Question("messages.getConversationsById", "peer_ids", chats, {}, _chats).parts(100)
        found = self.ask(questions)
        if nameless := [id for id in ids if id not in found]:
            log.debug("VK tells no name of %s", nameless)
        return {id: found.get(id, Name()) for id in ids}

    def whole(self, messages: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Json]:
        """Return the whole messages by (peer_id, conversation_message_id), those that VK still has."""
        questions, method = [], "messages.getByConversationMessageId"
        for peer, group in groupby(sorted(messages), key=itemgetter(0)):
            cmids, read = [cmid for _, cmid in group], partial(_messages, peer)
            questions += Question(method, "conversation_message_ids", cmids, {"peer_id": peer}, read).parts(100)
        return self.ask(questions)

    def ask(self, questions: list[Question]) -> dict[Any, Any]:
        """Return all that VK answers; what it refuses for several ids is asked again in parts, for one left out."""
        found: dict[Any, Any] = {}
        while questions:
            refused: list[Question] = []
            for question, answer in zip(questions, self.answers(questions), strict=True):
                if isinstance(answer, Refused):
                    log.debug("%s of %s", answer, question.ids)
                    if len(question.ids) > 1:
                        refused += question.parts(-(-len(question.ids) // CALLS))
                else:
                    found |= question.read(answer)
            questions = refused
        return found

    def answers(self, questions: list[Question]) -> list[Any]:
        """Return each question's answer or Refused; one request asks 25. https://dev.vk.com/ru/method/execute"""
        pool = VkRequestsPool(self.api)
        values = [{q.param: ",".join(map(str, q.ids)), "lang": "ru", **q.more} for q in questions]
        results = [pool.method(q.method, value) for q, value in zip(questions, values, strict=True)]
        try:
            with understood("execute", Trouble):
                pool.execute()
                asked = zip(questions, results, strict=True)
                answers = [r.result if r.ok else self.api.failure(q.method, r.error, inside=True) for q, r in asked]
        except Refused as refused:
            if refused.code != TOO_BIG:
                log.debug("%s", refused)
                return [None] * len(questions)
            if len(questions) == len(questions[0].ids) == 1:
                raise Trouble(str(refused)) from None
            if all(len(question.ids) == 1 for question in questions):
                return [answer for question in questions for answer in self.answers([question])]
            return [refused] * len(questions)
        for answer in answers:
            if isinstance(answer, Trouble) and not isinstance(answer, Refused):
                raise answer
        return answers


def _people(answer: Any) -> dict[int, Name]:
    """https://dev.vk.com/ru/method/users.get: whom VK does not know is left out."""
    found = {}
    for person in _objects(answer):
        first, last = _text(person, "first_name"), _text(person, "last_name")
        nick = _text(person, "domain") or _text(person, "screen_name") or f"id{_id(person)}"
        found[_id(person)] = Name(f"{first.strip()} {last.strip()}".strip(), first, last, nick)
    return found


def _communities(answer: Any) -> dict[int, Name]:
    """https://dev.vk.com/ru/method/groups.getById: ids are positive; before 5.139 the answer was the list itself."""
    groups = _objects(answer.get("groups") if isinstance(answer, dict) else answer)
    return {
        -_id(group): Name(_text(group, "name"), _text(group, "name"), "", _text(group, "screen_name"))
        for group in groups
    }


def _chats(answer: Any) -> dict[int, Name]:
    """https://dev.vk.com/ru/method/messages.getConversationsById: a chat may be left out, or come without settings."""
    chats = [(_object(item.get("peer")), _object(item.get("chat_settings"))) for item in _items(answer)]
    return {_id(peer): Name(_text(settings, "title")) for peer, settings in chats}


def _messages(peer: int, answer: Any) -> dict[tuple[int, int], Json]:
    """https://dev.vk.com/ru/method/messages.getByConversationMessageId"""
    return {(peer, _id(item, "conversation_message_id")): item for item in _items(answer)}


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _items(answer: Any) -> list[Json]:
    return _objects(_object(answer).get("items"))


def _id(fields: Json, key: str = "id") -> int:
    value = fields.get(key)
    return value if isinstance(value, int) else 0


def _objects(value: Any) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(fields: Json, key: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else ""


def _ts(value: Any) -> str:
    """Return a ts as text of digits: VK sends text, and a number beside `failed`."""
    if not re.fullmatch("[0-9]+", text := str(value)):
        raise ValueError("no ts")
    return text


@contextmanager
def understood(what: str, kind: type[Trouble]) -> Iterator[None]:
    """Raise what the libraries raise for a failed or odd answer as `kind`, without any address, key or token."""
    try:
        yield
    except ApiHttpError as error:
        raise kind(f"VK's {what} answers HTTP {error.response.status_code}") from None
    except (OSError, HTTPError) as error:
        raise kind(f"VK's {what} is away ({type(error).__name__})") from None
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RuntimeError) as error:
        raise kind(f"VK's {what} answers what cannot be read ({type(error).__name__})") from None
