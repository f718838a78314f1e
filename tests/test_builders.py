"""VK's updates through the dispatch table: real-looking ones and their exact outputs, and any JSON like them."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fetcher.builders import BUILDERS, build, command_pattern, completed, cropped
from fetcher.events import Event
from fetcher.names import Name
from fetcher.relay import Relay
from fetcher.vk import Batch
from tests.vk import GROUP, PEER, PERSON, button, message, reaction, update

SAMPLES = {path.stem: json.loads(path.read_text("utf-8")) for path in Path(__file__).parent.glob("samples/*.json")}
COMMAND = command_pattern(GROUP, "/!")


def outcome(update: Any, command: re.Pattern[str] = COMMAND) -> dict[str, Any]:
    """Tell what becomes of an update, in the words of the samples."""
    try:
        event = build(update, command)
    except ValueError as error:
        return {"dead_letter": str(error)}
    return {"event": event.as_dict()} if event else {"passed_over": True}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_samples(name: str) -> None:
    """Each sample gives exactly its event, its dead letter's reason, or nothing; and it is left as it was."""
    given, expected = copy.deepcopy(SAMPLES[name]), copy.deepcopy(SAMPLES[name])
    del expected["update"]
    group = given["update"].get("group_id", GROUP) if isinstance(given["update"], dict) else GROUP
    told = outcome(given["update"], command_pattern(group, "/!"))
    assert json.dumps(told) == json.dumps(expected), "the order of keys, and 1 is not 1.0 or true"
    assert json.dumps(given) == json.dumps(SAMPLES[name])


@pytest.mark.parametrize("prefix", "/!.-]^[\\$*+?(){}|&~#ё")
def test_any_prefix(prefix: str) -> None:
    """Each character of COMMAND_PREFIXES is a prefix, also those that mean something in a pattern."""
    command = command_pattern(GROUP, "%" + prefix + ">")
    for text, kind in (
        (f"{prefix}help", "command"),
        ("%1", "command"),
        (">я", "command"),
        ("@help", "message"),
        (f"{prefix} help", "message"),
    ):
        assert outcome(message(text), command)["event"]["event_type"] == kind, text


def test_mention_is_of_the_fetchers_community() -> None:
    """The community of the mention is the one that the fetcher is run for."""
    text = "[club5|бот] /help"
    assert outcome(message(text), command_pattern(5, "/"))["event"]["message"]["text"] == "/help"
    assert outcome(message(text), command_pattern(55, "/"))["event"]["message"]["text"] == text


def test_payload_too_deep() -> None:
    """A payload nested deeper than JSON can be written is a dead letter, as text it stays text."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert outcome(button(deep)) == {"dead_letter": "payload cannot be written as JSON"}
    text = '{"a":' * 100_000 + "1" + "}" * 100_000
    assert outcome(button(text))["event"]["button"]["payload"] == {"value": text}


# Messages cut short


def test_cropped_tells_the_place() -> None:
    """The place of a message that VK has cut short is told, and only of such a message."""
    assert cropped(message(is_cropped=True, conversation_message_id=5)) == (PEER, 5)
    assert cropped(message(is_cropped=True, conversation_message_id="5", peer_id=str(PERSON))) == (PERSON, 5)
    assert cropped(message(is_cropped=1, conversation_message_id=5)) == (PEER, 5)
    for other in (
        message(),
        message(is_cropped=False),
        button(is_cropped=True),
        reaction(is_cropped=True),
        update("message_reply", {"is_cropped": True, "peer_id": 1, "conversation_message_id": 1}),
    ):
        assert cropped(other) is None


@pytest.mark.parametrize(
    "odd",
    [
        *(None, 5, "message_new", [], {}, {"type": []}, {"type": "message_new"}),
        *(update("message_new", object) for object in (None, [], {"message": "text"})),
        *(message(is_cropped=True, **wrong) for wrong in ({"peer_id": None}, {"peer_id": []})),
        message(is_cropped=True, conversation_message_id="first"),
    ],
)
def test_cropped_passes_over_what_is_malformed(odd: Any) -> None:
    """What is malformed is not asked for: building it tells why."""
    assert cropped(odd) is None


def test_completed_takes_the_whole_message() -> None:
    """The whole message goes in place of the cropped one; what it does not tell stays; the update is left as it was."""
    short = message("кор", is_cropped=True, attachments=[{"type": "photo"}], conversation_message_id=5)
    before = copy.deepcopy(short)
    whole = {
        "text": "короткий",
        "attachments": [{"type": "photo"}, {"type": "doc"}],
        "fwd_messages": [{"text": "да", "conversation_message_id": 2}],
    }
    event = outcome(completed(short, whole))["event"]
    assert event["message"] == {
        "cmid": 5,
        "text": "короткий",
        "reply": None,
        "forward": [{"cmid": 2, "text": "да"}],
        "attachments": ["photo", "doc"],
    }
    assert (event["event_id"], event["user"]["uuid"], event["peer"]["bpid"]) == (short["event_id"], PERSON, PEER)
    assert short == before


def test_completed_before_5_103() -> None:
    """It is the same where the object is the message itself."""
    short = update("message_new", message("кор", is_cropped=True)["object"]["message"])
    assert cropped(short)
    assert outcome(completed(short, {"text": "короткий"}))["event"]["message"]["text"] == "короткий"


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
foreign = {"conversation_message_id": cmids, "text": texts}
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
        "action": st.fixed_dictionaries({"type": st.just("chat_title_update"), "text": texts}),
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
    "message_reply": messages,
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """List every place inside a value: what holds it, and the key or index there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in pairs for place in ((value, key), *places(inner))]


@st.composite
def updates(draw: st.DrawFn) -> Any:
    """An update as VK sends it, or spoilt in one or two places, or any JSON."""
    type = draw(st.sampled_from([*OBJECTS, *OBJECTS, None]))
    if type is None:
        return draw(anything)
    update = {"type": type, "event_id": draw(st.uuids()).hex, "object": copy.deepcopy(draw(OBJECTS[type]))}
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        holder, key = draw(st.sampled_from(places(update) or [({}, "")]))
        holder[key] = draw(anything)
        if draw(st.booleans()):
            del holder[key]
    return json.loads(json.dumps(update))  # as it comes: two halves of a pair that meet are one character


PAIRS = {("message_new", "message"), ("message_event", "button"), ("message_reaction_event", "reaction")}


@STEADY
@given(updates())
@example({"type": "message_new", "event_id": "1", "object": {"message": {"from_id": 1e300, "peer_id": 1e300}}})
def test_any_update(update: Any) -> None:
    """An event that survives its way over the bus, its fields as annotated, or None, or a reason; nothing else."""
    told = outcome(update)
    if "event" not in told:
        assert told.get("dead_letter") or update["type"] not in BUILDERS
        return
    data = told["event"]
    text = json.dumps(data, allow_nan=False)
    event = Event.from_dict(json.loads(text))  # refuses what is not as annotated
    assert json.dumps(event.as_dict()) == text
    attribute = {"command": "message"}.get(event.event_type, event.event_type)
    assert list(data) == ["event_type", "event_id", "user", "peer", attribute]
    assert (update["type"], attribute) in PAIRS
    assert data["peer"]["cid"] == (data["peer"]["bpid"] - 2_000_000_000 if data["peer"]["bpid"] > 2_000_000_000 else 0)
    assert data["user"] == {"uuid": event.user.uuid, "name": "", "firstname": "", "lastname": "", "nick": ""}
    if event.message:
        assert (event.event_type == "command") == bool(re.match(r"[/!][^\W_]", event.message.text))


class Stub:
    """A VK that has some of the messages whole and names everybody."""

    def __init__(self, messages: list[Any]) -> None:
        self.messages = messages

    def whole(self, places: Any) -> dict[Any, Any]:
        return dict(zip(sorted(places), self.messages, strict=False))

    def names(self, ids: Any) -> dict[int, Name]:
        return {id: Name(f"имя {id}", "и", "ф", "n") for id in ids}


@STEADY
@given(st.lists(updates(), max_size=8), st.lists(messages | anything, max_size=2))
def test_any_batch(batch: list[Any], whole: list[Any]) -> None:
    """Of a batch every update goes out as an event or as a dead letter, in VK's order, or is passed over."""
    relay = Relay(Stub(whole), None, COMMAND, 25)  # type: ignore[arg-type]
    entries = relay.entries(Batch("1000", str(1000 + len(batch)), batch), lambda ids: {})
    passed = [update for update in batch if outcome(update) == {"passed_over": True}]
    assert len(entries.events) + len(entries.letters) + len(passed) == len(batch)
    left = iter(json.dumps(update) for update in batch)
    assert all(letter.fields["update"] in left for letter in entries.letters), "whole, in VK's order"
    assert all(letter.id and letter.fields["error"] for letter in entries.letters)
    ids = iter(update.get("event_id") if isinstance(update, dict) else None for update in batch)
    assert all(event_id in ids for event_id, _, _ in entries.events), "in VK's order"
    for event_id, event_type, text in entries.events:
        event = Event.from_dict(json.loads(text))
        assert (event.event_id, event.event_type) == (event_id, event_type)
