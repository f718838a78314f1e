"""VK's Bots Long Poll: the key, the poll, and where to continue when VK has forgotten a part of its history.

https://dev.vk.com/ru/api/bots-long-poll/getting-started
"""

import re
import time
from contextlib import suppress
from typing import Any

from urllib3.exceptions import HTTPError
from vk_api.bot_longpoll import VkBotLongPoll

from ..core.backlog import RESTARTED
from ..core.history import Answer
from ..errors import MalformedResponse, TransientError, VkFatalError
from ..logs import log
from .api import API_TIMEOUT, API_VERSION, Api, translate_errors
from .builders import BUILDERS

KEY_INTERVAL = 1.0  # seconds between two requests for a key: VK limits their rate
UNREADABLE_TIMEOUT = 600.0  # seconds of unreadable answers at one ts before it is skipped
RETRY_INTERVAL = 60.0  # seconds between two tries of what is not urgent
FAILURE_INTERVAL = 10.0  # seconds from a poll that fails to a new key: VK's server may have moved
SILENT_INTERVAL = 0.2  # seconds between two polls that bring nothing, if VK does not hold back its answers
PROMPT = 0.1  # seconds, beyond twice the latest answer time, after which a poll with wait 0 is given up
MAX_FAILED = 4  # answers in a row with `failed`, before the loop waits


class LongPoll:
    """One community's long poll. Methods raise TransientError for what passes, VkFatalError for what must be fixed.

    `server` is vk_api's, a key and its server; `latest_ts` is how far VK is, as far as is known.
    """

    def __init__(self, api: Api, group: int, renew_after: float) -> None:
        """Send no request yet, `renew` is the first; `renew_after` is in seconds."""
        self.api, self.group, self.renew_after = api, group, renew_after
        self.key_at = 0.0  # when the latest key was requested
        self.answer_time = 0.0  # seconds until the headers of the latest answer; the first is waited for briefly
        self.is_checked = False  # that VK sends what the fetcher needs: this can wait until the first answer
        self.skip_at: dict[int, float] = {}  # ts whose answer cannot be read, and when it is skipped

    def renew(self) -> int:
        """Take a new key and server, after waiting for KEY_INTERVAL if need be, and return VK's latest ts.

        https://dev.vk.com/ru/method/groups.getLongPollServer
        """
        time.sleep(max(0.0, self.key_at + KEY_INTERVAL - time.monotonic()))
        self.key_at = time.monotonic()
        with translate_errors("groups.getLongPollServer"):
            server = VkBotLongPoll(self.api, self.group)
            latest_ts = require_ts(server.ts)
            if not str(server.server).startswith("http"):
                raise ValueError("no address")
        self.server, self.latest_ts = server, latest_ts
        self.renew_at = time.monotonic() + self.renew_after  # when a new key is taken, even if this one serves
        return latest_ts

    def poll(self, ts: int, wait: int) -> Answer:
        """Return the updates after `ts`, waiting for them up to `wait` seconds, or hardly at all if it is 0.

        If VK has forgotten them, return those after the gap; adjacent gaps become one.
        """
        if self.answer_time and not self.is_checked:
            self.check_settings()
            self.is_checked = True
        begun, place = time.monotonic(), self.renew_in_time(ts) if wait else ts  # what is given up proves nothing
        gap = RESTARTED if place < ts else ""
        try:
            for _ in range(MAX_FAILED):
                failed, answer = self.answer_at(place, wait if self.answer_time else 1)
                if not failed:
                    if answer.updates:
                        self.renew_at = time.monotonic() + self.renew_after
                    if answer.until > answer.since:
                        self.latest_ts = max(self.latest_ts, answer.until)
                    if place < ts <= answer.until:  # only the servers that give keys are behind: `seen` knows the rest
                        return answer._replace(since=ts, updates=answer.updates if answer.until > ts else [])
                    if wait and not answer.updates and time.monotonic() < begun + SILENT_INTERVAL:
                        time.sleep(SILENT_INTERVAL)
                    return answer._replace(gap=gap)
                # By the next poll VK may have forgotten the place where it says to go on: only a new key's ts is sure.
                until = answer.until if failed == 1 and not gap else self.renew()
                if failed != 2:
                    self.latest_ts = max(self.latest_ts, until)
                    place, wait = until, 1
                    gap = gap or answer.gap or f"VK has forgotten the updates between (failed {failed})"
            raise TransientError("VK's long poll refuses every key and ts that it gives")
        except TransientError:
            self.renew_at = min(self.renew_at, time.monotonic() + FAILURE_INTERVAL)
            raise

    def renew_in_time(self, ts: int) -> int:
        """Take a new key if it is time: VK's polls are known to fall silent after hours. Return where to poll.

        A key whose ts is lower than `ts` is replaced after a minute. If the next one's is lower, too, with silence in
        between, poll there: VK may have restarted its numbering, and would be silent until it is at `ts` again.
        """
        now, key_at, known_ts = time.monotonic(), self.key_at, self.latest_ts
        if now >= self.renew_at or (known_ts < ts and now >= key_at + RETRY_INTERVAL):
            self.renew_at = now + RETRY_INTERVAL
            try:
                if max(known_ts, self.renew()) < ts:
                    return min(known_ts, self.latest_ts)
            except TransientError as error:
                if now >= key_at + RETRY_INTERVAL:  # else polls fail, too, and the loop reports that
                    log.warning("%s: the old key stays in use", error)
        return ts

    def answer_at(self, ts: int, wait: int) -> tuple[int, Answer]:
        """Return VK's `failed` and its answer at this ts.

        A ts whose answer is unreadable for too long is skipped, if the latest ts can be read and this one still cannot:
        the answer then says that VK has forgotten it. A lower ts is believed if VK repeats it and a new key's ts is
        lower, too: VK's servers may be a few updates apart.
        """
        is_due = ts in self.skip_at and time.monotonic() >= self.skip_at[ts]
        if is_due:
            self.skip_at[ts] = time.monotonic() + RETRY_INTERVAL
            self.request(self.renew(), 1)  # whether it can be read; `poll` goes there, and sees whether it is refused
        try:
            failed, answer = self.request(ts, wait)
            if answer.until < ts:
                failed, answer = self.request(ts, wait)
        except MalformedResponse:
            self.skip_at.setdefault(ts, time.monotonic() + UNREADABLE_TIMEOUT)
            if not is_due:
                raise
            return 1, Answer(ts, self.latest_ts, [], gap="VK's answer there could not be read for too long")
        self.skip_at.pop(ts, None)
        if answer.until < ts <= self.renew():
            raise TransientError("VK's long poll returns an earlier ts than it was polled at")
        return failed, answer

    def request(self, ts: int, wait: int) -> tuple[int, Answer]:
        """Return VK's `failed`, 0 if nothing has, and its answer at this ts; without a ts of its own it ends there.

        VK waits for updates up to `wait` seconds. With 0 the poll is given up, as if it had brought nothing, when it
        fails, or takes much longer than VK's latest answer. Raise MalformedResponse if the answer cannot be read,
        TransientError if there is none.

        vk_api's check() moves the ts before it has read the updates, loses a batch to one odd update, hides `failed`
        from its caller, and ignores the HTTP status.
        """
        params = {"act": "a_check", "key": self.server.key, "ts": ts, "wait": wait or 1}
        # An answer that VK holds back may take longer than one of the API.
        patience = wait + 2 * API_TIMEOUT if wait else PROMPT + 2 * self.answer_time
        with translate_errors("long poll", MalformedResponse):
            try:
                response = self.api.http.get(self.server.url, params=params, timeout=(API_TIMEOUT, patience))
            except (OSError, HTTPError):  # a timeout, or what the next poll that waits will report
                if wait:
                    raise
                return 0, Answer(ts, ts, [])
            if response.status_code != 200:
                raise MalformedResponse(f"VK's long poll answers HTTP {response.status_code}")
            answer = response.json()
            failed = answer.get("failed", 0)
            until = ts if failed in (2, 3) else require_ts(answer["ts"])
            updates = [] if failed else answer["updates"]
            if failed not in (0, 1, 2, 3) or not isinstance(updates, list):
                raise ValueError("not of VK's form")
            self.answer_time = response.elapsed.total_seconds()
            return failed, Answer(ts, until, updates, len(response.content))

    def check_settings(self) -> None:
        """Log the Long Poll settings that keep events from coming. Raise VkFatalError if Long Poll is switched off."""
        with suppress(TransientError):  # then nothing is known to be wrong
            is_off, version, _, missing = long_poll_settings(self.api, self.group)
            if is_off:
                raise VkFatalError("Long Poll is switched off: switch it on in the community's settings or run --setup")
            if [] < numbers(version) < [5, 103]:  # before 5.103 updates had another form
                log.warning("Long Poll's API version is %s: set %s in the community's settings", version, API_VERSION)
            if missing:
                log.warning("Long Poll does not send %s: tick these event types in the community's settings", missing)


def require_ts(value: Any) -> int:
    """Return a ts as a number: VK sends text, and a number next to `failed`. Raise ValueError for anything else."""
    if not re.fullmatch("[0-9]{1,30}", str(value)):
        raise ValueError("no ts")
    return int(value)


def long_poll_settings(api: Api, group: int) -> tuple[bool, str, dict[str, Any], str]:
    """Return whether Long Poll is off, its version, the flags of the types of update, and which of ours are missing.

    https://dev.vk.com/ru/method/groups.getLongPollSettings: an empty list means that no type is
    ticked; if there is no `events` at all, all of them count as ticked
    """
    with translate_errors("groups.getLongPollSettings"):
        answer = api.method("groups.getLongPollSettings", {"group_id": group})
        flags = dict(answer.get("events", dict.fromkeys(BUILDERS, 1)) or ())
        missing = ", ".join(kind for kind in BUILDERS if not flags.get(kind))
        return answer["is_enabled"] == 0, str(answer.get("api_version")), flags, missing


def numbers(version: str) -> list[int]:
    """Return the numbers of a version."""
    return [int(number) for number in re.findall("[0-9]+", version)]
