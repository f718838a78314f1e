"""VK's updates as the core needs them: full messages in place of cropped ones, and events."""

import logging
import re
import time
from contextlib import suppress
from typing import Any

from ..core.ports import Failure
from ..events import Event
from .api import API_VERSION
from .builders import BUILDERS, other, require_message
from .fields import Json, object_or_empty, require_number, require_object
from .lookups import Lookups

WARNING_INTERVAL = 60.0  # seconds between two warnings
MAX_DATE = 2**32  # Unix time; a later date counts as none

log = logging.getLogger("fetcher")


class Updates:
    """Knows which updates make an event, and what is missing from them."""

    def __init__(self, lookups: Lookups, command: re.Pattern[str], raw: bool) -> None:
        """`command` is the pattern of a command's text; with `raw` every update is published as VK sent it."""
        self.lookups, self.command, self.raw = lookups, command, raw
        self.warn_at = 0.0

    def with_full_messages(self, updates: list[Any]) -> tuple[list[Any], Failure]:
        """Return the updates with full messages in place of cropped ones, where VK still has them.

        Also return the failure that kept VK from answering the rest, if there is one.
        """
        places = [cropped_message(update) for update in updates]
        messages, failure = self.lookups.full_messages({place for place in places if place})
        return [with_full_message(*one, messages) for one in zip(updates, places, strict=True)], failure

    def build(self, update: Any) -> Event | None:
        """Return the update's event; raise ValueError if the update is malformed.

        A type that is not in BUILDERS gives None, but with `raw` an event: then every event holds the update itself,
        not a copy. VK's notice in place of an object gives None and a warning:
        https://dev.vk.com/ru/api/deprecated-version-message
        """
        if not isinstance(update, dict) or not isinstance(update.get("type"), str):
            raise ValueError("the update has no type")
        if object_or_empty(update.get("object")).keys() == {"warning"}:
            if (now := time.monotonic()) >= self.warn_at:
                self.warn_at = now + WARNING_INTERVAL
                log.warning("VK sends a notice in place of an event: set %s in the community's settings", API_VERSION)
            return None
        builder = BUILDERS.get(update["type"], other if self.raw else None)
        event = builder(update, self.command) if builder else None
        return event._replace(raw=update) if event and self.raw else event

    def sent_at(self, update: Any) -> int:
        """Return when a message_new that makes an event was sent, in Unix time, 0 if VK does not say."""
        date = require_message(update).get("date") if update["type"] == "message_new" else 0
        return date if type(date) is int and 0 < date < MAX_DATE else 0


def cropped_message(update: Any) -> tuple[int, int] | None:
    """Return (peer_id, conversation_message_id) of a message_new that VK has cropped, else None."""
    with suppress(ValueError):  # `build` reports what is malformed
        is_message = require_object(update).get("type") == "message_new"
        if is_message and (message := require_message(update)).get("is_cropped"):
            return require_number(message, "peer_id"), require_number(message, "conversation_message_id", 0)
    return None


def with_full_message(update: Any, place: Any, messages: dict[Any, Json]) -> Any:
    """Return the update with the full message in place of the cropped one, if any; fields that it lacks stay."""
    if place not in messages:
        return update
    contents = update["object"]
    full = {name: value for name, value in require_message(update).items() if name != "is_cropped"} | messages[place]
    return {**update, "object": {**contents, "message": full} if "message" in contents else full}
