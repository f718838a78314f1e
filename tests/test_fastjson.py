"""JSON by orjson: what it reads and writes is what the standard library would read and write, or is refused."""

import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.events import Action, Button, Event, Message, Peer, Reaction, Reply, User
from fetcher.fastjson import CheckedFloat, dumps, event_to_json, loads, utf8

STEADY = settings(max_examples=200, derandomize=True, deadline=None, database=None)
EDGES = [2**53 + 1, 10**18, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400]
numbers = st.integers() | st.sampled_from([*EDGES, *(-edge for edge in EDGES)]) | st.floats(allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(), max_size=8),  # with halves of surrogate pairs
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def has_only_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(has_only_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.long
@STEADY
@given(values)
def test_loads_reads_what_the_standard_library_reads(value: Any) -> None:
    """Numbers of any size and text of any kind are read exactly: an update is what VK sent, to the last digit."""
    text = json.dumps(value)
    assert repr(loads(text.encode())) == repr(json.loads(text))


@STEADY
@given(values)
def test_dumps_writes_what_loads_reads(value: Any) -> None:
    """Values are written unchanged, except halves of surrogate pairs, which no UTF-8 has; infinities are refused."""
    read = loads(json.dumps(value).encode())
    if not has_only_finite(value):
        with pytest.raises(ValueError, match="it cannot be written as JSON"):
            dumps(read)
        return
    written = dumps(read)
    assert repr(json.loads(written)) == repr(json.loads(utf8(json.dumps(value, ensure_ascii=False))))


@pytest.mark.parametrize("form", ["[%s]", "[1,%s]", "[ %s]", "[\t%s]", "[\r%s]", "[\n%s]", "[-%s]", '{"a":%s}', "%s"])
@pytest.mark.parametrize("digits", [19, 20, 38, 39])
def test_a_long_number_is_exact_wherever_it_is(form: str, digits: int) -> None:
    """A number of more than 64 bits is read to the last digit, wherever it is."""
    text = form % ("9" * digits)
    assert repr(loads(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"7" * 5000, b"-" + b"7" * 5000]
)
def test_values_that_json_cannot_hold(text: bytes) -> None:
    """NaN, or a number that is too long for Python, is read as CheckedFloat, wherever it is, and is never written."""
    assert isinstance(loads(text), CheckedFloat)
    (inner,) = loads(b'[{"a": ' + text + b"}]")
    assert isinstance(inner["a"], CheckedFloat)
    with pytest.raises(ValueError, match="it cannot be written as JSON"):
        dumps(inner)


def test_a_whole_number_of_640_digits_is_exact() -> None:
    """Python's limit of digits can be set as low as 640; a number of more digits counts as infinite."""
    usual = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert loads(b"9" * 640) == int("9" * 640)
        assert loads(b"9" * 641) == math.inf
    finally:
        sys.set_int_max_str_digits(usual)


@pytest.mark.parametrize("text", [b"", b"<html>", b"{", b'{"a": 1,}', b"[1,", b"nan", b"1 2", b"[" * 100_000])
def test_text_that_is_not_json(text: bytes) -> None:
    """Text that is no JSON, or is nested too deep, raises ValueError and no other error."""
    with pytest.raises(ValueError, match=r"."):
        loads(text)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'"\xd0\xd0\xb0"', "\ufffdа"),
        (b'"\\ud83d\\ude00 \\ud83d"', "😀 \ud83d"),
        (b"-9223372036854775809", -(2**63) - 1),
        (b"18446744073709551616", 2**64),
        (b'["00000000000000000000", 1]', ["00000000000000000000", 1]),
    ],
)
def test_text_that_orjson_alone_would_refuse(data: bytes, value: Any) -> None:
    """A byte order mark, broken UTF-8, half a surrogate pair, and numbers beyond 64 bits can be read."""
    assert loads(data) == value
    assert type(loads(data)) is type(value)


def test_utf8() -> None:
    """Text becomes UTF-8, and half a surrogate pair becomes U+FFFD, but two adjacent halves are one character."""
    assert utf8("я😀") == "я😀".encode()
    assert utf8("a\ud83db\udc4d") == "a\ufffdb\ufffd".encode()
    assert utf8("\ud83d\ude00") == "😀".encode()


ANNA, PEER = User(5, "Анна Черных", "Анна", "Черных", "anna"), Peer(2_000_000_007, 7, "Беседа")
MESSAGE = Message(1, "привет\ud83d", Reply(2, "да", 5), [Reply(3, "нет")], ["photo", "reply", "forward"])
EVENTS = [
    Event("message", "1", ANNA, PEER, message=MESSAGE),
    Event("message", "1", ANNA, PEER, message=MESSAGE, action=Action("chat_kick_user", ANNA, "", 0), payload={"a": 1}),
    Event("button", "1", ANNA, PEER, button=Button(1, "2", {"a": [1, {"b": None}]})),
    Event("reaction", "1", ANNA, PEER, reaction=Reaction(1, 2), raw={"type": "x", "object": {"number": 10**30}}),
]


@pytest.mark.parametrize("event", EVENTS)
def test_event_to_json(event: Event) -> None:
    """The JSON is that of as_dict(): the same keys in the same order, without those that are None."""
    text = event_to_json(event)
    assert json.dumps(json.loads(text)) == json.dumps(json.loads(utf8(json.dumps(event.as_dict(), ensure_ascii=False))))


@pytest.mark.parametrize("value", [CheckedFloat("nan"), [CheckedFloat("inf")], {"a": {"b": CheckedFloat("-inf")}}])
def test_an_event_that_cannot_be_written(value: Any) -> None:
    """A value that is not finite, wherever it is, raises ValueError, and is never written as null."""
    with pytest.raises(ValueError, match="it cannot be written as JSON"):
        event_to_json(Event("button", "1", ANNA, PEER, button=Button(1, "2", {"a": value})))


def test_floats_beside_a_value_that_orjson_refuses() -> None:
    """Floats that the standard library has read are written as they were sent, and Event.from_dict reads them."""
    payload = loads(b'{"long": 123456789012345678901234567890, "floats": [1.5, -0.0, 1e300, 5e-324]}')
    assert all(isinstance(number, CheckedFloat) for number in payload["floats"])
    event = Event("button", "1", ANNA, PEER, button=Button(1, "2", payload))
    written = json.loads(event_to_json(event))
    assert repr(written["button"]["payload"]) == repr(payload)
    assert Event.from_dict(json.loads(json.dumps(event.as_dict()))) == Event.from_dict(written) == event


def test_an_event_that_is_nested_too_deep() -> None:
    """An event nested too deep for orjson is still written; one too deep for the standard library is refused."""
    deep: Any = 1
    for depth in range(1, 100_001):
        deep = [deep]
        if depth == 500:
            assert b"[" * 500 + b"1" in event_to_json(Event("a", "1", ANNA, PEER, payload={"a": deep}))
    with pytest.raises(ValueError, match="it cannot be written as JSON"):
        event_to_json(Event("a", "1", ANNA, PEER, payload={"a": deep}))
