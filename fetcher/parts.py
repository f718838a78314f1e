"""The parts that the fetcher and its commands have in common, made from the settings."""

from .bus.bus import Bus
from .bus.cache import NameCache
from .config import Config
from .core.entries import EntryBuilder
from .core.names import Directory
from .fastjson import event_to_json
from .vk.api import Api
from .vk.builders import command_pattern
from .vk.lookups import Lookups
from .vk.updates import Updates


def make_bus(settings: Config) -> Bus:
    """Return the bus of these settings; a heartbeat lasts 30 s longer than the next poll may take."""
    return Bus(settings.redis_url, settings.bus, settings.group, settings.stream_maxlen, settings.poll_wait + 30)


def make_builder(settings: Config, api: Api, bus: Bus) -> EntryBuilder:
    """Return the builder of entries from VK's updates, with names from VK and from the bus."""
    lookups = Lookups(api)
    updates = Updates(lookups, command_pattern(settings.group, settings.prefixes), settings.raw)
    return EntryBuilder(updates, Directory(NameCache(bus, settings.names_ttl), lookups), event_to_json)
