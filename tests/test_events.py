"""The contract: what an event is as JSON, and reading it back."""

import copy
import json
from typing import Any

import pytest

from fetcher.events import Button, Event, Message, Peer, Reaction, Reply, User

USER = User(206295116, "Руслан Башинский", "Руслан", "Башинский", "oidaho")
PEER = Peer(2000000002, 2, "FUNCKA | TOASTER | DEV | CHAT")
EVENT_ID = "b0d7020c0bd1ad36b76567054400abc8b279f960"
COMMAND = {
    "event_type": "command",
    "event_id": EVENT_ID,
    "user": {
        "uuid": 206295116,
        "name": "Руслан Башинский",
        "firstname": "Руслан",
        "lastname": "Башинский",
        "nick": "oidaho",
    },
    "peer": {"bpid": 2000000002, "cid": 2, "name": "FUNCKA | TOASTER | DEV | CHAT"},
    "message": {"cmid": 3895, "text": "/command", "reply": None, "forward": [], "attachments": []},
}
FULL = Message(5, "да", Reply(4, "ну?"), [Reply(1, "раз"), Reply(2, "")], ["photo", "geo"])
EVENTS = [
    Event("command", EVENT_ID, USER, PEER, message=Message(3895, "/command", None, [], [])),
    Event("message", EVENT_ID, USER, PEER, message=FULL),
    Event("button", EVENT_ID, USER, PEER, button=Button(5, "5bba1af2abf1", {"а": [1, None, {"б": []}], "reply": 0.5})),
    Event("button", EVENT_ID, USER, PEER, button=Button(0, "5bba1af2abf1", {})),
    Event("reaction", EVENT_ID, USER._replace(uuid=-1), PEER, reaction=Reaction(5, 0)),
]
PLACES = [(), ("user",), ("peer",), ("message",), ("message", "reply"), ("message", "forward", 0)]


def inside(data: Any, place: tuple[Any, ...]) -> Any:
    """Find what stands at a place in nested dicts and lists."""
    for key in place:
        data = data[key]
    return data


def test_command_of_the_document() -> None:
    """A command is the JSON of the contract, key by key."""
    assert json.dumps(EVENTS[0].as_dict()) == json.dumps(COMMAND)


def test_all_of_a_message() -> None:
    """Replies and forwards are objects, in the order of the contract."""
    assert json.dumps(EVENTS[1].as_dict()["message"], ensure_ascii=False) == (
        '{"cmid": 5, "text": "да", "reply": {"cmid": 4, "text": "ну?"},'
        ' "forward": [{"cmid": 1, "text": "раз"}, {"cmid": 2, "text": ""}], "attachments": ["photo", "geo"]}'
    )


@pytest.mark.parametrize("event", EVENTS)
def test_only_the_attribute_of_its_type(event: Event) -> None:
    """Attributes of other types are not there, not even as null."""
    attribute = {"command": "message"}.get(event.event_type, event.event_type)
    assert list(event.as_dict()) == ["event_type", "event_id", "user", "peer", attribute]


@pytest.mark.parametrize("event", EVENTS)
def test_there_and_back(event: Event) -> None:
    """An event read back from its JSON is the same event, of the same classes."""
    again = Event.from_dict(json.loads(json.dumps(event.as_dict())))
    assert repr(again) == repr(event)


def test_keys_that_nobody_knows() -> None:
    """What a later version adds is passed over, at every level; a payload keeps all its keys."""
    for event, extra in ((EVENTS[1], PLACES), (EVENTS[2], [(), ("user",), ("peer",), ("button",)])):
        data = copy.deepcopy(event.as_dict())
        for place in extra:
            inside(data, place)["later"] = {"a": 1}
        assert repr(Event.from_dict(data)) == repr(event)
    assert Event.from_dict(EVENTS[2].as_dict()).button.payload["а"] == [1, None, {"б": []}]


@pytest.mark.parametrize("place", PLACES)
def test_a_key_is_missing(place: tuple[Any, ...]) -> None:
    """Every key that the contract promises is needed, and the error names it."""
    needed = inside(EVENTS[1].as_dict(), place).keys() - {"message"}
    assert len(needed) > 1
    for key in needed:
        data = copy.deepcopy(EVENTS[1].as_dict())
        del inside(data, place)[key]
        with pytest.raises(ValueError, match=f"no {key} in"):
            Event.from_dict(data)


WRONG = [
    (("event_type",), [None, 1, True, []]),
    (("event_id",), [None, 1]),
    (("user",), [None, [206295116, "", "", "", ""], "oidaho", {}]),
    (("user", "uuid"), [None, "206295116", 1.0, True]),
    (("user", "name"), [None, 5, ["Руслан"]]),
    (("peer",), [None, 2000000002]),
    (("peer", "cid"), [None, False, "2"]),
    (("message",), [5, "да", [], {}]),
    (("message", "text"), [None, 5]),
    (("message", "cmid"), [None, "5", True]),
    (("message", "reply"), [5, [], {}, [4, "ну?"]]),
    (("message", "forward"), [None, {}, "раз", [None], [[1, "раз"]], [{"cmid": "1", "text": ""}]]),
    (("message", "attachments"), [None, "photo", {"photo": 1}, [None], [{"type": "photo"}]]),
    (("button",), [5, {"cmid": 1, "beid": "b", "payload": []}, {"cmid": 1, "beid": 5, "payload": {}}]),
    (("reaction",), [[], {"cmid": 1, "rid": None}, {"cmid": 1, "rid": True}]),
]


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, values in WRONG for value in values])
def test_a_value_of_a_wrong_kind(place: tuple[str, ...], value: Any) -> None:
    """Every value is of its annotated type, exactly, or it is no event."""
    data = copy.deepcopy(EVENTS[1].as_dict())
    inside(data, place[:-1])[place[-1]] = value
    with pytest.raises(ValueError, match=r"instead of|no .+ in"):
        Event.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "event", 5, {}, [["event_type", "message"]]])
def test_no_event_at_all(data: Any) -> None:
    """What is no object is no event."""
    with pytest.raises(ValueError, match=r"instead of|no .+ in"):
        Event.from_dict(data)
