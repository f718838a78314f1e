"""VK's Bots Long Poll: the key, the poll, and where to go on when VK has forgotten a part of its history.

https://dev.vk.com/ru/api/bots-long-poll/getting-started
"""

import logging
import re
import time
from collections.abc import Iterable
from enum import Enum, auto
from functools import cached_property
from typing import Any

from vk_api.bot_longpoll import VkBotLongPoll

from ..core.history import Batch, Gap
from ..errors import FatalError, MalformedResponse, TransientError
from ..fastjson import loads
from .api import API_TIMEOUT, API_VERSION, SHORT_TIMEOUT, Api, Json, translate_errors

POLL_MARGIN, SHORT_POLL_MARGIN = 10.0, 0.5  # seconds past its `wait` that a poll may take
UNREADABLE_TIMEOUT = 600.0  # seconds of unreadable answers at one ts before it is skipped
RETRY_INTERVAL = 60.0  # seconds between two tries of something that may go on as it is
MAX_GAPS = 5  # places in a row that VK has forgotten, before the loop waits
FORGOTTEN = "VK has forgotten the updates between"

log = logging.getLogger("fetcher")


class LongPollServer(VkBotLongPoll):  # type: ignore[misc]
    """vk_api's long poll: its key, server, session and parameters, with `poll` in place of its check().

    check() moves the ts before it has read the updates, loses a batch for one odd update, hides `failed` from its
    caller, and does not look at the HTTP status. So `poll` takes the ts from its caller and returns VK's answer.
    """

    def __init__(self, vk: Api, group: int) -> None:
        """Request key, server and ts from VK."""
        super().__init__(vk, group)
        self.session = vk.http  # with time-outs, unlike vk_api's own

    def update_longpoll_server(self, update_ts: bool = True) -> None:
        """Take a new key and server, and VK's latest ts. https://dev.vk.com/ru/method/groups.getLongPollServer"""
        with translate_errors("groups.getLongPollServer"):
            super().update_longpoll_server(update_ts)
            self.ts: int = require_ts(self.ts)
            if not str(self.server).startswith("http"):
                raise ValueError("no address")

    def poll(self, ts: int, wait: int, timeout: float) -> tuple[Json, int]:
        """Return VK's answer at this ts and its size in bytes; `wait` and `timeout` are in seconds.

        Raise MalformedResponse if the answer cannot be read, TransientError if there is none.
        """
        params = {"act": "a_check", "key": self.key, "ts": ts, "wait": wait}
        with translate_errors("long poll"):
            response = self.session.get(self.url, params=params, timeout=(min(timeout, API_TIMEOUT), timeout))
        if response.status_code != 200:
            raise MalformedResponse(f"VK's long poll answers HTTP {response.status_code}")
        with translate_errors("long poll", MalformedResponse):
            return read_answer(response.content), len(response.content)


class Phase(Enum):
    """What a long poll has done so far."""

    FIRST_POLL = auto()  # a short one, so that the first events need not wait for the settings
    SETTINGS = auto()  # VK is asked for the Long Poll settings before the next poll
    POLLING = auto()


class LongPoll:
    """One community's long poll. Methods raise TransientError for what passes, FatalError for what must be fixed."""

    def __init__(self, api: Api, group: int, renew_after: float, types: Iterable[str]) -> None:
        """Request nothing yet; `renew_after` is in seconds, `types` are the types of update that VK should send."""
        self.api, self.group, self.renew_after, self.types = api, group, renew_after, list(types)
        self.phase = Phase.FIRST_POLL
        self.poll_margin = POLL_MARGIN
        self.renew_at = 0.0
        self.skip_at: dict[int, float] = {}  # ts whose answer cannot be read, and when it is skipped

    @cached_property
    def server(self) -> LongPollServer:
        """The server: making it sends a request to VK, so it is made when it is first needed."""
        self.renew_at = time.monotonic() + self.renew_after
        return LongPollServer(self.api, self.group)

    def latest_ts(self) -> int:
        """Return VK's latest ts at the start."""
        return int(self.server.ts)

    def renew(self) -> int:
        """Take a new key and server, and return VK's latest ts."""
        self.server.update_longpoll_server()
        self.renew_at = time.monotonic() + self.renew_after
        return int(self.server.ts)

    def shorten_timeouts(self, short: bool) -> None:
        """Wait for VK's answers no longer than needed, or as long as usual."""
        self.api.http.timeout = SHORT_TIMEOUT if short else API_TIMEOUT
        self.poll_margin = SHORT_POLL_MARGIN if short else POLL_MARGIN

    def poll(self, ts: int, wait: int) -> list[Batch | Gap]:
        """Return the updates after `ts`, waiting for them up to `wait` seconds.

        If VK has forgotten them, return the gap, and the updates where the gap ends: gaps that follow each other are
        one. An `until` before `since` means that VK has restarted its numbering.
        """
        if time.monotonic() >= self.renew_at:  # VK's polls are known to fall silent after hours; a new key helps
            self.renew_at = time.monotonic() + RETRY_INTERVAL
            try:
                self.renew()
            except TransientError as error:
                log.debug("The old key serves on: %s", error)
        if self.phase is Phase.SETTINGS:
            self.check_settings()
            self.phase = Phase.POLLING
        found = self._poll_at(ts, 1 if self.phase is Phase.FIRST_POLL else wait)
        if self.phase is Phase.FIRST_POLL:
            self.phase = Phase.SETTINGS
        if isinstance(found, Batch):
            return [found]
        for _ in range(MAX_GAPS):
            gap = Gap(ts, found.until, found.error)
            found = self._poll_at(gap.until, 1)
            if isinstance(found, Batch):
                return [gap, found]
        raise TransientError("VK's long poll has forgotten each place where it says to go on")

    def _poll_at(self, ts: int, wait: int) -> Batch | Gap:
        """Return what VK has after `ts`, or the gap up to where VK says to go on."""
        try:
            answer, size = self._poll_with_key(ts, wait)
        except TransientError as error:
            self.renew_at = min(self.renew_at, time.monotonic() + RETRY_INTERVAL)  # VK's server may have moved
            if not isinstance(error, MalformedResponse):
                raise
            found = self.skip_unreadable(ts, error)
            if isinstance(found, Gap):
                return found
            answer, size = found
        self.skip_at.pop(ts, None)
        failed = answer.get("failed")
        until: int = self.renew() if failed == 3 else answer["ts"]
        if until < ts and failed != 3 and self.renew() >= ts:  # VK's servers may be a few updates apart
            raise TransientError("VK's long poll answers an earlier ts than it was polled at, its new key does not")
        if failed:
            return Gap(ts, until, f"{FORGOTTEN} (failed {failed})")
        if answer["updates"]:
            self.renew_at = time.monotonic() + self.renew_after
        return Batch(ts, until, answer["updates"], size)

    def _poll_with_key(self, ts: int, wait: int) -> tuple[Json, int]:
        """Poll, with a new key if VK requires one."""
        answer, size = self.server.poll(ts, wait, wait + self.poll_margin)
        if answer.get("failed") == 2:
            self.renew()
            answer, size = self.server.poll(ts, wait, wait + self.poll_margin)
        if answer.get("failed") == 2:
            raise TransientError("VK's long poll refuses a new key")
        return answer, size

    def skip_unreadable(self, ts: int, error: MalformedResponse) -> tuple[Json, int] | Gap:
        """Return a gap from a ts that was unreadable for too long to the latest one, if only that one can be read.

        The old ts is polled once more with the new key: if that helps, its answer is returned. Raise `error` as long
        as there is time.
        """
        now = time.monotonic()
        if now < self.skip_at.setdefault(ts, now + UNREADABLE_TIMEOUT):
            raise error
        self.skip_at[ts] = now + RETRY_INTERVAL
        latest = self.renew()
        self._poll_with_key(latest, 1)
        try:
            return self._poll_with_key(ts, 1)
        except MalformedResponse:
            return Gap(ts, latest, "VK's answer there could not be read for too long")

    def check_settings(self) -> None:
        """Log what would leave the operator waiting in silence. https://dev.vk.com/ru/method/groups.getLongPollSettings

        Raise FatalError if Long Poll is switched off.
        """
        try:
            settings = self.api.method("groups.getLongPollSettings", {"group_id": self.group})
            with translate_errors("groups.getLongPollSettings"):
                off = settings.get("is_enabled", True) in (False, 0)
                events = settings.get("events") or dict.fromkeys(self.types, 1)
                version = str(settings.get("api_version", API_VERSION))
                old = [int(part) for part in version.split(".")] < [5, 103]
                missing = [kind for kind in self.types if not events.get(kind)]
        except TransientError as error:
            log.debug("VK does not return the Long Poll settings: %s", error)
            return
        if off:
            raise FatalError(
                "Long Poll is switched off: switch it on in the community's settings (API usage, Long Poll API)"
            )
        if old:
            log.warning("Long Poll's API version is %s: set %s in the community's settings", version, API_VERSION)
        if missing:
            log.warning(
                "Long Poll does not send %s: tick these event types in the community's settings", ", ".join(missing)
            )


def read_answer(content: bytes) -> Json:
    """Return VK's answer to a poll with its ts as a number; raise ValueError or the like if it is not of VK's form."""
    answer: Json = loads(content)
    failed = answer.get("failed")
    if failed not in (2, 3):
        answer["ts"] = require_ts(answer["ts"])
    if failed not in (1, 2, 3) and ("failed" in answer or not isinstance(answer["updates"], list)):
        raise ValueError("an unknown `failed`, or updates that are no list")
    return answer


def require_ts(value: Any) -> int:
    """Return a ts as a number: VK sends text, and a number beside `failed`. Raise ValueError for anything else."""
    if not re.fullmatch("[0-9]{1,30}", str(value)):
        raise ValueError("no ts")
    return int(value)
