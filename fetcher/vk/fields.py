"""Read VK's JSON.

The `require_...` functions raise ValueError with the reason if a value is missing or of a wrong kind; `object_or_empty`
returns {} instead.
"""

import re
from typing import Any

Json = dict[str, Any]

MAX_NUMBER = 2**63 - 1  # VK's ids have 64 bits


def require_object(value: Any) -> Json:
    """Return the value if it is an object."""
    if not isinstance(value, dict):
        raise ValueError(f"of type {type(value).__name__} where an object is expected")
    return value


def require_text(fields: Json, key: str, default: str | None = None) -> str:
    """Return the text. Without a default it must not be empty; with one, a whole number is accepted as text, too."""
    value = fields.get(key)
    if default is not None and (value is None or type(value) is int):
        return default if value is None else str(value)
    if isinstance(value, str) and (value or default is not None):
        return value
    raise ValueError(f"{key} is missing or not text")


def require_number(fields: Json, key: str, default: int | None = None) -> int:
    """Return the whole number of at most 64 bits, even if VK sent it as text."""
    value = default if fields.get(key) is None else fields[key]
    if isinstance(value, str) and re.fullmatch("-?[0-9]{1,20}", value):
        value = int(value)
    if type(value) is not int or abs(value) > MAX_NUMBER:  # not isinstance: True is an int, too
        raise ValueError(f"{key} is missing or not a whole number of 64 bits")
    return value


def object_or_empty(value: Any) -> Json:
    """Return the value if it is an object, otherwise {}."""
    return value if isinstance(value, dict) else {}
