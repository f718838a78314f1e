"""`--setup`: make the community ready, and report what else is missing."""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..bus.bus import Bus
from ..bus.connection import redis_errors
from ..bus.scripts import run_script
from ..config import Config
from ..errors import FatalError, RequestRejected, TransientError
from ..events import channel
from ..metrics import OFF
from ..vk.api import API_VERSION, Api
from ..vk.builders import BUILDERS

RIGHTS = ("manage", "messages")
NEW_TOKEN = "make a community token with the rights manage and messages, and put it into TOKEN"
BY_HAND = "change this in the community's settings (API usage, Long Poll API)"
ACL_RULES = "give the user of REDIS_URL the ACL rules of docs/operations.md"
SERVER = (  # what INFO says of a server: its field there, what it should be, what it is otherwise, why and the remedy
    (
        "Redis role",
        "role",
        "master",
        "to do",
        "a replica takes no writes, put the address of its master into REDIS_URL",
    ),
    ("Redis maxmemory-policy", "maxmemory_policy", "noeviction", "advice", "it may discard the bus, set noeviction"),
    ("Redis appendonly", "aof_enabled", 1, "advice", "a crash loses what no snapshot has yet, set appendonly yes"),
)


class Line(NamedTuple):
    """What --setup found: `state` is "ok", "changed", "advice" (the fetcher runs all the same) or "to do"."""

    thing: str
    state: str
    text: str


class LongPollSettings(NamedTuple):
    """VK's settings: `types` are those that are on, `wrong` says what is not as the fetcher needs it, by thing."""

    version: str
    types: list[str]
    wrong: dict[str, str]


def setup(settings: Config) -> int:
    """Print a line for each thing that the fetcher needs, and change VK's Long Poll settings where they are wrong.

    Return 0 if the fetcher would run, else 1. Of the settings only TOKEN is needed; a missing GROUPID is printed.
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every terminal knows Cyrillic
    api = Api(settings.token, OFF)
    bus = Bus(settings.redis_url, settings.bus, settings.group, settings.stream_maxlen, 0)
    vk = {"token": check_token(api, settings.group), "rights": check_rights(api), "Long Poll": check_long_poll(api)}
    states = set()
    for checks in vk, {"Redis": check_redis(bus)}:
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


def check_rights(api: Api) -> Iterator[Line]:
    """https://dev.vk.com/ru/method/groups.getTokenPermissions"""
    given = ask(api, "groups.getTokenPermissions", {}, lambda answer: [one["name"] for one in answer["permissions"]])
    missing = " and ".join(right for right in RIGHTS if right not in given)
    yield ok_or(missing and f"{missing} missing: {NEW_TOKEN}", "rights", ", ".join(RIGHTS))


def check_long_poll(api: Api) -> Iterator[Line]:
    """Yield what the Long Poll settings are; what is wrong is changed, and what is on stays on.

    https://dev.vk.com/ru/method/groups.setLongPollSettings
    """
    own = {"group_id": community(api)[0]}
    before = after = ask(api, "groups.getLongPollSettings", own, read_settings)
    if before.wrong:
        flags = dict.fromkeys([*before.types, *BUILDERS], 1)  # VK does not say what becomes of those that are left out
        version = max(before.version, API_VERSION, key=numbers)
        api.method("groups.setLongPollSettings", {**own, "enabled": 1, "api_version": version, **flags})
        after = ask(api, "groups.getLongPollSettings", own, read_settings)
    for thing, wanted in ("Long Poll", "on"), ("Long Poll version", API_VERSION), ("event types", ", ".join(BUILDERS)):
        if thing in before.wrong and thing not in after.wrong:
            yield Line(thing, "changed", f"{wanted} (was {before.wrong[thing]})")
        else:
            yield ok_or(f"{after.wrong[thing]}: {BY_HAND}" if thing in after.wrong else "", thing, wanted)


def read_settings(answer: Any) -> LongPollSettings:
    """https://dev.vk.com/ru/method/groups.getLongPollSettings"""
    version, types = str(answer["api_version"]), [kind for kind, flag in dict(answer["events"]).items() if flag]
    wrong = {} if answer["is_enabled"] else {"Long Poll": "off"}
    if numbers(version) < numbers(API_VERSION):
        wrong["Long Poll version"] = version
    if missing := [kind for kind in BUILDERS if kind not in types]:
        wrong["event types"] = f"without {', '.join(missing)}"
    return LongPollSettings(version, types, wrong)


def numbers(version: str) -> list[int]:
    """Return the numbers of a version."""
    return [int(number) for number in re.findall("[0-9]+", version)]


def community(api: Api) -> tuple[int, str]:
    """Return id and name of the token's community. https://dev.vk.com/ru/method/groups.getById"""

    def read(answer: Any) -> tuple[int, str]:
        (group,) = answer["groups"]
        return group["id"], group["name"]

    own: tuple[int, str] = ask(api, "groups.getById", {}, read)
    return own


def ask(api: Api, method: str, values: dict[str, Any], read: Callable[[Any], Any]) -> Any:
    """Return what `read` makes of VK's answer; raise TransientError if it cannot read it."""
    answer = api.method(method, values)
    try:
        return read(answer)
    except (LookupError, TypeError, ValueError):
        raise TransientError(f"VK's {method} answers what cannot be read") from None


def check_redis(bus: Bus) -> Iterator[Line]:
    """Yield whether Redis answers, what it refuses, and what may cost the bus. Nothing is written."""
    bus.read([])
    yield Line("Redis", "ok", "it answers")
    keys = [*bus.keys, bus.alive_key, f"{{{bus.bus}}}:name:1"]
    refused = ", ".join(run_script(bus, "permissions", keys, channel(bus.bus, "message")))
    yield ok_or(refused and f"{refused} refused: {ACL_RULES}", "Redis permissions", "all that the fetcher needs")
    try:
        with redis_errors():
            info: Any = bus.client.info()
    except (FatalError, TransientError):
        return  # INFO may be forbidden
    known = [row for row in SERVER if row[1] in info]  # managed servers hide some
    for thing, field, wanted, state, remedy in known:
        is_ok = info[field] == wanted
        yield Line(thing, "ok", str(wanted)) if is_ok else Line(thing, state, f"{info[field]}: {remedy}")
