"""JSON by orjson, and by the standard library where orjson refuses: half a surrogate pair, numbers beyond 64 bits."""

import json
from typing import Any

import orjson

from .core.history import utf8


def loads(data: bytes | str) -> Any:
    """Return the value; raise ValueError or RecursionError if it is no JSON."""
    try:
        return orjson.loads(data)
    except ValueError:
        return json.loads(data)


def dumps(value: Any) -> bytes:
    """Return the JSON in UTF-8; raise ValueError or RecursionError for what JSON cannot hold."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return utf8(json.dumps(value, ensure_ascii=False, allow_nan=False))
