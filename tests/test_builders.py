"""VK's updates through the dispatch table: realistic ones with their exact results, and random JSON like them."""

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fetcher.events import Event
from fetcher.fastjson import CheckedFloat, event_to_json, loads
from fetcher.vk.builders import BUILDERS, command_pattern
from fetcher.vk.entries import EntryBuilder, cropped_message, sent_at, with_full_message
from tests.samples import SAMPLES
from tests.samples.other_types import OTHER_TYPES
from tests.vk import GROUP, PEER, PERSON, button, message, reaction, update

COMMAND = command_pattern(GROUP, "/!")
NO_JSON = "it cannot be written as JSON"

DEEP: Any = []
for _ in range(100_000):
    DEEP = [DEEP]


def builder(command: re.Pattern[str] = COMMAND, raw: bool = False) -> EntryBuilder:
    nobody: Any = None  # building an event needs no lookups
    builder = EntryBuilder(nobody, nobody, GROUP, "/!", raw)
    builder.command = command
    return builder


def completed(update: Any, message: Any) -> Any:
    """Return the update with this full message."""
    return with_full_message(update, {cropped_message(update): message})


def received(update: Any) -> Any:
    """Return the update as it arrives from VK, parsed from JSON."""
    try:
        return loads(json.dumps(update).encode())
    except RecursionError:
        return update


def outcome(update: Any, command: re.Pattern[str] = COMMAND, raw: bool = False) -> dict[str, Any]:
    """Return what becomes of an update, in the format of the samples."""
    try:
        event = builder(command, raw).event_of(received(update))
        if event:
            event_to_json(event)
    except ValueError as error:
        return {"dead_letter": str(error)}
    return {"event": event.as_dict()} if event else {"passed_over": True}


def pattern_for(update: Any) -> re.Pattern[str]:
    """Return the pattern of a command for the update's community."""
    return command_pattern(update["group_id"], "/!") if isinstance(update, dict) and "group_id" in update else COMMAND


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_samples(name: str) -> None:
    """Each sample gives exactly its event, its dead letter's reason, or nothing, and is not modified."""
    given, expected = copy.deepcopy(SAMPLES[name]), copy.deepcopy(SAMPLES[name])
    del expected["update"]
    result = outcome(given["update"], pattern_for(given["update"]))
    assert json.dumps(result) == json.dumps(expected), "the order of keys, and 1 is not 1.0 or true"
    assert json.dumps(given) == json.dumps(SAMPLES[name])


@pytest.mark.parametrize("type", sorted(BUILDERS))
def test_each_type_has_a_sample(type: str) -> None:
    """A new type of event needs a file in tests/samples: an update of that type, and its event."""
    built = [sample for sample in SAMPLES.values() if "event" in sample and sample["update"]["type"] == type]
    assert built, f"no file in tests/samples has an update of type {type} and its event"


@pytest.mark.parametrize("prefix", "/!.-]^[\\$*+?(){}|&~#ё")
def test_any_prefix(prefix: str) -> None:
    """Each character of COMMAND_PREFIXES is a prefix, even if it is special in a regular expression."""
    command = command_pattern(GROUP, "%" + prefix + ">")
    for text, kind in (
        (f"{prefix}help", "command"),
        ("%1", "command"),
        (">я", "command"),
        ("@help", "message"),
        (f"{prefix} help", "message"),
    ):
        assert outcome(message(text), command)["event"]["event_type"] == kind, text


def test_a_prefix_that_is_an_emoji() -> None:
    """An emoji works as a prefix with and without a variation selector, which keyboards append to many of them."""
    selector = "\N{VARIATION SELECTOR-16}"
    for prefixes in ("❗", f"❗{selector}"):
        for text, kind in (
            ("❗help", "command"),
            (f"❗{selector}help", "command"),
            (f"❗{selector}", "message"),
            (f"❗{selector} help", "message"),
        ):
            assert outcome(message(text), command_pattern(GROUP, prefixes))["event"]["event_type"] == kind, text


def test_mention_is_of_the_fetchers_community() -> None:
    """A mention before a command is removed only if it names the fetcher's own community."""
    text = "[club5|бот] /help"
    assert outcome(message(text), command_pattern(5, "/"))["event"]["message"]["text"] == "/help"
    assert outcome(message(text), command_pattern(55, "/"))["event"]["message"]["text"] == text


def test_payload_too_deep() -> None:
    """A payload nested too deep to be written as JSON makes a dead letter; one that VK sends as text stays text."""
    assert outcome(button(DEEP)).keys() == {"dead_letter"}
    text = '{"a":' * 100_000 + "1" + "}" * 100_000
    assert outcome(button(text))["event"]["button"]["payload"] == {"value": text}


@pytest.mark.parametrize("number", [10**400, 2**63, -(2**63), "9" * 20, 1e300, CheckedFloat("nan"), float("inf")])
def test_numbers_out_of_range(number: Any) -> None:
    """An id that is no 64-bit integer makes a dead letter, wherever it is; such a date counts as missing."""
    for malformed in (
        message(from_id=number),
        message(peer_id=number),
        message(conversation_message_id=number),
        message(reply_message={"from_id": number}),
        message(action={"type": "chat_kick_user", "member_id": number}),
        button(user=number),
        reaction(number),
    ):
        assert outcome(malformed).keys() == {"dead_letter"}
    assert outcome(message(date=number)).keys() == {"event"}


@pytest.mark.parametrize(
    ("update", "noun"), [(button(conversation_message_id=None), "button"), (reaction(cmid=None), "reaction")]
)
def test_a_message_without_a_number(update: Any, noun: str) -> None:
    """The message's number is 0 if VK does not send it."""
    assert outcome(update)["event"][noun]["cmid"] == 0


def test_ids_of_64_bits() -> None:
    """Ids at the limits of 64 bits are valid."""
    assert outcome(message(user=2**63 - 1, peer=1 - 2**63))["event"]["peer"]["bpid"] == 1 - 2**63


# VK's notice


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("type", ["message_new", "message_event", "brand_new"])
def test_vks_notice(type: str, raw: bool, caplog: pytest.LogCaptureFixture) -> None:
    """VK's notice in place of an object makes no event and no dead letter; one warning says what to do."""
    entries = builder(raw=raw)
    notice = update(type, {"warning": "You are using a deprecated API version. Please upgrade to a newer one."})
    for _ in range(100):
        assert entries.event_of(notice) is None
    (record,) = caplog.records
    assert (record.levelname, "5.199" in record.getMessage()) == ("WARNING", True)


def test_an_object_with_other_fields_is_not_a_notice() -> None:
    """An object with a warning among other fields is not a notice."""
    assert outcome(message(warning="да")).keys() == {"event"}
    assert outcome(button(warning="да")).keys() == {"event"}


# The update itself, with RAW=1


@pytest.mark.parametrize("name", sorted(name for name in SAMPLES if "passed_over" not in SAMPLES[name]))
def test_raw_of_samples(name: str) -> None:
    """RAW=1 only adds VK's update at the end of an event; a malformed update still makes the same dead letter."""
    update = copy.deepcopy(SAMPLES[name]["update"])
    result = outcome(update, pattern_for(update), raw=True)
    if name == "nan-unpublished":
        assert result == {"dead_letter": NO_JSON}
    elif "event" in SAMPLES[name]:
        assert json.dumps(result["event"]) == json.dumps(SAMPLES[name]["event"] | {"raw": SAMPLES[name]["update"]})
    else:
        assert result == {"dead_letter": SAMPLES[name]["dead_letter"]}


@pytest.mark.parametrize("type", sorted(OTHER_TYPES.keys() - BUILDERS.keys()))
def test_other_types(type: str) -> None:
    """A type without a builder is published only with RAW=1: under VK's name, with who caused it and where."""
    fields, user, peer = OTHER_TYPES[type]
    given = update(type, fields)
    assert outcome(given) == {"passed_over": True}
    assert json.dumps(outcome(given, raw=True)["event"]) == json.dumps(
        {
            "event_type": type,
            "event_id": given["event_id"],
            "user": {"uuid": user, "name": "", "firstname": "", "lastname": "", "nick": ""},
            "peer": {"bpid": peer, "cid": max(0, peer - 2_000_000_000), "name": ""},
            "raw": given,
        }
    )


@pytest.mark.parametrize(
    ("fields", "user", "peer"),
    [
        ({}, -GROUP, -GROUP),
        ({"user_id": None, "from_id": 0, "liker_id": "", "admin_id": 5}, 5, 5),
        ({"user_id": "5", "peer_id": "2000000007"}, 5, PEER),
        ({"peer_id": PEER}, -GROUP, PEER),
        ({"user_id": -5, "peer_id": None}, -5, -5),
    ],
)
def test_user_and_peer_of_a_new_type(fields: Any, user: int, peer: int) -> None:
    """In types that VK adds, too, the community stands in for a missing actor, and the actor for a missing peer."""
    event = outcome(update("brand_new", fields), raw=True)["event"]
    assert (event["user"]["uuid"], event["peer"]["bpid"]) == (user, peer)


def test_half_a_surrogate_pair_in_a_new_type() -> None:
    """Half a surrogate pair in a type is replaced: a metric has the type as a label, and metrics must be UTF-8."""
    event = builder(raw=True).event_of(update("new\ud83d", {"from_id": 5}))
    assert event
    assert event.event_type == "new\ufffd"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (update("", {}), "type is missing or not text"),
        (update("brand_new", {"from_id": 5}, event_id=""), "event_id is missing or not text"),
        (update("brand_new", {"from_id": 5}, event_id=None), "event_id is missing or not text"),
        (update("brand_new", [], group_id=None), "group_id is missing or not a whole number of 64 bits"),
        (update("brand_new", {"from_id": "durov"}), "from_id is missing or not a whole number of 64 bits"),
        (update("brand_new", {"from_id": 5, "peer_id": [1]}), "peer_id is missing or not a whole number of 64 bits"),
        (update("brand_new", {}, group_id=None), "group_id is missing or not a whole number of 64 bits"),
        (update("brand_new", {"from_id": 5, "new": float("nan")}), NO_JSON),
        (update("brand_new", {"from_id": 5}, new=float("inf")), NO_JSON),
        (update("brand_new", {"from_id": 5, "new": DEEP}), NO_JSON),
        (message(geo={"type": "point", "coordinates": float("nan")}), NO_JSON),
    ],
)  # fmt: skip
def test_malformed_with_raw(given: Any, reason: str) -> None:
    """An update without an id or an actor, or one that cannot be written as JSON, is a dead letter with the reason."""
    assert outcome(given, raw=True) == {"dead_letter": reason}


@pytest.mark.parametrize("contents", [{}, [], None, "", {"peer_id": ""}])
def test_raw_of_nobody(contents: Any) -> None:
    """VK may send an empty list for an object and an empty string for a number: then the community is user and peer."""
    given = update("brand_new", contents, group_id=7)
    event = builder(raw=True).event_of(given)
    assert event
    assert (event.user.uuid, event.peer.bpid, event.raw) == (-7, -7, given)


def test_raw_is_verbatim() -> None:
    """`raw` is VK's update itself, not a copy, with its order of keys and its exact numbers."""
    text = (
        '{"v": "5.199", "type": "message_new", "object": {"message": {"peer_id": 2000000007, "text": "", "from_id": 5, '
        '"geo": {"latitude": 55.755826, "longitude": -0.0, "b": 0.1, "c": 1.0, "d": 1e-07, "e": 123456789012345678}}}, '
        '"event_id": "a"}'
    )
    given = loads(text.encode())
    event = builder(raw=True).event_of(given)
    assert event
    assert event.raw is given, "not a copy"
    assert json.dumps(event.raw) == text


# Cropped messages


def test_only_a_cropped_message_is_looked_up() -> None:
    """Only a new message that VK has cropped has a place at which the full message is looked up."""
    assert cropped_message(message(is_cropped=True, conversation_message_id=5)) == (PEER, 5)
    assert cropped_message(message(is_cropped=True, conversation_message_id="5", peer_id=str(PERSON))) == (PERSON, 5)
    assert cropped_message(message(is_cropped=1, conversation_message_id=5)) == (PEER, 5)
    for other in (
        message(),
        message(is_cropped=False),
        button(is_cropped=True),
        reaction(is_cropped=True),
        update("message_reply", {"is_cropped": True, "peer_id": 1, "conversation_message_id": 1}),
    ):
        assert cropped_message(other) is None


MALFORMED: list[Any] = [None, 5, "message_new", [], {}, {"type": []}, {"type": "message_new"}]
MALFORMED += [update("message_new", None), update("message_new", []), update("message_new", {"message": "text"})]


@pytest.mark.parametrize(
    "update",
    [
        *MALFORMED,
        message(is_cropped=True, peer_id=None),
        message(is_cropped=True, peer_id=[]),
        message(is_cropped=True, conversation_message_id="first"),
    ],
)
def test_a_malformed_cropped_message_is_not_looked_up(update: Any) -> None:
    """Nothing is looked up for a malformed update: building it reports what is wrong."""
    assert cropped_message(update) is None


def test_full_message_replaces_the_cropped_one() -> None:
    """The full message replaces the cropped one; fields that it lacks stay; the update is not modified."""
    short = message("кор", is_cropped=True, attachments=[{"type": "photo"}], conversation_message_id=5)
    before = copy.deepcopy(short)
    full = {
        "text": "короткий",
        "attachments": [{"type": "photo"}, {"type": "doc"}],
        "fwd_messages": [{"text": "да", "conversation_message_id": 2, "from_id": 5}],
    }
    event = outcome(completed(short, full), raw=True)["event"]
    assert event["message"] == {
        "cmid": 5,
        "text": "короткий",
        "reply": None,
        "forward": [{"cmid": 2, "text": "да", "uuid": 5}],
        "attachments": ["photo", "doc", "forward"],
    }
    assert (event["event_id"], event["user"]["uuid"], event["peer"]["bpid"]) == (short["event_id"], PERSON, PEER)
    assert short == before
    expected = copy.deepcopy(short)
    expected["object"]["message"] |= full
    del expected["object"]["message"]["is_cropped"]
    assert json.dumps(event["raw"]) == json.dumps(expected), "raw has the full message, and is no longer cropped"


def test_full_message_before_5_103() -> None:
    """The full message also replaces a cropped one before API version 5.103, where the object is the message itself."""
    short = update("message_new", message("кор", is_cropped=True)["object"]["message"])
    assert cropped_message(short)
    event = outcome(completed(short, {"text": "короткий"}), raw=True)["event"]
    assert event["message"]["text"] == event["raw"]["object"]["text"] == "короткий"


NO_DATES: list[Any] = [None, 0, -1, True, "noon", [], float("nan"), 10**400, 2**63]


@pytest.mark.parametrize(
    ("given", "date"),
    [
        (message(date=1764500900), 1764500900),
        (update("message_new", {"date": 1764500900}), 1764500900),
        *((message(date=wrong), 0) for wrong in NO_DATES),
        (update("message_edit", {"date": 1764500900}), 0),
        (button(), 0),
    ],
)
def test_sent_at(given: Any, date: int) -> None:
    """`sent_at` returns the date of a new message, and 0 for any other event or if VK's value is no date."""
    assert sent_at(given) == date


# Any JSON that resembles an update

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
STEADY = settings(max_examples=600, derandomize=True, deadline=None, database=None, suppress_health_check=SLOW)
TEXTS = ["", "/help", "!бан", "/ ", f"[club{GROUP}|бот], /x", f"@club{GROUP} !1", "\ud83d", "0", "-5", "2000000007"]
TEXTS += ["NaN", "null", "[1]", "{}", '{"a":1}', '{"a":NaN}', '{"a":1e999}']
NUMBERS = [PERSON, PEER, -GROUP, 2_000_000_000, -2_000_000_001, 2**63, 10**30, 1.0, 2000000007.0, 1e300, True, False]

texts = st.text(st.characters(), max_size=8) | st.sampled_from(TEXTS)
numbers = st.integers(-10, 10) | st.floats() | st.sampled_from(NUMBERS)
anything = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
people = st.sampled_from([PERSON, str(PERSON), -GROUP, -GROUP - 1, 5.0])
peers = st.sampled_from([PEER, str(PEER), PEER + 1, PERSON, -GROUP, -2_000_000_123])
cmids = st.integers(0, 3) | st.sampled_from(["7", None])
foreign = {"conversation_message_id": cmids, "text": texts, "from_id": people | st.none()}
forwards = st.lists(st.fixed_dictionaries({}, optional=foreign), max_size=3)
attachments = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["photo", "doc", "новое"])}), max_size=3)
messages = st.fixed_dictionaries(
    {"from_id": people, "peer_id": peers, "text": st.sampled_from(TEXTS)},
    optional={"conversation_message_id": cmids}
    | {
        "reply_message": st.none() | st.fixed_dictionaries(foreign),
        "fwd_messages": forwards,
        "attachments": attachments,
        "geo": st.just({"type": "point"}),
        "action": st.fixed_dictionaries(
            {"type": st.sampled_from(["chat_title_update", "chat_kick_user", "новое"])},
            optional={"text": texts, "member_id": people, "conversation_message_id": cmids, "email": texts},
        ),
        "payload": anything | st.sampled_from(TEXTS),
        "is_cropped": st.booleans(),
    },
)
buttons = st.fixed_dictionaries(
    {"user_id": people, "peer_id": peers, "event_id": st.just("5bba1af2abf1")},
    optional={"payload": anything, "conversation_message_id": cmids},
)
reactions = st.fixed_dictionaries(
    {"reacted_id": people, "peer_id": peers, "cmid": cmids}, optional={"reaction_id": cmids}
)
OBJECTS = {
    "message_new": st.fixed_dictionaries({"message": messages, "client_info": st.just({})}) | messages,
    "message_event": buttons,
    "message_reaction_event": reactions,
    "message_new_v2": messages,
    "brand_new": st.fixed_dictionaries({}, optional={"liker_id": people, "peer_id": peers, "новое": anything}),
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """List every place inside a value: its container, and its key or index there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in pairs for place in ((value, key), *places(inner))]


@st.composite
def updates(draw: st.DrawFn) -> Any:
    """Draw an update as VK sends it, or one that is spoilt in one or two places, or any JSON."""
    type = draw(st.sampled_from([*OBJECTS, *OBJECTS, None]))
    if type is None:
        return draw(anything)
    update = {"type": type, "event_id": draw(st.uuids()).hex, "object": copy.deepcopy(draw(OBJECTS[type]))}
    update |= draw(st.sampled_from([{"group_id": GROUP}, {}]))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        holder, key = draw(st.sampled_from(places(update) or [({}, "")]))
        holder[key] = draw(anything)
        if draw(st.booleans()):
            del holder[key]
    return loads(json.dumps(update).encode())  # as it arrives: adjacent halves of a surrogate pair become one character


ATTRIBUTES = {"message_new": "message", "message_event": "button", "message_reaction_event": "reaction"}


@pytest.mark.usefixtures("untraced")
@pytest.mark.long
@STEADY
@given(updates(), st.booleans())
@example({"type": "message_new", "event_id": "1", "object": {"message": {"from_id": 1e300, "peer_id": 1e300}}}, False)
def test_any_update(update: Any, raw: bool) -> None:
    """Any update makes an event that survives its way over the bus, or nothing, or a dead letter with a reason."""
    result = outcome(update, raw=raw)
    if "event" not in result:
        assert result.get("dead_letter") or not (raw or update["type"] in BUILDERS)
        return
    data = result["event"]
    text = json.dumps(data, allow_nan=False)
    event = Event.from_dict(json.loads(text))  # raises if a value is not of its annotated type
    assert json.dumps(event.as_dict()) == text
    assert data["peer"]["cid"] == (data["peer"]["bpid"] - 2_000_000_000 if data["peer"]["bpid"] > 2_000_000_000 else 0)
    assert data["user"] == {"uuid": event.user.uuid, "name": "", "firstname": "", "lastname": "", "nick": ""}
    assert data.get("raw") == (update if raw else None)
    keys = ["event_type", "event_id", "user", "peer"]
    keys += [ATTRIBUTES[update["type"]]] if update["type"] in ATTRIBUTES else []
    keys += [key for key in ("action", "payload") if data.get(key) is not None] + ["raw"] * raw
    assert list(data) == keys
    if event.message:
        assert (event.event_type == "command") == bool(re.match(r"[/!][^\W_]", event.message.text))
        sent = update["object"].get("message", update["object"])
        assert ("action" in data, "payload" in data) == (
            bool(sent.get("action")),
            sent.get("payload") not in (None, ""),
        )
    else:
        assert event.event_type == ATTRIBUTES.get(update["type"], update["type"])
        assert not {"action", "payload"} & data.keys()


@pytest.mark.usefixtures("untraced")
@pytest.mark.long
@STEADY
@given(messages, messages | st.dictionaries(texts, anything), st.booleans(), st.booleans())
def test_any_full_message(short: Any, full: Any, nested: bool, raw: bool) -> None:
    """Any full message is treated as if VK had sent it in the update: it makes an event, or a dead letter's reason."""
    short = {**short, "is_cropped": True}
    given = update("message_new", {"message": short} if nested else short)
    before = repr(given)
    whole = completed(given, full)
    assert repr(given) == before
    sent = {name: value for name, value in short.items() if name != "is_cropped"} | full
    assert repr(whole["object"]) == repr({"message": sent} if nested else sent)
    assert outcome(whole, raw=raw).keys() <= {"event", "dead_letter"}
