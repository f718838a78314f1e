"""`--redrive`: give dead letters another chance, either the fetcher's or those of a consumer group."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ..bus.bus import Bus
from ..bus.connection import redis_errors
from ..config import Config
from ..core.backlog import Pending
from ..core.history import DeadLetter, Entry, Position
from ..errors import CallFailed
from ..events import channel
from ..fastjson import loads, utf8
from ..logs import print_line
from ..vk.api import Api
from ..vk.entries import EntryBuilder


def redrive(settings: Config, group: str | None) -> int:
    """Publish the fetcher's dead letters that make an event now, or give those of a consumer group back to it.

    Print a line for each dead letter that stays, then how many went and how many stay. Return the exit code 0. Raise
    TransientError or FatalError if VK or Redis fails. The command may be killed and repeated at any time, because each
    dead letter goes in one atomic step.
    """
    bus, went, stay = Bus(settings), 0, 0
    try:
        for letter, reason in publish(bus, settings) if group is None else give_back(bus, group):
            if reason:
                print_line(f"{letter} stays: {reason}")
            stay += bool(reason)
            went += reason == ""
    finally:
        done = "published" if group is None else f"given back to the group {group}"
        print_line(f"{done}: {went}, stay: {stay}")
    return 0


def publish(bus: Bus, settings: Config) -> Iterator[tuple[str, str | None]]:
    """Publish the fetcher's dead letters that make an event now.

    Yield the id of each dead letter, together with the reason why it stays: "" if it was published, and None if it was
    gone, because another command has published it or Redis has trimmed it.
    """
    # The cache of names is unused, because only the loop sets `bus.is_connected`: an old title must not get into it.
    builder = EntryBuilder(Api(settings.token), bus, settings.group, settings.prefixes, settings.raw)
    for letter, fields in dead_letters(bus, bus.keys[-1]):
        update: Any = None
        with suppress(ValueError):
            update = loads(fields.get("update", "").encode())
        if not isinstance(update, dict) or update.get("group_id", settings.group) != settings.group:
            yield letter, "it holds no update of this community"  # but of another one, or a gap
            continue
        # A dead letter does not say where in VK's history its update was.
        batch = Pending("batch", Position(0, 0), Position(0, 0), [update])
        try:
            builder.build([batch], give_up=False)
        except CallFailed as error:  # about this one; after any other error the command ends, and may be repeated
            batch.set_entries([DeadLetter("", {"error": str(error)})])
        (entry,) = batch.entries
        if isinstance(entry, Entry):
            event = utf8(entry.id), utf8(channel(bus.name, entry.event_type)), entry.text
            yield letter, bus.run_script("redrive", bus.keys[1:], letter, *event, settings.stream_maxlen)
        else:
            yield letter, entry.fields["error"] if entry else "only RAW=1 makes an event of its type"


def give_back(bus: Bus, group: str) -> Iterator[tuple[str, str | None]]:
    """Give dead letters back to their group, as entries that a consumer has abandoned; yield the same as `publish`.

    https://redis.io/docs/latest/commands/xclaim/
    """
    keys = [f"{bus.prefix}:dead-letter:{group}", bus.name, f"{bus.prefix}:attempts:{group}"]
    for letter, fields in dead_letters(bus, keys[0]):
        yield letter, bus.run_script("give_back", keys, letter, group, fields.get("id", ""))


@redis_errors()
def dead_letters(bus: Bus, key: str) -> Any:
    """Return the id and the fields of each dead letter; the stream keeps about 10,000.

    Those that arrive later are left out, because an event that fails again must not be retried without end.
    """
    return bus.client.xrange(key)
