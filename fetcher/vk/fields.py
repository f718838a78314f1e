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
        raise ValueError(f"{kind_of(value)} where an object is expected")
    return value


def require_list(fields: Json, key: str) -> list[Any]:
    """Return the list; [] if it is missing or empty in any form: VK may send "", 0 or {} for no list."""
    value = fields.get(key) or []
    if not isinstance(value, list):
        raise wrong_kind(key, value, "a list")
    return value


def require_text(fields: Json, key: str, default: str | None = None) -> str:
    """Return the text. Without a default it must not be empty; with one, a whole number is accepted as text, too."""
    value = fields.get(key)
    if default is not None and (value is None or type(value) is int):
        return default if value is None else str(value)
    if isinstance(value, str) and (value or default is not None):
        return value
    raise wrong_kind(key, value, "text")


def require_number(fields: Json, key: str, default: int | None = None) -> int:
    """Return the whole number of at most 64 bits, even if VK sent it as text or as a float such as 5.0."""
    value = fields.get(key)
    if value is None and default is not None:
        return default
    if type(value) in (str, float) and (found := re.fullmatch(r"(-?[0-9]{1,4000})(\.0)?", str(value))):
        value = int(found[1])
    if type(value) is not int:  # not isinstance: True is an int, too
        raise wrong_kind(key, value, "a whole number")
    if abs(value) > MAX_NUMBER:
        raise ValueError(f"{key} is too large")
    return value


def object_or_empty(value: Any) -> Json:
    """Return the value if it is an object, otherwise {}."""
    return value if isinstance(value, dict) else {}


def wrong_kind(key: str, value: Any, due: str) -> ValueError:
    """Return the error that says what is wrong with a value."""
    return ValueError(f"{key} is missing" if value is None else f"{key} is {kind_of(value)}, not {due}")


def kind_of(value: Any) -> str:
    """Return what kind of value it is, in words."""
    kind = "float" if isinstance(value, float) else type(value).__name__  # NotFinite is our subclass of float
    return "missing" if value is None else "empty" if value == "" else f"of type {kind}"
