"""VK's Bots Long Poll: the key, the poll, and where to go on when VK has forgotten a part of its history.

https://dev.vk.com/ru/api/bots-long-poll/getting-started
"""

import logging
import re
import time
from collections.abc import Iterable
from typing import Any, Literal

from vk_api.bot_longpoll import VkBotLongPoll

from ..core.history import Batch, Gap
from ..errors import MalformedResponse, TransientError, VkFatalError
from ..fastjson import loads
from .api import API_TIMEOUT, API_VERSION, SHORT_TIMEOUT, Api, translate_errors
from .fields import Json, object_or_empty, require_object

POLL_MARGIN, SHORT_POLL_MARGIN = 10.0, 0.5  # seconds past its `wait` that a poll may take
KEY_INTERVAL = 1.0  # seconds between two requests for a key: VK limits their rate
UNREADABLE_TIMEOUT = 600.0  # seconds of unreadable answers at one ts before it is skipped
RETRY_INTERVAL = 60.0  # seconds between two tries of something that may go on as it is
MAX_GAPS = 2  # places in a row that VK has forgotten, before the loop waits
UNREADABLE = "VK's answer there could not be read for too long"
FORGOTTEN = "VK has forgotten the updates between"

log = logging.getLogger("fetcher")


class LongPollServer(VkBotLongPoll):  # type: ignore[misc]
    """A key, its server and VK's latest ts, as vk_api requests them; a new key is a new object.

    `poll` takes the place of vk_api's check(), which moves the ts before it has read the updates, loses a batch for one
    odd update, hides `failed` from its caller, and does not look at the HTTP status.
    """

    def __init__(self, vk: Api, group: int) -> None:
        """Request key, server and ts from VK. https://dev.vk.com/ru/method/groups.getLongPollServer"""
        with translate_errors("groups.getLongPollServer"):
            super().__init__(vk, group)
            self.ts: int = require_ts(self.ts)
            if not str(self.server).startswith("http"):
                raise ValueError("no address")
        self.session = vk.http  # with time-outs, unlike vk_api's own

    def poll(self, ts: int, wait: int, timeout: float) -> tuple[Json, int]:
        """Return VK's answer at this ts and its size in bytes; `wait` and `timeout` are in seconds.

        Raise MalformedResponse if the answer cannot be read, TransientError if there is none.
        """
        params = {"act": "a_check", "key": self.key, "ts": ts, "wait": wait}
        with translate_errors("long poll"):
            response = self.session.get(self.url, params=params, timeout=(min(timeout, API_TIMEOUT), timeout))
        if response.status_code != 200:
            raise MalformedResponse(f"VK's long poll answers HTTP {response.status_code}")
        try:
            return read_answer(response.content), len(response.content)
        except ValueError as error:
            raise MalformedResponse(f"VK's long poll answers what cannot be read ({type(error).__name__})") from None


class LongPoll:
    """One community's long poll. Methods raise TransientError for what passes, VkFatalError for what must be fixed."""

    def __init__(self, api: Api, group: int, renew_after: float, types: Iterable[str]) -> None:
        """Send no request yet; `renew_after` is in seconds, `types` are the types of update that VK should send."""
        self.api, self.group, self.renew_after, self.types = api, group, renew_after, list(types)
        self.server: LongPollServer | None = None  # None at the start
        self.next_key_at = 0.0  # no new key before
        self.renew_at = 0.0  # a new key at this time, even if the old one serves
        self.answered_earlier = set[int]()  # ts at which VK has answered an earlier one
        self.skip_at: dict[int, float] = {}  # ts whose answer cannot be read, and when it is skipped
        self.poll_margin = POLL_MARGIN
        # A first short poll, so that the first events need not wait until the Long Poll settings are checked.
        self.phase: Literal["first poll", "settings", "polling"] = "first poll"

    def latest_ts(self) -> int:
        """Return VK's latest ts when the key was requested."""
        return (self.server or self.request_server()).ts

    def renew(self) -> int:
        """Take a new key and server, and return VK's latest ts."""
        return self.request_server().ts

    def request_server(self) -> LongPollServer:
        """Take a new key and server, at most once a second: it waits until then."""
        time.sleep(max(0.0, self.next_key_at - time.monotonic()))
        self.next_key_at = time.monotonic() + KEY_INTERVAL
        self.server = LongPollServer(self.api, self.group)
        self.renew_at = time.monotonic() + self.renew_after
        return self.server

    def shorten_timeouts(self, short: bool) -> None:
        """Wait for VK's answers no longer than needed, or as long as usual."""
        self.api.http.timeout = SHORT_TIMEOUT if short else API_TIMEOUT
        self.poll_margin = SHORT_POLL_MARGIN if short else POLL_MARGIN

    def poll(self, ts: int, wait: int) -> list[Batch | Gap]:
        """Return the updates after `ts`, waiting for them up to `wait` seconds.

        If VK has forgotten them, return the gap, and the updates where the gap ends: gaps that follow each other are
        one. An `until` before `since` means that VK has restarted its numbering.
        """
        if self.server and time.monotonic() >= self.renew_at:
            self.renew_at = time.monotonic() + RETRY_INTERVAL
            try:
                self.renew()  # VK's polls are known to fall silent after hours; a new key helps
            except TransientError as error:
                log.debug("The old key serves on: %s", error)
        if self.phase == "settings":
            self.check_settings()
            self.phase = "polling"
        try:
            answers = self.poll_past_gaps(ts, 1 if self.phase == "first poll" else wait)
        except TransientError:
            self.renew_at = min(self.renew_at, time.monotonic() + RETRY_INTERVAL)  # VK's server may have moved
            raise
        if self.phase == "first poll":
            self.phase = "settings"
        return answers

    def poll_past_gaps(self, ts: int, wait: int) -> list[Batch | Gap]:
        """Poll, and where that is a gap, poll where it ends."""
        place, gaps = ts, list[Batch | Gap]()
        for _ in range(1 + MAX_GAPS):
            found = self.poll_at(place, wait)
            if isinstance(found, Batch):
                return [*gaps, found]
            place = self.renew() if gaps else found.until  # VK may forget faster than it can be polled there
            gaps, wait = [Gap(ts, place, found.error)], 1
        raise TransientError("VK's long poll has forgotten each place where it says to go on")

    def poll_at(self, ts: int, wait: int) -> Batch | Gap:
        """Return what VK has after `ts`, or the gap up to where VK says to go on.

        A ts whose answer is unreadable for too long is skipped, if the latest one can be read and it still cannot.
        """
        try:
            answer, size = self.answer_at(ts, wait)
        except MalformedResponse:
            now = time.monotonic()
            if now < self.skip_at.setdefault(ts, now + UNREADABLE_TIMEOUT):
                raise
            self.skip_at[ts] = now + RETRY_INTERVAL
            latest = self.renew()
            self.answer_at(latest, 1)
            try:
                answer, size = self.answer_at(ts, 1)  # once more with the new key, which may help
            except MalformedResponse:
                return Gap(ts, latest, UNREADABLE)
        self.skip_at.pop(ts, None)
        failed = answer.get("failed")
        until: int = self.renew() if failed == 3 else answer["ts"]
        if until < ts and failed != 3:  # VK's servers may be a few updates apart: another one may answer next time
            is_first = ts not in self.answered_earlier
            self.answered_earlier.add(ts)
            if is_first or self.renew() >= ts:
                raise TransientError("VK's long poll answers an earlier ts than it was polled at")
        self.answered_earlier.discard(ts)
        if failed:
            return Gap(ts, until, f"{FORGOTTEN} (failed {failed})")
        if answer["updates"]:
            self.renew_at = time.monotonic() + self.renew_after
        return Batch(ts, until, answer["updates"], size)

    def answer_at(self, ts: int, wait: int) -> tuple[Json, int]:
        """Return VK's answer at this ts and its size, with a new key if VK requires one."""
        timeout = wait + self.poll_margin
        answer, size = (self.server or self.request_server()).poll(ts, wait, timeout)
        if answer.get("failed") == 2:
            answer, size = self.request_server().poll(ts, wait, timeout)
        if answer.get("failed") == 2:
            raise TransientError("VK's long poll refuses a new key")
        return answer, size

    def check_settings(self) -> None:
        """Log what would leave the operator waiting in silence. https://dev.vk.com/ru/method/groups.getLongPollSettings

        Raise VkFatalError if Long Poll is switched off.
        """
        try:
            settings = object_or_empty(self.api.method("groups.getLongPollSettings", {"group_id": self.group}))
        except TransientError as error:
            log.debug("VK does not return the Long Poll settings: %s", error)
            return
        if settings.get("is_enabled", True) in (False, 0):
            raise VkFatalError(
                "Long Poll is switched off: switch it on in the community's settings (API usage, Long Poll API)"
            )
        version, types = str(settings.get("api_version")), object_or_empty(settings.get("events"))
        if re.fullmatch(r"[0-4]\..*|5\.(\d|\d\d|10[0-2])", version):  # before 5.103 updates were of another form
            log.warning("Long Poll's API version is %s: set %s in the community's settings", version, API_VERSION)
        missing = ", ".join(kind for kind in self.types if not types.get(kind))
        if types and missing:
            log.warning("Long Poll does not send %s: tick these event types in the community's settings", missing)


def read_answer(content: bytes) -> Json:
    """Return VK's answer to a poll with its ts as a number; raise ValueError if it is not of VK's form."""
    answer = require_object(loads(content))
    failed = answer.get("failed")
    if "failed" in answer and failed not in (1, 2, 3):
        raise ValueError("an unknown `failed`")
    if failed not in (2, 3):
        answer["ts"] = require_ts(answer.get("ts"))
    if not failed and not isinstance(answer.get("updates"), list):
        raise ValueError("no updates")
    return answer


def require_ts(value: Any) -> int:
    """Return a ts as a number: VK sends text, and a number beside `failed`. Raise ValueError for anything else."""
    if not re.fullmatch("[0-9]{1,30}", str(value)):
        raise ValueError("no ts")
    return int(value)
