"""VK's Bots Long Poll: the key, the poll, and what to do about a ts whose answer cannot be read.

https://dev.vk.com/ru/api/bots-long-poll/getting-started
"""

import json
import logging
import re
import time
from collections.abc import Iterable
from enum import Enum, auto
from functools import cached_property
from typing import Any

import requests
from vk_api.bot_longpoll import VkBotLongPoll

from ..core.batch import Batch, Gap
from ..errors import FatalError, MalformedResponse, TransientError
from .api import API_TIMEOUT, API_VERSION, SHORT_TIMEOUT, Api, Json, translate_errors

POLL_MARGIN, SHORT_POLL_MARGIN = 10.0, 0.5  # seconds past its `wait` that a poll may take
UNREADABLE_TIMEOUT = 600.0  # seconds of unreadable answers at one ts before it is skipped
RETRY_INTERVAL = 60.0  # seconds between two tries of something that may go on as it is

log = logging.getLogger("fetcher")


class LongPollServer(VkBotLongPoll):  # type: ignore[misc]
    """vk_api's long poll, inherited for its key and server; its own check() and listen() work as ever.

    `poll` is a check whose ts comes from the caller, and whose answer is returned as VK gave it.
    """

    def __init__(self, vk: Api, group: int) -> None:
        """Ask VK for key, server and ts."""
        super().__init__(vk, group)
        self.session = vk.http

    def update_longpoll_server(self, update_ts: bool = True) -> None:
        """Take a new key and server, and VK's latest ts. https://dev.vk.com/ru/method/groups.getLongPollServer"""
        answer = self.vk.method("groups.getLongPollServer", {"group_id": self.group_id})
        with translate_errors("groups.getLongPollServer"):
            key, server, ts = answer["key"], answer["server"], require_ts(answer["ts"])
            if not server.startswith("http"):
                raise ValueError("no address")
            # Prepared once: only the end of its address differs from poll to poll.
            params = {"act": "a_check", "key": key}
            request = requests.Request("GET", server, self.vk.http.headers, params=params).prepare()
        self.key, self.server, self.url = key, server, server
        self.request, self.address = request, request.url
        if update_ts:
            self.ts = ts
        # Proxies and certificates of the environment: requests would look for them at each poll.
        self.environment = self.vk.http.merge_environment_settings(server, {}, None, None, None)

    def poll(self, ts: str, wait: int, timeout: float) -> tuple[Json, int]:
        """Return VK's answer at this ts and its size in bytes; `wait` and `timeout` are in seconds.

        Raise MalformedResponse if it cannot be read, TransientError if there is none.
        """
        self.request.url = f"{self.address}&ts={ts}&wait={wait}"
        with translate_errors("long poll"):
            times = (min(timeout, API_TIMEOUT), timeout)
            response = self.session.get_adapter(self.url).send(self.request, timeout=times, **self.environment)
        if response.status_code != 200:
            raise MalformedResponse(f"VK's long poll answers HTTP {response.status_code}")
        with translate_errors("long poll", MalformedResponse):
            answer: Json = json.loads(response.content.decode("utf-8-sig", "replace"))
            failed = answer.get("failed")
            if failed not in (2, 3):
                answer["ts"] = require_ts(answer["ts"])
            if failed not in (1, 2, 3) and ("failed" in answer or not isinstance(answer["updates"], list)):
                raise ValueError("an unknown `failed`, or updates that are no list")
            return answer, len(response.content)


class Phase(Enum):
    """How far the start has come."""

    FIRST_POLL = auto()  # a short one, so that the first events need not wait for the settings
    SETTINGS = auto()  # VK is asked for the Long Poll settings before the next poll
    POLLING = auto()


class LongPoll:
    """One community's long poll. Methods raise TransientError for what passes, FatalError for what must be fixed."""

    def __init__(self, api: Api, group: int, renew_after: float, types: Iterable[str]) -> None:
        """Ask nothing yet; `renew_after` is in seconds, `types` are the types of update that VK should send."""
        self.api, self.group, self.renew_after, self.types = api, group, renew_after, list(types)
        self.phase = Phase.FIRST_POLL
        self.poll_margin = POLL_MARGIN
        self.renew_at = 0.0
        self.skip_at: dict[str, float] = {}  # ts whose answer cannot be read, and when it is skipped

    @cached_property
    def server(self) -> LongPollServer:
        """The server: making it asks VK, so it is made when it is first needed."""
        self.renew_at = time.monotonic() + self.renew_after
        return LongPollServer(self.api, self.group)

    def latest_ts(self) -> str:
        """Return VK's latest ts at the start."""
        return str(self.server.ts)

    def renew(self) -> str:
        """Take a new key and server, and return VK's latest ts."""
        self.server.update_longpoll_server()
        self.renew_at = time.monotonic() + self.renew_after
        return str(self.server.ts)

    def shorten_timeouts(self, short: bool) -> None:
        """Wait for VK's answers no longer than needed, or as long as usual."""
        self.api.http.timeout = SHORT_TIMEOUT if short else API_TIMEOUT
        self.poll_margin = SHORT_POLL_MARGIN if short else POLL_MARGIN

    def poll(self, ts: str, wait: int) -> Batch | Gap:
        """Return what VK has after `ts`, waiting for it up to `wait` seconds, or the gap that VK tells of."""
        if time.monotonic() >= self.renew_at:  # VK's polls are known to fall silent after hours; a new key helps
            self.renew_at = time.monotonic() + RETRY_INTERVAL
            try:
                self.renew()
            except TransientError as error:
                log.debug("The old key serves on: %s", error)
        if self.phase is Phase.SETTINGS:
            self.check_settings()
            self.phase = Phase.POLLING
        try:
            answer, size = self._poll(ts, 1 if self.phase is Phase.FIRST_POLL else wait)
        except TransientError as error:
            self.renew_at = min(self.renew_at, time.monotonic() + RETRY_INTERVAL)  # VK's server may have moved
            if not isinstance(error, MalformedResponse):
                raise
            if isinstance(found := self.skip_unreadable(ts, error), Gap):
                return found
            answer, size = found
        self.skip_at.pop(ts, None)
        if self.phase is Phase.FIRST_POLL:
            self.phase = Phase.SETTINGS
        match answer.get("failed"):
            case 1:
                return Gap(ts, answer["ts"], "VK has forgotten the updates between (failed 1)")
            case 2:
                raise TransientError("VK's long poll refuses a new key")
            case 3:
                return Gap(ts, self.renew(), "VK has forgotten the updates between (failed 3)")
        if answer["updates"]:
            self.renew_at = time.monotonic() + self.renew_after
        return Batch(ts, answer["ts"], answer["updates"], size)

    def _poll(self, ts: str, wait: int) -> tuple[Json, int]:
        """Poll, with a new key if VK wants one."""
        answer, size = self.server.poll(ts, wait, wait + self.poll_margin)
        if answer.get("failed") == 2:
            self.renew()
            answer, size = self.server.poll(ts, wait, wait + self.poll_margin)
        return answer, size

    def skip_unreadable(self, ts: str, error: MalformedResponse) -> tuple[Json, int] | Gap:
        """Return a gap from a ts that was unreadable for too long to the latest one, if only that one can be read.

        The old ts is asked once more through the new key: if that helps, its answer is returned. Raise what was wrong
        as long as there is time.
        """
        now = time.monotonic()
        if now < self.skip_at.setdefault(ts, now + UNREADABLE_TIMEOUT):
            raise error
        self.skip_at[ts] = now + RETRY_INTERVAL
        latest = self.renew()
        self._poll(latest, 1)
        try:
            return self._poll(ts, 1)
        except MalformedResponse:
            return Gap(ts, latest, "VK's answer there could not be read for too long")

    def check_settings(self) -> None:
        """Say what would leave the operator waiting in silence. https://dev.vk.com/ru/method/groups.getLongPollSettings"""
        try:
            settings = self.api.method("groups.getLongPollSettings", {"group_id": self.group})
            with translate_errors("groups.getLongPollSettings"):
                off = settings.get("is_enabled", True) in (False, 0)
                events = settings.get("events") or dict.fromkeys(self.types, 1)
                version = str(settings.get("api_version", API_VERSION))
                old = [int(part) for part in version.split(".")] < [5, 103]
                missing = [kind for kind in self.types if not events.get(kind)]
        except TransientError as error:
            log.debug("VK does not tell the Long Poll settings: %s", error)
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


def require_ts(value: Any) -> str:
    """Return a ts as text of digits, without leading zeros: VK sends text, and a number beside `failed`."""
    if not re.fullmatch("[0-9]{1,30}", text := str(value)):
        raise ValueError("no ts")
    return str(int(text))
