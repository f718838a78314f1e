"""VK's Bots Long Poll: the key, the poll, and where to continue when VK has forgotten part of its history.

https://dev.vk.com/ru/api/bots-long-poll/getting-started
"""

import re
import time
from contextlib import suppress
from typing import Any

from vk_api.bot_longpoll import VkBotLongPoll

from ..core.history import Answer, Position
from ..errors import FatalError, MalformedResponse, TransientError
from ..logs import log
from .api import API_TIMEOUT, API_VERSION, Api, translate_errors
from .builders import BUILDERS

KEY_INTERVAL = 1.0  # minimum seconds between two requests for a key, because VK limits their rate
UNREADABLE_TIMEOUT = 600.0  # seconds of unreadable answers at one ts before it is skipped
RETRY_INTERVAL = 10.0  # seconds between two keys while polls fail, and before the lower ts of a key is polled
SILENT_INTERVAL = 0.2  # seconds to pause after an empty answer that VK sent at once instead of holding it back
NO_WAIT_TIMEOUT = 1.0  # seconds after which a poll with wait 0 is abandoned, in case VK does not know such a wait
MAX_FAILED = 4  # consecutive answers with `failed` after which the poll fails, so that the loop backs off


class LongPoll:
    """One community's long poll.

    Methods raise TransientError if a failure is temporary, and FatalError if the operator must fix something.
    `server` is vk_api's object that holds a key and the address of its server; `latest_ts` is the latest ts that VK is
    known to have reached.
    """

    def __init__(self, api: Api, group: int, renew_after: float) -> None:
        """Send no request yet: call `renew` before the first poll. `renew_after` is in seconds."""
        self.api, self.group, self.renew_after = api, group, renew_after
        self.key_at = 0.0  # when a key was last requested
        self.is_checked = False  # whether the Long Poll settings were checked, which can wait for the first answer
        self.skip_at: dict[int, float] = {}  # by ts whose answer cannot be read: when to skip that ts

    def renew(self) -> int:
        """Take a new key and server, after a pause if KEY_INTERVAL has not passed yet, and return VK's latest ts.

        https://dev.vk.com/ru/method/groups.getLongPollServer
        """
        time.sleep(max(0.0, self.key_at + KEY_INTERVAL - time.monotonic()))
        self.key_at = time.monotonic()
        with translate_errors("groups.getLongPollServer"):
            server = VkBotLongPoll(self.api, self.group)
            self.server, self.latest_ts = server, Position.parse(str(server.ts)).ts  # both or neither
        self.renew_at = time.monotonic() + self.renew_after  # when to take a new key even if this one still works
        return self.latest_ts

    def poll(self, ts: int, wait: int) -> Answer:
        """Return the updates after `ts`; VK waits for them up to `wait` seconds.

        If VK has forgotten them, return the updates after the gap; adjacent gaps become one. With a `wait` of 0, an
        answer that takes longer than NO_WAIT_TIMEOUT counts as empty, and so does any other failure.
        """
        begun = time.monotonic()
        try:
            place, gap = self.renew_in_time(ts), ""
            for _ in range(MAX_FAILED):
                failed, answer = self.answer_at(place, wait if self.is_checked else 1)
                if answer.until > place:
                    self.latest_ts = max(self.latest_ts, answer.until)
                    self.renew_at = time.monotonic() + self.renew_after
                if failed:
                    # `failed` 1 brings the ts to continue at, 2 requires only a new key, 3 a new key and its ts. But VK
                    # may also forget the ts that it has just given, before we poll there. So if there is a gap already,
                    # continue at the ts of a new key, which is the latest.
                    until = answer.until if failed == 1 and not gap else self.renew()
                    if failed != 2:
                        place, wait = until, 1
                        gap = gap or answer.gap or f"VK has forgotten the updates in between (failed {failed})"
                elif place < ts == answer.until:  # VK has reached `ts` after all: only its servers for keys lag behind
                    place, gap = ts, ""
                else:
                    if not self.is_checked:
                        self.check_settings()
                        self.is_checked = True
                    if wait and not answer.updates and time.monotonic() < begun + SILENT_INTERVAL:
                        time.sleep(SILENT_INTERVAL)
                    # If VK has passed `ts`, too, the updates up to `ts` are kept: they are repetitions, which `seen`
                    # knows, unless VK has restarted its numbering close to `ts`.
                    return answer._replace(since=ts) if place < ts < answer.until else answer._replace(gap=gap)
            raise TransientError("VK's long poll refuses every key and ts that it gives")
        except (TransientError, FatalError):
            if not wait:  # if this was no mere timeout, the next poll with a wait will report it
                return Answer(ts, ts, [])
            self.renew_at = self.key_at + RETRY_INTERVAL
            raise

    def renew_in_time(self, ts: int) -> int:
        """Take a new key if VK has been silent for `renew_after`, or if polls fail; return the ts to poll.

        VK's polls are known to fall silent after hours. They may also be silent because VK has restarted its numbering:
        then a poll at `ts` would bring nothing until the new numbers reach `ts`. So if VK is not known to have reached
        `ts`, a new key is taken after RETRY_INTERVAL, and if its ts is lower than `ts`, too, VK is polled there.
        """
        now, known_ts = time.monotonic(), self.latest_ts
        is_due = now >= self.renew_at or (known_ts < ts and now >= self.key_at + RETRY_INTERVAL)
        if is_due and max(known_ts, self.renew()) < ts:
            return min(known_ts, self.latest_ts)
        return ts

    def answer_at(self, ts: int, wait: int) -> tuple[int, Answer]:
        """Return VK's `failed` and its answer at this ts.

        If the answer at a ts has been unreadable for UNREADABLE_TIMEOUT, the ts is skipped, provided that the answer at
        the latest ts can be read and the one at this ts still cannot. The result then is as if VK had forgotten the
        updates: `failed` 1, and a gap. A lower ts in an answer may only mean that VK's servers are a few updates apart,
        so it is believed only if VK repeats it and the ts of a new key is lower, too.
        """
        may_skip = time.monotonic() >= self.skip_at.get(ts, float("inf"))
        if may_skip:
            # Raises if the answer at the latest ts cannot be read either. A `failed` in it does not matter here:
            # `poll` continues at that ts, and handles it.
            self.request(self.renew(), 1)
        try:
            failed, answer = self.request(ts, wait)
            if answer.until < ts:
                failed, answer = self.request(ts, wait)
        except MalformedResponse:
            self.skip_at.setdefault(ts, time.monotonic() + UNREADABLE_TIMEOUT)
            if not may_skip:
                raise
            return 1, Answer(ts, self.latest_ts, [], gap="VK's answer there could not be read for too long")
        self.skip_at.pop(ts, None)
        if answer.until < ts <= self.renew():
            raise TransientError("VK's long poll returns an earlier ts than it was polled at")
        return failed, answer

    def request(self, ts: int, wait: int) -> tuple[int, Answer]:
        """Poll once; return VK's `failed`, which is 0 for a normal answer, and the answer.

        The answer's `until` is `ts` if VK sends no new ts. VK waits for updates up to `wait` seconds. Raise
        MalformedResponse if the answer cannot be read, TransientError if there is no answer.

        vk_api's check() is not used: it moves the ts before it has read the updates, loses a whole batch to one odd
        update, hides `failed` from its caller, and ignores the HTTP status.
        """
        params = {"act": "a_check", "key": self.server.key, "ts": ts, "wait": wait}
        # An answer that VK holds back may take longer than one of the API, so it gets twice API_TIMEOUT besides `wait`.
        timeout = API_TIMEOUT, wait + 2 * API_TIMEOUT if wait else NO_WAIT_TIMEOUT
        with translate_errors("long poll", MalformedResponse):
            response = self.api.http.get(self.server.url, params=params, timeout=timeout)
            answer = response.json()
            failed = answer.get("failed", 0)
            until = ts if failed in (2, 3) else Position.parse(str(answer["ts"])).ts
            updates = [] if failed else answer["updates"]
            if failed not in (0, 1, 2, 3) or not isinstance(updates, list):
                raise ValueError("not of VK's form")
            return failed, Answer(ts, until, updates, len(response.content))

    def check_settings(self) -> None:
        """Warn of Long Poll settings that keep events from arriving; raise FatalError if Long Poll is off."""
        with suppress(TransientError):  # if VK does not say, the settings are taken to be right
            is_off, version, _, missing = long_poll_settings(self.api, self.group)
            if is_off:
                raise FatalError("Long Poll is switched off: switch it on in the community's settings or run --setup")
            if [] < numbers(version) < [5, 103]:  # updates had another form before 5.103
                log.warning("Long Poll's API version is %s: set %s in the community's settings", version, API_VERSION)
            if missing:
                log.warning("Long Poll does not send %s: tick these event types in the community's settings", missing)


def long_poll_settings(api: Api, group: int) -> tuple[bool, str, dict[str, Any], str]:
    """Return whether Long Poll is off, its version, the flag of each update type, and which types are missing.

    The missing types are those in BUILDERS that are not ticked. If VK returns an empty list of `events`, no type is
    ticked; if it returns no `events` at all, all types count as ticked.
    https://dev.vk.com/ru/method/groups.getLongPollSettings
    """
    with translate_errors("groups.getLongPollSettings"):
        answer = api.method("groups.getLongPollSettings", {"group_id": group})
        flags = dict(answer.get("events", dict.fromkeys(BUILDERS, 1)) or ())
        missing = ", ".join(kind for kind in BUILDERS if not flags.get(kind))
        return answer["is_enabled"] == 0, str(answer.get("api_version")), flags, missing


def numbers(version: str) -> list[int]:
    """Return the numbers in a version: [5, 199] for "5.199"."""
    return [int(number) for number in re.findall("[0-9]+", version)]
