"""The contract for other languages: the schema accepts what we publish, and what a later version may add."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

import fetcher
from fetcher.events import Event, User
from fetcher.vk.builders import BUILDERS
from fetcher.vk.entries import EntryBuilder
from tests.samples import SAMPLES
from tests.samples.other_types import OTHER_TYPES
from tests.vk import GROUP, update

SCHEMA = json.loads((Path(fetcher.__file__).parent / "event.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
DEFINITIONS = SCHEMA["$defs"]
NOBODY: Any = None  # building an event needs no lookups
BUILD, BUILD_RAW = (EntryBuilder(NOBODY, NOBODY, GROUP, "/!", raw).event_of for raw in (False, True))


def closed(schema: Any) -> Any:
    """Make the schema refuse any property that it does not name, to check that it names all that we publish."""
    strict = deepcopy(schema)
    for definition in strict["$defs"].values():
        if "properties" in definition:
            definition["additionalProperties"] = False
    return strict


def referred(union: Any) -> list[str]:
    """List the names of the definitions in a union."""
    return [branch["$ref"].removeprefix("#/$defs/") for branch in union["oneOf"]]


STRICT = Draft202012Validator(closed(SCHEMA))


def published(event: Event) -> Any:
    return json.loads(json.dumps(event.as_dict()))


def built(update: Any, raw: bool = False) -> Any:
    """Return the update's event as it is published, or None for a dead letter and for a type that is skipped."""
    try:
        event = (BUILD_RAW if raw else BUILD)(update)
    except ValueError:
        return None
    return published(event) if event else None


def check(event: Any) -> None:
    """Fail, saying what is missing, unless the event is valid and the schema names everything in it."""
    is_defined = event["event_type"] in TYPES or "raw" in event
    assert is_defined, f"event.schema.json has no definition for {event['event_type']} among those of Event"
    errors = list(STRICT.iter_errors(event))
    assert not errors, best_match(errors).message


OF_TYPE = {DEFINITIONS[name]["properties"]["event_type"]["const"]: name for name in referred(DEFINITIONS["Event"])}
TYPES = list(OF_TYPE)
FROM_SAMPLES = {name: event for name, sample in SAMPLES.items() if (event := built(sample["update"]))}

OTHER = min(OTHER_TYPES.keys() - BUILDERS.keys())  # a type that is published as VK sent it

EVENTS = {event["event_type"]: event for event in FROM_SAMPLES.values()}  # one of each type
EVENTS[OTHER] = built(update(OTHER, OTHER_TYPES[OTHER][0]), raw=True)
FULL = EVENTS | {  # the same, with two of them as full as they can be
    "message": built(SAMPLES["geo-reply-and-forward-last"]["update"], raw=True),
    "action": built(SAMPLES["command-with-action-and-payload"]["update"]),
}

ALWAYS: dict[str, set[str]] = {OTHER: set(EVENTS[OTHER])}  # by type: what all of its events have…
AT_MOST: dict[str, set[str]] = {OTHER: set(EVENTS[OTHER])}  # …and what any of them may have
for event in FROM_SAMPLES.values():
    event_type = event["event_type"]
    ALWAYS[event_type] = ALWAYS.get(event_type, set(event)) & set(event)
    AT_MOST[event_type] = AT_MOST.get(event_type, {"raw"}) | set(event)


def test_the_schema_itself_is_valid() -> None:
    """It is a valid JSON Schema."""
    VALIDATOR.check_schema(SCHEMA)


def test_each_type_of_event_has_a_definition() -> None:
    """A new type of event needs a definition in the schema, its name in Event, and its type in OtherEvent."""
    built = {event["event_type"] for event in FROM_SAMPLES.values()}
    assert built == set(TYPES), f"no sample, or no definition in event.schema.json: {built ^ set(TYPES)}"
    excluded = DEFINITIONS["OtherEvent"]["properties"]["event_type"]["not"]["enum"]
    assert sorted(excluded) == sorted(TYPES), f"in Event or in OtherEvent, not in both: {set(excluded) ^ set(TYPES)}"


def test_the_open_type_is_outside_of_the_union() -> None:
    """TypeScript distinguishes the members of a union by event_type only if it is a constant in each of them."""
    assert referred(SCHEMA) == ["Event", "OtherEvent"]
    assert "OtherEvent" not in referred(DEFINITIONS["Event"])


def test_every_object_has_a_title() -> None:
    """Code generators use the title; an object without one gets an invented name like Event1 or EventSchema."""
    assert {name: definition["title"] for name, definition in DEFINITIONS.items()} == {
        name: name for name in DEFINITIONS
    }
    assert all(name == f"{event_type.title()}Event" for event_type, name in OF_TYPE.items())
    inline = [
        (name, key)
        for name, definition in DEFINITIONS.items()
        for key, value in definition.get("properties", {}).items()
        if "properties" in value
    ]
    assert not inline


@pytest.mark.parametrize("name", sorted(FROM_SAMPLES))
def test_the_event_of_each_sample_is_valid(name: str) -> None:
    """The event is valid with and without names, and has nothing that the schema does not name."""
    event = FROM_SAMPLES[name]
    check(event)
    user = {"name": "Ян Ли", "firstname": "Ян", "lastname": "Ли", "nick": "yan"}
    check(event | {"user": event["user"] | user, "peer": event["peer"] | {"name": "Чат"}})


@pytest.mark.parametrize("type", sorted(OTHER_TYPES.keys() | BUILDERS.keys()))
def test_raw_of_each_type_is_valid(type: str) -> None:
    """With RAW=1, every event has the update, and every VK type is published."""
    sent = [sample["update"] for sample in SAMPLES.values() if "event" in sample and sample["update"]["type"] == type]
    sent += [update(type, OTHER_TYPES[type][0])] if type in OTHER_TYPES and type not in BUILDERS else []
    events = [event for each in sent if (event := built(each, raw=True))]
    assert events, f"tests/samples has no update of type {type} and its event"
    for event in events:
        check(event)


@pytest.mark.parametrize("event_type", EVENTS)
@pytest.mark.parametrize("claimed", EVENTS)
def test_the_type_determines_the_attribute(event_type: str, claimed: str) -> None:
    """An event with another type's name lacks what that type has, or has what that type lacks."""
    event = EVENTS[event_type] | {"event_type": claimed}
    assert VALIDATOR.is_valid(event) == (ALWAYS[claimed] <= event.keys())
    assert STRICT.is_valid(event) == (ALWAYS[claimed] <= event.keys() <= AT_MOST[claimed])


@pytest.mark.parametrize("event_type", EVENTS)
def test_no_attribute_of_another_type_is_there(event_type: str) -> None:
    """Such an attribute is not even allowed as null."""
    event = EVENTS[event_type]
    for attribute in set(Event._fields) - event.keys():
        assert not STRICT.is_valid(event | {attribute: None})
        values = [full[attribute] for full in FULL.values() if attribute in full]
        assert values
        if attribute not in AT_MOST[event_type]:
            assert not any(STRICT.is_valid(event | {attribute: value}) for value in values)


def test_other_types_need_raw() -> None:
    """An event that has neither an attribute of its own nor the update is invalid, because it says nothing."""
    event = EVENTS[OTHER]
    assert VALIDATOR.is_valid(event)
    assert not VALIDATOR.is_valid({key: value for key, value in event.items() if key != "raw"})


def objects(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of the objects in an event, without those inside payload and raw, which may have any keys."""
    if isinstance(value, list):
        return objects(value[0], (*path, 0)) if value else []
    if not isinstance(value, dict):
        return []
    inner = [objects(item, (*path, key)) for key, item in value.items() if key not in ("payload", "raw")]
    return [path, *(place for places in inner for place in places)]


def at(event: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        event = event[step]
    return event


PLACES = [(name, path) for name, event in FULL.items() for path in objects(event)]
OTHERS: list[Any] = ["text", 1.5, True, None, [[]], {"more": 1}]


@pytest.mark.parametrize(("name", "path"), PLACES)
def test_every_key_is_required_and_has_a_type(name: str, path: tuple[Any, ...]) -> None:
    """Every key that is always present is required, and every key has a type."""
    event = FULL[name]
    nullable = {("message", "reply"), ("action", "user")}
    optional = {("action",), ("payload",)} | ({("raw",)} if name != OTHER else set())
    for key, value in at(event, path).items():
        missing = deepcopy(event)
        del at(missing, path)[key]
        assert VALIDATOR.is_valid(missing) == ((*path, key) in optional), key
        for other in OTHERS:
            free = key in ("payload", "raw") and isinstance(other, dict)
            if free or (isinstance(value, str) and other == "text") or (other is None and (*path, key) in nullable):
                continue
            wrong = deepcopy(event)
            at(wrong, path)[key] = other
            assert not VALIDATOR.is_valid(wrong), (key, other)


@pytest.mark.parametrize(("name", "path"), PLACES)
def test_a_later_version_may_add(name: str, path: tuple[Any, ...]) -> None:
    """What this schema does not know is allowed at every level, but everything that we publish is known to it."""
    event = deepcopy(FULL[name])
    check(event)
    at(event, path)["later"] = {"a": 1}
    VALIDATOR.validate(event)
    assert not STRICT.is_valid(event)


def nouns() -> list[Any]:
    """List the contract's NamedTuples: User, and every class that appears in a field of Event or of another one."""
    found: list[Any] = [Event]
    for noun in found:
        hints = [hint for field in get_type_hints(noun).values() for hint in (field, *get_args(field))]
        hints += [inner for hint in hints for inner in get_args(hint)]
        found += [hint for hint in dict.fromkeys(hints) if hasattr(hint, "_fields") and hint not in found]
    return found[1:]


@pytest.mark.parametrize("noun", nouns(), ids=lambda noun: noun.__name__)
def test_schema_and_named_tuples_have_the_same_fields_in_the_same_order(noun: Any) -> None:
    """A new NamedTuple in events.py also needs a definition in the schema's $defs."""
    assert noun.__name__ in DEFINITIONS, f"no {noun.__name__} in $defs of event.schema.json"
    definition = DEFINITIONS[noun.__name__]
    assert tuple(definition["properties"]) == noun._fields == tuple(definition["required"])


def test_the_event_has_the_same_fields() -> None:
    """A new attribute of Event is in the definition of its type; each definition has what all events have."""
    events = [DEFINITIONS[name] for name in (*OF_TYPE.values(), "OtherEvent")]
    named = {name for event in events for name in event["properties"]}
    assert named == set(Event._fields), f"in event.schema.json or in Event, not in both: {named ^ set(Event._fields)}"
    always = [name for name in Event._fields if name not in Event._field_defaults]
    assert all(event["required"][: len(always)] == always for event in events)
    assert all("raw" in event["properties"] for event in events)
    assert User in nouns()
