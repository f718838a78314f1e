"""`--setup`: make the community ready, and report what else is missing."""

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from ..bus.bus import Bus
from ..bus.connection import ACL_RULES, redis_errors
from ..bus.scripts import run_script
from ..config import Config
from ..errors import FatalError, RequestRejected, TransientError
from ..events import channel
from ..parts import make_bus
from ..vk.api import API_VERSION, Api, translate_errors
from ..vk.builders import BUILDERS

RIGHTS = ("manage", "messages")
LONG_POLL = {"Long Poll": "on", "Long Poll version": API_VERSION, "event types": ", ".join(BUILDERS)}
SERVER = (  # what INFO says: a thing, its field there, what it should be, the state if it is not, why and the remedy
    ("role", "role", "master", "to do", "a replica takes no writes, put the address of its master into REDIS_URL"),
    ("maxmemory-policy", "maxmemory_policy", "noeviction", "advice", "it may discard the bus, set noeviction"),
    ("appendonly", "aof_enabled", 1, "advice", "a crash loses what no snapshot has yet, set appendonly yes"),
)
NEW_TOKEN = "make a community token with the rights manage and messages, and put it into TOKEN"
BY_HAND = "change this in the community's settings (API usage, Long Poll API)"


class Line(NamedTuple):
    """What --setup found: `state` is "ok", "changed", "advice" (the fetcher runs all the same) or "to do"."""

    thing: str
    state: str
    text: str


def setup(settings: Config) -> int:
    """Print a line for each thing that the fetcher needs, and change VK's Long Poll settings where they are wrong.

    Return 0 if the fetcher would run, else 1. Of the settings only TOKEN is needed; a missing GROUPID is printed.
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every terminal knows Cyrillic
    api = Api(settings.token)
    vk = {"token": check_token(api, settings.group), "rights": check_rights(api), "Long Poll": check_long_poll(api)}
    states = set()
    for checks in vk, {"Redis": check_redis(make_bus(settings))}:
        for line in lines_of(checks):
            print(f"{line.state:8}{line.thing}: {line.text}", flush=True)
            states.add(line.state)
    return int("to do" in states)


def lines_of(checks: dict[str, Iterator[Line]]) -> Iterator[Line]:
    """Yield the lines of these checks; after a fatal error no more of them, for they would say the same."""
    for thing, check in checks.items():
        try:
            yield from check
        except FatalError as error:
            yield Line(thing, "to do", str(error))
            return
        except RequestRejected as error:
            yield Line(thing, "to do", f"{NEW_TOKEN} ({error})")
        except TransientError as error:
            remedy = "start Redis, or correct REDIS_URL" if thing == "Redis" else "try again when VK answers"
            yield Line(thing, "to do", f"{remedy} ({error})")


def ok_or(problem: str, thing: str, wanted: str) -> Line:
    """Return the line of a thing: what the problem is, or that it is as wanted if there is none."""
    return Line(thing, "to do", problem) if problem else Line(thing, "ok", wanted)


def check_token(api: Api, group: int) -> Iterator[Line]:
    """Yield which community's token it is, and whether GROUPID is the same."""
    own, name = community(api)
    other = f", {group} is another community" if group else ""
    yield Line("token", "ok", f"of the community {name!r}")
    yield ok_or("" if group == own else f"put GROUPID={own} into .env{other}", "GROUPID", str(own))


def community(api: Api) -> tuple[int, str]:
    """Return id and name of the token's community. https://dev.vk.com/ru/method/groups.getById"""
    with translate_errors("groups.getById"):
        (group,) = api.method("groups.getById")["groups"]
        return group["id"], group["name"]


def check_rights(api: Api) -> Iterator[Line]:
    """https://dev.vk.com/ru/method/groups.getTokenPermissions"""
    with translate_errors("groups.getTokenPermissions"):
        given = [one["name"] for one in api.method("groups.getTokenPermissions")["permissions"]]
    missing = " and ".join(right for right in RIGHTS if right not in given)
    yield ok_or(missing and f"{missing} missing: {NEW_TOKEN}", "rights", ", ".join(RIGHTS))


def check_long_poll(api: Api) -> Iterator[Line]:
    """Yield what the Long Poll settings are; what is wrong is changed, and what is on stays on.

    https://dev.vk.com/ru/method/groups.setLongPollSettings
    """
    own, _ = community(api)
    version, types, was = long_poll_settings(api, own)
    still = was
    if any(was.values()):
        flags = dict.fromkeys([*types, *BUILDERS], 1)  # VK does not say what becomes of those that are left out
        newer = max(version, API_VERSION, key=numbers)
        api.method("groups.setLongPollSettings", {"group_id": own, "enabled": 1, "api_version": newer, **flags})
        *_, still = long_poll_settings(api, own)
    for thing, wanted in LONG_POLL.items():
        if was[thing] and not still[thing]:
            yield Line(thing, "changed", f"{wanted} (was {was[thing]})")
        else:
            yield ok_or(still[thing] and f"{still[thing]}: {BY_HAND}", thing, wanted)


def long_poll_settings(api: Api, group: int) -> tuple[str, list[str], dict[str, str]]:
    """Return VK's version, the types that are on, and by thing what is not as the fetcher needs it, "" if it is.

    https://dev.vk.com/ru/method/groups.getLongPollSettings
    """
    with translate_errors("groups.getLongPollSettings"):
        answer = api.method("groups.getLongPollSettings", {"group_id": group})
        version, types = str(answer["api_version"]), [kind for kind, flag in dict(answer["events"]).items() if flag]
        off = "" if answer["is_enabled"] else "off"
    old = version if numbers(version) < numbers(API_VERSION) else ""
    missing = ", ".join(kind for kind in BUILDERS if kind not in types)
    return version, types, dict(zip(LONG_POLL, (off, old, missing and f"without {missing}"), strict=True))


def numbers(version: str) -> list[int]:
    """Return the numbers of a version."""
    return [int(number) for number in re.findall("[0-9]+", version)]


def check_redis(bus: Bus) -> Iterator[Line]:
    """Yield whether Redis answers, what it refuses, and what may cost the bus. Nothing is written."""
    bus.read([])
    yield Line("Redis", "ok", "it answers")
    keys = [*bus.keys, bus.alive_key, f"{{{bus.bus}}}:name:1"]
    refused = ", ".join(run_script(bus, "permissions", keys, channel(bus.bus, "message")))
    yield ok_or(refused and f"{refused} refused: {ACL_RULES}", "Redis permissions", "all that the fetcher needs")
    info: Any = {}
    with suppress(FatalError, TransientError), redis_errors():  # INFO may be forbidden
        info = bus.client.info()
    for thing, field, wanted, state, remedy in SERVER:
        if field in info:  # managed servers hide some
            found = ("ok", str(wanted)) if info[field] == wanted else (state, f"{info[field]}: {remedy}")
            yield Line(f"Redis {thing}", *found)
