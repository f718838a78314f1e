"""JSON by orjson, and by the standard library where orjson refuses or would change a value."""

import json
import math
from contextlib import suppress
from typing import Any

import orjson

from .events import Event

DIGITS = bytes.maketrans(b"123456789", b"000000000")
LONG_NUMBER = b"0" * 19  # digits: orjson would make a float of it
BEFORE_NUMBER = b" \t\r\n:,[-"  # a whole one; elsewhere digits belong to a text, a fraction or an exponent


class NotFinite(float):
    """NaN, or a number too large to be read: no JSON can hold it, and orjson refuses to write its class."""


def loads(data: bytes) -> Any:
    """Return the value; raise ValueError if it is not JSON, or nested too deep.

    Bytes that are not UTF-8 become U+FFFD; a byte order mark is ignored. NaN and the like become NotFinite.
    """
    *before, _ = data.translate(DIGITS).split(LONG_NUMBER)
    if not any(part[-1:] in BEFORE_NUMBER for part in before):
        with suppress(ValueError):
            return orjson.loads(data)
    try:
        text = data.decode("utf-8-sig", "replace")
        return json.loads(text, parse_constant=NotFinite, parse_float=finite, parse_int=finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def dumps(value: Any) -> bytes:
    """Return the JSON in UTF-8; half a surrogate pair becomes U+FFFD. Raise ValueError for what JSON cannot hold."""
    with suppress(TypeError):
        return orjson.dumps(value)
    try:
        return utf8(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError):
        raise ValueError("it cannot be written as JSON") from None


def event_to_json(event: Event) -> bytes:
    """Return the JSON of event.as_dict(), as `dumps` does, several times faster."""
    fields = {name: value for name, value in zip(event._fields, event) if value is not None}  # noqa: B905 - takes longer
    try:
        # A copy: orjson's own result takes 4 kB or more, and the latest events are kept for a while.
        return bytes(memoryview(orjson.dumps(fields, default=lambda noun: noun._asdict())))
    except TypeError:
        return dumps(event.as_dict())


def utf8(text: str) -> bytes:
    """Encode; what UTF-8 cannot carry, such as half a surrogate pair, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def finite(text: str) -> float:
    """Return the number, NotFinite if it is too large for a float, or a whole one of over 4,300 digits."""
    with suppress(ValueError):
        return int(text)
    return number if math.isfinite(number := float(text)) else NotFinite(number)
