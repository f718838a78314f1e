"""The community's Long Poll settings, as far as the fetcher needs them."""

import re

from .api import Api, translate_errors
from .builders import BUILDERS
from .fields import Json


def long_poll_settings(api: Api, group: int) -> tuple[bool, str, Json, str]:
    """Return whether Long Poll is off, its version, the flags of the types of update, and which of ours are missing.

    https://dev.vk.com/ru/method/groups.getLongPollSettings: the flags may come as an empty list
    """
    with translate_errors("groups.getLongPollSettings"):
        answer = api.method("groups.getLongPollSettings", {"group_id": group})
        flags = dict(answer.get("events") or ())
        missing = ", ".join(kind for kind in BUILDERS if not flags.get(kind))
        return answer["is_enabled"] == 0, str(answer.get("api_version")), flags, missing


def numbers(version: str) -> list[int]:
    """Return the numbers of a version."""
    return [int(number) for number in re.findall("[0-9]+", version)]
