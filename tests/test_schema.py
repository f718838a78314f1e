"""The contract for other languages: the schema takes what we publish, and what a later version adds."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

import fetcher
from fetcher.events import Event, User
from fetcher.vk.builders import BUILDERS, build, command_pattern
from tests.samples import SAMPLES
from tests.samples.other_types import OTHER_TYPES
from tests.vk import GROUP, update

SCHEMA = json.loads((Path(fetcher.__file__).parent / "event.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
BRANCHES = SCHEMA["oneOf"]
COMMAND = command_pattern(GROUP, "/!")


def closed(schema: Any) -> Any:
    """Make the schema refuse what it does not name: so nothing goes out that is not in it."""
    strict = deepcopy(schema)
    for noun in (strict, *strict["$defs"].values()):
        noun["unevaluatedProperties"] = False
    return strict


STRICT = Draft202012Validator(closed(SCHEMA))


def published(event: Event) -> Any:
    return json.loads(json.dumps(event.as_dict()))


def built(update: Any, raw: bool = False) -> Any:
    """Return the update's event as it is published, None for a dead letter and for a type that is passed over."""
    try:
        event = build(update, COMMAND, raw)
    except ValueError:
        return None
    return published(event) if event else None


def check(event: Any) -> None:
    """Fail unless the event is valid and the schema names all that is in it, and say what is missing there."""
    told = event["event_type"] in TYPES or "raw" in event
    assert told, f"event.schema.json has no branch in oneOf for {event['event_type']}"
    errors = list(STRICT.iter_errors(event))
    assert not errors, best_match(errors).message


def types_of(branch: Any) -> list[str]:
    """List the types of event of a branch of the schema; the last branch, all other types, has none by name."""
    told = branch["properties"]["event_type"]
    return [told["const"]] if "const" in told else told.get("enum", [])


TYPES = [event_type for branch in BRANCHES for event_type in types_of(branch)]
FROM_SAMPLES = {name: event for name, sample in SAMPLES.items() if (event := built(sample["update"]))}

OTHER = min(OTHER_TYPES.keys() - BUILDERS.keys())  # a type that goes out as VK sent it

EVENTS = {event["event_type"]: event for event in FROM_SAMPLES.values()}  # one of each type
EVENTS[OTHER] = built(update(OTHER, OTHER_TYPES[OTHER][0]), raw=True)
FULL = EVENTS | {  # and those with everything in them
    "message": built(SAMPLES["geo-reply-and-forward-last"]["update"], raw=True),
    "action": built(SAMPLES["command-with-action-and-payload"]["update"]),
}

ALWAYS: dict[str, set[str]] = {OTHER: set(EVENTS[OTHER])}  # what the events of a type have, all of them…
AT_MOST: dict[str, set[str]] = {OTHER: set(EVENTS[OTHER])}  # …and any of them
for event in FROM_SAMPLES.values():
    event_type = event["event_type"]
    ALWAYS[event_type] = ALWAYS.get(event_type, set(event)) & set(event)
    AT_MOST[event_type] = AT_MOST.get(event_type, {"raw"}) | set(event)


def test_the_schema_itself_is_valid() -> None:
    """It is a JSON Schema."""
    VALIDATOR.check_schema(SCHEMA)


def test_each_type_of_event_is_a_branch() -> None:
    """Whoever adds a type of event adds a branch to the schema's oneOf, and names the type in its last branch."""
    told = {event["event_type"] for event in FROM_SAMPLES.values()}
    assert told == set(TYPES), f"no sample, or no branch in oneOf of event.schema.json: {told ^ set(TYPES)}"
    others = BRANCHES[-1]["properties"]["event_type"]["not"]["enum"]
    assert others == TYPES, f"the last branch in oneOf names not all types of the others: {set(others) ^ set(TYPES)}"


@pytest.mark.parametrize("name", sorted(FROM_SAMPLES))
def test_what_is_built_of_each_sample_is_valid(name: str) -> None:
    """With names or without; and nothing is in it that the schema does not name."""
    event = FROM_SAMPLES[name]
    check(event)
    user = {"name": "Ян Ли", "firstname": "Ян", "lastname": "Ли", "nick": "yan"}
    check(event | {"user": event["user"] | user, "peer": event["peer"] | {"name": "Чат"}})


@pytest.mark.parametrize("type", sorted(OTHER_TYPES.keys() | BUILDERS.keys()))
def test_raw_of_each_type_is_valid(type: str) -> None:
    """With RAW=1 every event has the update, and every type of VK's goes out."""
    sent = [sample["update"] for sample in SAMPLES.values() if "event" in sample and sample["update"]["type"] == type]
    sent += [update(type, OTHER_TYPES[type][0])] if type in OTHER_TYPES and type not in BUILDERS else []
    events = [event for each in sent if (event := built(each, raw=True))]
    assert events, f"tests/samples has no update of type {type} and its event"
    for event in events:
        check(event)


@pytest.mark.parametrize("event_type", EVENTS)
@pytest.mark.parametrize("claimed", EVENTS)
def test_the_type_says_what_is_there(event_type: str, claimed: str) -> None:
    """Under the name of another type an event lacks what that type has, or has what that type has not."""
    event = EVENTS[event_type] | {"event_type": claimed}
    assert VALIDATOR.is_valid(event) == (ALWAYS[claimed] <= event.keys())
    assert STRICT.is_valid(event) == (ALWAYS[claimed] <= event.keys() <= AT_MOST[claimed])


@pytest.mark.parametrize("event_type", EVENTS)
def test_no_attribute_of_another_type_is_there(event_type: str) -> None:
    """Not even as null."""
    event = EVENTS[event_type]
    for attribute in set(Event._fields) - event.keys():
        assert not STRICT.is_valid(event | {attribute: None})
        values = [full[attribute] for full in FULL.values() if attribute in full]
        assert values
        if attribute not in AT_MOST[event_type]:
            assert not any(STRICT.is_valid(event | {attribute: value}) for value in values)


def test_other_types_need_raw() -> None:
    """What has no attribute of its own and no update in it tells nothing."""
    event = EVENTS[OTHER]
    assert VALIDATOR.is_valid(event)
    assert not VALIDATOR.is_valid({key: value for key, value in event.items() if key != "raw"})


def objects(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places of the nouns in an event; payload and raw have keys of their own."""
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
def test_nothing_is_missing_or_of_another_type(name: str, path: tuple[Any, ...]) -> None:
    """Every key is required where it is always there, and has a type."""
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
    """What this schema does not know is allowed, at every level; of what we publish nothing is unknown to it."""
    event = deepcopy(FULL[name])
    check(event)
    at(event, path)["later"] = {"a": 1}
    VALIDATOR.validate(event)
    assert not STRICT.is_valid(event)


def nouns() -> list[Any]:
    """List the NamedTuples of the contract: User, and whatever stands in a field of Event or of another one."""
    found: list[Any] = [Event]
    for noun in found:
        hints = [hint for field in get_type_hints(noun).values() for hint in (field, *get_args(field))]
        hints += [inner for hint in hints for inner in get_args(hint)]
        found += [hint for hint in dict.fromkeys(hints) if hasattr(hint, "_fields") and hint not in found]
    return found[1:]


@pytest.mark.parametrize("noun", nouns(), ids=lambda noun: noun.__name__)
def test_schema_and_named_tuples_have_the_same_fields_in_the_same_order(noun: Any) -> None:
    """Whoever adds a NamedTuple to events.py adds it to the schema's $defs."""
    assert noun.__name__ in SCHEMA["$defs"], f"no {noun.__name__} in $defs of event.schema.json"
    told = SCHEMA["$defs"][noun.__name__]
    assert tuple(told["properties"]) == noun._fields == tuple(told["required"])


def test_the_event_has_the_same_fields() -> None:
    """Whoever adds an attribute to Event names it in the branch of its type."""
    of_branches = [name for branch in BRANCHES for name in branch["properties"] if name != "event_type"]
    told = {*SCHEMA["properties"], *of_branches}
    assert told == set(Event._fields), f"in event.schema.json or in Event, but not in both: {told ^ set(Event._fields)}"
    assert SCHEMA["required"] == [name for name in Event._fields if name not in Event._field_defaults]
    assert User in nouns()
