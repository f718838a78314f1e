"""The contract for other languages: the schema takes what we publish, and nothing else."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import fetcher
from fetcher import Button, Event, Message, Peer, Reaction, Reply, User
from fetcher.builders import build, command_pattern
from tests.vk import GROUP

SCHEMA = json.loads((Path(fetcher.__file__).parent / "event.schema.json").read_text(encoding="utf-8"))
SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))
VALIDATOR = Draft202012Validator(SCHEMA)


def published(event: Event) -> Any:
    return json.loads(json.dumps(event.as_dict()))


MESSAGE = Message(3895, "/command", Reply(1, "a"), [Reply(2, "b")], ["photo", "geo"])
USER, PEER = User(206295116, "Ян Ли", "Ян", "Ли", "yan"), Peer(2000000002, 2, "Чат")
EVENTS = {
    "message": published(Event("message", "a", USER, PEER, message=MESSAGE)),
    "command": published(Event("command", "a", USER, PEER, message=MESSAGE)),
    "button": published(Event("button", "a", USER, PEER, button=Button(1, "b", {"any": ["thing"]}))),
    "reaction": published(Event("reaction", "a", USER, PEER, reaction=Reaction(1, 2))),
}
OBJECTS = [("message", path) for path in ([], ["user"], ["peer"], ["message"], ["message", "reply"])]
OBJECTS += [("message", ["message", "forward", 0]), ("button", ["button"]), ("reaction", ["reaction"])]
RIGHT = [("reply", None), ("payload", {"more": 1})]


def at(event: Any, path: list[Any]) -> Any:
    for step in path:
        event = event[step]
    return event


def test_the_schema_itself_is_valid() -> None:
    VALIDATOR.check_schema(SCHEMA)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_what_is_built_of_each_sample_is_valid(path: Path) -> None:
    """With names or without."""
    try:
        event = build(json.loads(path.read_text(encoding="utf-8"))["update"], command_pattern(GROUP, "/!"))
    except ValueError:
        return  # a dead letter
    if event:
        VALIDATOR.validate(published(event))
        named = event._replace(user=USER._replace(uuid=event.user.uuid), peer=event.peer._replace(name="Чат"))
        VALIDATOR.validate(published(named))


def test_each_type_of_event_is_among_the_samples() -> None:
    """The test above would pass without any."""
    samples = [json.loads(path.read_text(encoding="utf-8")) for path in SAMPLES]
    assert {sample["event"]["event_type"] for sample in samples if "event" in sample} == EVENTS.keys()


@pytest.mark.parametrize("event_type", EVENTS)
def test_each_type_of_event_is_valid(event_type: str) -> None:
    VALIDATOR.validate(EVENTS[event_type])


@pytest.mark.parametrize("event_type", EVENTS)
@pytest.mark.parametrize("claimed", [*EVENTS, "edit"])
def test_the_type_says_which_attribute_is_there(event_type: str, claimed: str) -> None:
    same = {event_type, claimed} <= {"message", "command"} or event_type == claimed
    assert VALIDATOR.is_valid(EVENTS[event_type] | {"event_type": claimed}) == same


@pytest.mark.parametrize("event_type", EVENTS)
@pytest.mark.parametrize("other", ["message", "button", "reaction"])
def test_no_other_attribute_is_there(event_type: str, other: str) -> None:
    if other not in EVENTS[event_type]:
        assert not VALIDATOR.is_valid(EVENTS[event_type] | {other: EVENTS[other][other]})
        assert not VALIDATOR.is_valid(EVENTS[event_type] | {other: None})


@pytest.mark.parametrize(("event_type", "path"), OBJECTS)
def test_nothing_is_missing_superfluous_or_of_another_type(event_type: str, path: list[Any]) -> None:
    event = EVENTS[event_type]
    superfluous = deepcopy(event)
    at(superfluous, path)["more"] = "text"
    assert not VALIDATOR.is_valid(superfluous)
    for name, value in at(event, path).items():
        missing = deepcopy(event)
        del at(missing, path)[name]
        assert not VALIDATOR.is_valid(missing), name
        for other in ("text", 1.5, True, None, [[]], {"more": 1}):
            if (isinstance(value, str) and other == "text") or (name, other) in RIGHT:
                continue
            wrong = deepcopy(event)
            at(wrong, path)[name] = other
            assert not VALIDATOR.is_valid(wrong), (name, other)


@pytest.mark.parametrize("noun", [User, Peer, Message, Reply, Button, Reaction], ids=lambda noun: noun.__name__)
def test_schema_and_named_tuples_have_the_same_fields_in_the_same_order(noun: Any) -> None:
    told = SCHEMA["$defs"][noun.__name__]
    assert tuple(told["properties"]) == noun._fields == tuple(told["required"])


def test_the_event_has_the_same_fields_in_the_same_order() -> None:
    assert tuple(SCHEMA["properties"]) == Event._fields
    assert set(SCHEMA["required"]) == set(Event._fields) - Event._field_defaults.keys()
    assert set(SCHEMA["properties"]["event_type"]["enum"]) == EVENTS.keys()
