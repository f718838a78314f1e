"""The contract: an event as JSON, and how it is read back."""

import copy
import json
from typing import Any

import pytest

from fetcher.events import Action, Button, Event, Message, Peer, Reaction, Reply, User, channel

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
FULL = Message(
    5, "да", Reply(4, "ну?", 7), [Reply(1, "раз", -5), Reply(2, "", 0)], ["photo", "geo", "reply", "forward"]
)
INVITATION = Action("chat_invite_user", USER._replace(uuid=5), "", 0)
RAW = {"type": "message_new", "v": "5.199", "object": {"а": [1, 2.5, None, {"later": True}]}, "event_id": EVENT_ID}
EVENTS = [
    Event("command", EVENT_ID, USER, PEER, message=Message(3895, "/command", None, [], [])),
    Event("message", EVENT_ID, USER, PEER, message=FULL),
    Event("button", EVENT_ID, USER, PEER, button=Button(5, "5bba1af2abf1", {"а": [1, None, {"б": []}], "reply": 0.5})),
    Event("button", EVENT_ID, USER, PEER, button=Button(0, "5bba1af2abf1", {})),
    Event("reaction", EVENT_ID, USER._replace(uuid=-1), PEER, reaction=Reaction(5, 0)),
    Event("message", EVENT_ID, USER, PEER, message=FULL, action=INVITATION, payload={"а": {"later": 1}}, raw=RAW),
    Event("message", EVENT_ID, USER, PEER, message=FULL, action=Action("chat_pin_message", None, "", 5), payload={}),
    Event("like_add", EVENT_ID, USER, PEER, raw=RAW),
]
PLACES = [(), ("user",), ("peer",), ("message",), ("message", "reply"), ("message", "forward", 0)]


def inside(data: Any, place: tuple[Any, ...]) -> Any:
    """Return what is at a place in nested dicts and lists."""
    for key in place:
        data = data[key]
    return data


def test_the_contracts_command() -> None:
    """A command is the JSON of the contract, key by key."""
    assert json.dumps(EVENTS[0].as_dict()) == json.dumps(COMMAND)


def test_replies_and_forwards() -> None:
    """Replies and forwards are objects, in the order of the contract."""
    assert json.dumps(EVENTS[1].as_dict()["message"], ensure_ascii=False) == (
        '{"cmid": 5, "text": "да", "reply": {"cmid": 4, "text": "ну?", "uuid": 7},'
        ' "forward": [{"cmid": 1, "text": "раз", "uuid": -5}, {"cmid": 2, "text": "", "uuid": 0}],'
        ' "attachments": ["photo", "geo", "reply", "forward"]}'
    )


def test_action_payload_and_raw() -> None:
    """Action, payload and raw follow the message in the order of the contract; payload and raw are not copied."""
    data = EVENTS[5].as_dict()
    assert json.dumps({"action": data["action"], "payload": data["payload"]}, ensure_ascii=False) == (
        '{"action": {"type": "chat_invite_user", "user": {"uuid": 5, "name": "Руслан Башинский",'
        ' "firstname": "Руслан", "lastname": "Башинский", "nick": "oidaho"}, "text": "", "cmid": 0},'
        ' "payload": {"а": {"later": 1}}}'
    )
    assert data["payload"] is EVENTS[5].payload
    assert data["raw"] is RAW
    assert EVENTS[6].as_dict()["action"]["user"] is None
    assert EVENTS[6].as_dict()["payload"] == {}, "a payload of nothing is not the same as no payload"


@pytest.mark.parametrize("event", EVENTS)
def test_empty_attributes_are_left_out(event: Event) -> None:
    """Empty attributes are left out, not published as null."""
    common = ("event_type", "event_id", "user", "peer")
    attributes = [name for name in event._fields if name not in common and getattr(event, name) is not None]
    assert list(event.as_dict()) == [*common, *attributes]


@pytest.mark.parametrize("event", EVENTS)
def test_round_trip(event: Event) -> None:
    """An event read back from its JSON is the same event, of the same classes."""
    again = Event.from_dict(json.loads(json.dumps(event.as_dict())))
    assert repr(again) == repr(event)


def test_unknown_keys_are_ignored() -> None:
    """Keys that a later version adds are ignored at every level, but payload and raw keep all their keys."""
    for event, extra in (
        (EVENTS[1], PLACES),
        (EVENTS[2], [(), ("user",), ("peer",), ("button",)]),
        (EVENTS[4], [("reaction",)]),
        (EVENTS[5], [("action",), ("action", "user")]),
    ):
        data = copy.deepcopy(event.as_dict())
        for place in extra:
            inside(data, place)["later"] = {"a": 1}
        assert repr(Event.from_dict(data)) == repr(event)
    assert Event.from_dict(EVENTS[2].as_dict()).button.payload["а"] == [1, None, {"б": []}]  # type: ignore[union-attr]
    assert Event.from_dict(EVENTS[5].as_dict()).payload == {"а": {"later": 1}}
    assert json.dumps(Event.from_dict(EVENTS[5].as_dict()).raw) == json.dumps(RAW)


def test_entries_of_version_1_0_can_be_read() -> None:
    """An entry from version 1.0, in which a reply has no author, can still be read."""
    data = copy.deepcopy(EVENTS[1].as_dict())
    for reply in (data["message"]["reply"], *data["message"]["forward"]):
        del reply["uuid"]
    event = Event.from_dict(data)
    assert event.message
    assert (event.message.reply, event.message.forward) == (Reply(4, "ну?", 0), [Reply(1, "раз", 0), Reply(2, "", 0)])
    assert (event.action, event.payload, event.raw) == (None, None, None)


@pytest.mark.parametrize("place", PLACES)
def test_a_key_is_missing(place: tuple[Any, ...]) -> None:
    """Every key promised since the first version is required, except those whose value may be null."""
    needed = inside(EVENTS[1].as_dict(), place).keys() - {"message", "reply"}
    if place in (("message", "reply"), ("message", "forward", 0)):
        needed -= {"uuid"}
    assert len(needed) > 1
    for key in needed:
        data = copy.deepcopy(EVENTS[1].as_dict())
        del inside(data, place)[key]
        with pytest.raises(ValueError, match="NoneType instead of"):
            Event.from_dict(data)


WRONG: list[tuple[tuple[str, ...], list[Any]]] = [
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
    (("message", "reply"), [5, [], {}, [4, "ну?", 7]]),
    (("message", "reply", "uuid"), [None, "7", True]),
    (("message", "forward"), [None, {}, "раз", [None], [[1, "раз"]], [{"cmid": "1", "text": ""}]]),
    (("message", "attachments"), [None, "photo", {"photo": 1}, [None], [{"type": "photo"}]]),
    (("button",), [5, {"cmid": 1, "beid": "b", "payload": []}, {"cmid": 1, "beid": 5, "payload": {}}]),
    (("reaction",), [[], {"cmid": 1, "rid": None}, {"cmid": 1, "rid": True}]),
    (("action",), [5, "chat_kick_user", [], {}, {"type": "chat_kick_user", "user": None, "text": ""}]),
    (("action",), [{"type": 1, "user": None, "text": "", "cmid": 0}, {"type": "", "user": 5, "text": "", "cmid": 0}]),
    (("payload",), [5, "{}", [], True]),
    (("raw",), [5, "{}", [{}], True]),
]


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, values in WRONG for value in values])
def test_a_value_of_the_wrong_type(place: tuple[str, ...], value: Any) -> None:
    """A value that is not exactly of its annotated type is refused."""
    data = copy.deepcopy(EVENTS[1].as_dict())
    inside(data, place[:-1])[place[-1]] = value
    with pytest.raises(ValueError, match="instead of"):
        Event.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "event", 5, {}, [["event_type", "message"]]])
def test_only_an_object_can_be_an_event(data: Any) -> None:
    """Only an object can be an event."""
    with pytest.raises(ValueError, match="instead of"):
        Event.from_dict(data)


def test_channel() -> None:
    """A type of event has a channel of its own on each bus."""
    assert channel("events", "like_add") == "events:like_add"
    assert channel("a:b", "message") == "a:b:message"
