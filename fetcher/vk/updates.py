"""VK's updates as the core needs them: made whole where VK has cropped them, and built into events."""

import re
from typing import Any

from ..errors import FatalError, TransientError
from ..events import Event
from .builders import BUILDERS, Json, number_or_zero, other, require_id, require_json, require_message
from .lookups import Lookups


class Updates:
    """Knows which updates make an event, and what is missing from them."""

    def __init__(self, lookups: Lookups, command: re.Pattern[str], raw: bool) -> None:
        """`command` is the pattern of a command's text; with `raw` every update is published as VK sent it."""
        self.lookups, self.command, self.raw = lookups, command, raw

    def with_full_messages(self, updates: list[Any]) -> tuple[list[Any], TransientError | FatalError | None]:
        """Return the updates with full messages in place of cropped ones, where VK still has them.

        Return also the failure that kept VK from answering the rest.
        """
        places = [cropped_message(update) for update in updates]
        if not any(places):
            return updates, None
        messages, failure = self.lookups.full_messages({place for place in places if place})
        full = [
            with_full_message(update, messages[place]) if place in messages else update
            for update, place in zip(updates, places, strict=True)
        ]
        return full, failure

    def build(self, update: Any) -> Event | None:
        """Return the update's event; raise ValueError if the update is malformed.

        A type that is not in BUILDERS gives None, but with `raw` an event: then every event has the update in it, the
        very dict, and one that cannot be written as JSON is malformed.
        """
        if not isinstance(update, dict) or not isinstance(update.get("type"), str):
            raise ValueError("the update has no type")
        builder = BUILDERS.get(update["type"], other if self.raw else None)
        if not builder:
            return None
        event = builder(update, self.command)
        return event._replace(raw=require_json(update, "the update")) if self.raw else event

    def sent_at(self, update: Any) -> int:
        """Return when a message_new was sent, in Unix time, 0 if VK does not say."""
        try:
            return number_or_zero(require_message(update), "date") if update["type"] == "message_new" else 0
        except (AttributeError, KeyError, TypeError, ValueError):
            return 0


def cropped_message(update: Any) -> tuple[int, int] | None:
    """Return (peer_id, conversation_message_id) of a message_new that VK has cut short, else None."""
    try:
        message = require_message(update) if update["type"] == "message_new" else {}
        if not message.get("is_cropped"):
            return None
        return require_id(message, "peer_id"), number_or_zero(message, "conversation_message_id")
    except (KeyError, TypeError, ValueError):
        return None  # malformed: building it says why


def with_full_message(update: Json, message: Json) -> Json:
    """Return the update with the full message in place of the cropped one; what `message` lacks stays."""
    contents = update["object"]
    full = {name: value for name, value in require_message(update).items() if name != "is_cropped"} | message
    return {**update, "object": {**contents, "message": full} if "message" in contents else full}
