"""`--setup`: configure the community on VK, and report what else is missing."""

from collections.abc import Iterator
from contextlib import suppress

from ..bus.bus import Bus
from ..bus.connection import ACL_RULES, redis_errors
from ..config import Config
from ..errors import FatalError, TransientError
from ..events import channel
from ..logs import print_line
from ..vk.api import API_VERSION, Api, translate_errors
from ..vk.builders import BUILDERS
from ..vk.longpoll import long_poll_settings, numbers

# A thing, its state ("ok", "changed", "to do", or "advice" if the fetcher runs all the same), and the details.
Line = tuple[str, str, str]

RIGHTS = ("manage", "messages")
LONG_POLL = {"Long Poll": "on", "Long Poll version": API_VERSION, "event types": ", ".join(BUILDERS)}
# Settings of the server: a thing, its field in INFO, the wanted value, the state if it differs, the reason and remedy.
SERVER = (
    ("role", "role", "master", "to do", "a replica takes no writes, put the address of its master into REDIS_URL"),
    ("maxmemory-policy", "maxmemory_policy", "noeviction", "advice", "it may discard the bus, set noeviction"),
    ("appendonly", "aof_enabled", 1, "advice", "a crash loses what no snapshot has yet, set appendonly yes"),
)
NEW_TOKEN = "make a community token with the rights manage and messages, and put it into TOKEN"
REMEDIES = {"VK": f"try again, or {NEW_TOKEN}", "Redis": "start Redis, or correct REDIS_URL"}


def setup(settings: Config) -> int:
    """Print a line for each thing that the fetcher needs, and correct VK's Long Poll settings if they are wrong.

    Return 0 if the fetcher would run, otherwise 1. TOKEN is the only setting that must be given; if GROUPID is missing,
    the line says what to set it to.
    """
    vk, redis = check_vk(Api(settings.token), settings.group), check_redis(Bus(settings))
    lines = [*until_failure("VK", vk), *until_failure("Redis", redis)]
    for thing, state, text in lines:
        print_line(f"{state:8}{thing}: {text}")
    return int(any(state == "to do" for _, state, _ in lines))


def until_failure(system: str, check: Iterator[Line]) -> Iterator[Line]:
    """Yield the lines of a check; if an error ends the check early, yield how to fix that."""
    try:
        yield from check
    except FatalError as error:
        yield system, "to do", str(error).removeprefix(f"{system}: ")
    except TransientError as error:
        yield system, "to do", f"{REMEDIES[system]} ({error})"


def check_vk(api: Api, group: int) -> Iterator[Line]:
    """Yield whose token it is, its rights and the Long Poll settings, which are corrected if they are wrong.

    Event types that are on stay on. https://dev.vk.com/ru/method/groups.getById,
    https://dev.vk.com/ru/method/groups.getTokenPermissions, https://dev.vk.com/ru/method/groups.setLongPollSettings
    """
    with translate_errors("groups.getById"):
        (community,) = api.method("groups.getById")["groups"]
        own, name = community["id"], community["name"]
    yield "token", "ok", f"of the community {name!r}"
    yield ("GROUPID", "ok", str(own)) if group == own else ("GROUPID", "to do", f"put GROUPID={own} into .env")
    with translate_errors("groups.getTokenPermissions"):
        given = [one["name"] for one in api.method("groups.getTokenPermissions")["permissions"]]
    missing = " and ".join(right for right in RIGHTS if right not in given)
    yield ("rights", "to do", f"{missing} missing: {NEW_TOKEN}") if missing else ("rights", "ok", ", ".join(RIGHTS))
    is_off, version, flags, without = long_poll_settings(api, own)
    newer = max(version, API_VERSION, key=numbers)
    wrong = is_off and "off", version != newer and version, without and f"without {without}"
    if any(wrong):
        on = dict.fromkeys([*filter(flags.get, flags), *BUILDERS], 1)  # VK may switch off types that are left out
        api.method("groups.setLongPollSettings", {"group_id": own, "enabled": 1, "api_version": newer, **on})
    for (thing, wanted), was in zip(LONG_POLL.items(), wrong, strict=True):
        yield (thing, "changed", f"{wanted} (was {was})") if was else (thing, "ok", wanted)


def check_redis(bus: Bus) -> Iterator[Line]:
    """Yield whether Redis answers, what it refuses, and which settings may lose the bus's data. Nothing is written."""
    bus.read([])
    yield "Redis", "ok", "it answers"
    keys = [*bus.keys, bus.alive_key, f"{bus.prefix}:name:1"]
    refused = ", ".join(bus.run_script("permissions", keys, channel(bus.name, "message")))
    state, text = ("to do", f"{refused} refused: {ACL_RULES}") if refused else ("ok", "all that the fetcher needs")
    yield "Redis permissions", state, text
    with suppress(FatalError, TransientError), redis_errors():  # INFO may be forbidden
        info = bus.client.info()
        for thing, field, wanted, state, remedy in SERVER:
            if field in info:  # managed servers hide some fields
                found = ("ok", str(wanted)) if info[field] == wanted else (state, f"{info[field]}: {remedy}")
                yield f"Redis {thing}", *found
