"""JSON by orjson, and by the standard library where orjson refuses or would change a value."""

import json
import math
from typing import Any

import orjson

from .events import Event

DIGITS = bytes.maketrans(b"123456789", b"000000000")
LONG_NUMBER = b"0" * 20  # digits: orjson would make a float of it


class NotFinite(float):
    """NaN, or a number too large for a float: no JSON can hold it, and orjson refuses to write its class."""


def loads(data: bytes) -> Any:
    """Return the value; raise ValueError or RecursionError if it is no JSON.

    Bytes that are no UTF-8 become U+FFFD; a byte order mark is passed over. NaN and the like become NotFinite.
    """
    if LONG_NUMBER not in data.translate(DIGITS):
        try:
            return orjson.loads(data)
        except ValueError:
            pass
    return json.loads(data.decode("utf-8-sig", "replace"), parse_constant=NotFinite, parse_float=finite)


def dumps(value: Any) -> bytes:
    """Return the JSON in UTF-8; half a surrogate pair becomes U+FFFD.

    Raise ValueError or RecursionError for what JSON cannot hold.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return utf8(json.dumps(value, ensure_ascii=False, allow_nan=False))


def event_to_json(event: Event) -> bytes:
    """Return the JSON of event.as_dict(), as `dumps` does."""
    fields = {name: value for name, value in zip(event._fields, event, strict=True) if value is not None}
    try:
        # A copy, for orjson's own result takes 4 kB or more, and the latest events are kept for a while.
        return bytes(memoryview(orjson.dumps(fields, default=lambda noun: noun._asdict())))
    except TypeError:
        return dumps(event.as_dict())


def utf8(text: str) -> bytes:
    """Encode; what UTF-8 cannot carry, such as half a surrogate pair, becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def finite(text: str) -> float:
    """Return the number, NotFinite if it is too large for a float."""
    return number if math.isfinite(number := float(text)) else NotFinite(number)
