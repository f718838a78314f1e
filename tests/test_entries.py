"""From pending updates to the entries that are published: full messages, events, names, JSON, dead letters."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import pytest

from fetcher.core.backlog import Pending
from fetcher.core.history import DeadLetter, Entry, Name, Position
from fetcher.errors import Failure, FatalError, TransientError
from fetcher.fastjson import loads
from fetcher.vk import builders
from fetcher.vk.entries import EntryBuilder
from tests.vk import GROUP, PERSON, message, update

pytestmark = pytest.mark.usefixtures("own_lookups")

DOWN = TransientError("VK error 10")


class VK:
    """Answers lookups from its dicts, or fails."""

    def __init__(self) -> None:
        self.full: dict[tuple[int, int], dict[str, Any]] = {}
        self.failure: Failure = None
        self.full_failure: Failure = None  # of full messages alone
        self.requested: list[set[Any]] = []

    def names(self, ids: Iterable[int]) -> tuple[dict[int, Name], Failure]:
        if not ids:
            return {}, None
        self.requested.append(set(ids))
        return ({} if self.failure else {id: Name(f"name of {id}") for id in self.requested[-1]}), self.failure

    def full_messages(self, places: Iterable[tuple[int, int]]) -> tuple[dict[tuple[int, int], dict[str, Any]], Failure]:
        if not places:
            return {}, None
        self.requested.append(set(places))
        return {
            place: self.full[place] for place in self.requested[-1] if place in self.full
        }, self.full_failure or self.failure


class NoCache:
    """A bus that caches no names."""

    names_ttl, is_connected = 600, False

    def names(self, ids: Iterable[int]) -> dict[int, Name]:
        return {}

    def cache_names(self, names: Mapping[int, Name]) -> None:
        pass


@pytest.fixture
def vk() -> VK:
    return VK()


def batch(*updates: Any) -> Pending:
    return Pending("batch", Position(0, 10), Position(0, 99), [*updates])


def nan() -> Any:
    """Return NaN as it arrives from VK."""
    return loads(b"NaN")


Built = list[Entry | DeadLetter | None]


def builder(vk: VK, raw: bool = False) -> EntryBuilder:
    api: Any = vk
    bus: Any = NoCache()
    return EntryBuilder(api, bus, GROUP, "/", raw)


def build(vk: VK, *batches: Pending, raw: bool = False, give_up: bool = False) -> list[Built]:
    entries = builder(vk, raw)
    entries.build(batches, give_up)
    return [one.entries for one in batches]


def event(entry: Entry | DeadLetter | None) -> dict[str, Any]:
    assert isinstance(entry, Entry)
    return cast("dict[str, Any]", json.loads(entry.text))


def letter(entry: Entry | DeadLetter | None) -> tuple[Any, str]:
    """Return the update and the error of a dead letter."""
    assert isinstance(entry, DeadLetter)
    return json.loads(entry.fields["update"]), entry.fields["error"]


# Events


def test_an_entry(vk: VK) -> None:
    """An entry has the event's id, its type, when it was sent, and its JSON in UTF-8, with names."""
    one = message("привет")
    ((entry,),) = build(vk, batch(one))
    assert isinstance(entry, Entry)
    assert (entry.id, entry.event_type, entry.date) == (one["event_id"], "message", one["object"]["message"]["date"])
    assert "привет".encode() in entry.text
    assert event(entry)["user"]["name"] == f"name of {PERSON}"


def test_several_batches_are_built_at_once(vk: VK) -> None:
    """One request resolves the names for several batches; each gets its own entries, and drops its updates."""
    batches = [batch(message("a"), message("b")), batch(), batch(message("c"))]
    texts = [[event(entry)["message"]["text"] for entry in entries] for entries in build(vk, *batches)]
    assert texts == [["a", "b"], [], ["c"]]
    assert len(vk.requested) == 1
    assert not any(one.updates for one in batches)


def test_types_without_a_builder_are_skipped(vk: VK, caplog: pytest.LogCaptureFixture) -> None:
    """Types without a builder are skipped with a debug line; with `raw` they are published."""
    caplog.set_level("DEBUG", "fetcher")
    joined = update("group_join", {"user_id": PERSON})
    ((nothing, entry),) = build(vk, batch(joined, message("a")))
    assert nothing is None
    assert event(entry)["message"]["text"] == "a"
    assert "Passed over: an update of type group_join" in caplog.text
    ((entry, _),) = build(vk, batch(joined, message("a")), raw=True)
    assert (event(entry)["event_type"], event(entry)["raw"]) == ("group_join", joined)


# Dead letters


def test_a_malformed_update(vk: VK) -> None:
    """A malformed update becomes a dead letter between its neighbours: whole, in ASCII, and with the reason."""
    broken = update("message_new", {"message": {"text": "нет адресата \ud83d", "peer_id": PERSON}})
    ((first, second, third),) = build(vk, batch(message("a"), broken, message("b")))
    assert (event(first)["message"]["text"], event(third)["message"]["text"]) == ("a", "b")
    assert letter(second) == (broken, "from_id is missing or not a whole number of 64 bits")
    assert isinstance(second, DeadLetter)
    assert second.id == broken["event_id"]
    assert second.fields["update"].isascii()


def test_vks_notice(vk: VK) -> None:
    """VK's notice in place of an object makes neither an event nor a dead letter, even with `raw`."""
    notice = update("message_new", {"warning": "You are using a deprecated API version. Upgrade."})
    for raw in (False, True):
        ((nothing, entry),) = build(vk, batch(notice, message("a")), raw=raw)
        assert nothing is None
        assert event(entry)["message"]["text"] == "a"


def test_a_broken_update_does_not_affect_its_neighbours(vk: VK, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an update cannot be built, even because of a bug in its builder, its neighbours are still published."""

    def broken(*_: Any) -> Any:
        raise KeyError("a bug")

    monkeypatch.setitem(builders.BUILDERS, "odd", broken)
    ((first, second),) = build(vk, batch(update("odd", {}), message("a")))
    assert letter(first)[1] == "KeyError('a bug')"
    assert event(second)["message"]["text"] == "a"


@pytest.mark.parametrize("number", [10**400, 2**64, -(2**64)])
def test_numbers_out_of_range(vk: VK, number: int) -> None:
    """A number that is too large counts as missing in a date, makes a dead letter in an id, and stays in a payload."""
    pressed = update("message_event", {"user_id": 5, "peer_id": 5, "event_id": "1", "payload": {"a": number}})
    ((dated, dead, payload),) = build(vk, batch(message("a", date=number), message("b", user=number), pressed))
    assert isinstance(dated, Entry)
    assert dated.date == 0
    assert letter(dead)[1] == "from_id is missing or not a whole number of 64 bits"
    assert event(payload)["button"]["payload"] == {"a": number}


def test_nan_makes_a_dead_letter(vk: VK) -> None:
    """NaN makes a dead letter if it is in the event, which with `raw` contains the whole update."""
    odd = message("a", payload='{"number": NaN}', latitude=nan())
    pressed = update("message_event", {"user_id": 5, "peer_id": 5, "event_id": "1", "payload": {"a": nan()}})
    ((first, second),) = build(vk, batch(odd, pressed))
    assert event(first)["payload"] == {"value": '{"number": NaN}'}
    assert isinstance(second, DeadLetter)
    ((first,),) = build(vk, batch(odd), raw=True)
    assert isinstance(first, DeadLetter)
    assert "NaN" in first.fields["update"]
    assert first.fields["error"] == "it cannot be written as JSON"


def test_half_a_surrogate_pair_is_replaced(vk: VK) -> None:
    """Half a surrogate pair in a text becomes U+FFFD."""
    ((entry,),) = build(vk, batch(message("x\ud83dy")))
    assert event(entry)["message"]["text"] == "x\ufffdy"


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_an_update_that_is_too_deep(vk: VK) -> None:
    """An update nested too deep for JSON makes a dead letter with its id and the reason alone; others are built."""
    pressed = {"user_id": 5, "peer_id": 5, "event_id": "1", "payload": {"a": deep(300_000)}}
    ((first, second, third),) = build(
        vk, batch(update("message_event", pressed), deep(300_000), message("a", extra=deep(300_000))), raw=True
    )
    assert isinstance(first, DeadLetter)
    assert isinstance(second, DeadLetter)
    assert isinstance(third, DeadLetter)
    assert first.fields == third.fields == {"update": "", "error": "it cannot be written as JSON"}
    assert second.fields == {"update": "", "error": "of type list where an object is expected"}
    assert re.fullmatch("[0-9a-f]{40}", first.id)
    assert second.id == "", "recorded each time, because there is no text to compare it by"
    ((first, second),) = build(vk, batch(update("message_event", pressed), message("a", extra=deep(300_000))))
    assert isinstance(first, DeadLetter)
    assert event(second)["message"]["text"] == "a"


def test_a_number_that_is_too_deep(vk: VK) -> None:
    """A deep list in place of a number makes a dead letter, even where a full message would be looked up by it."""
    ((first, second),) = build(vk, batch(cropped(deep(5000)), message("a")))
    assert isinstance(first, DeadLetter)
    assert first.fields["error"] == "conversation_message_id is missing or not a whole number of 64 bits"
    assert event(second)["message"]["text"] == "a"


NAMELESS: list[Any] = [None, 5, "text", [], {}, {"type": "message_new"}, update("message_new", {}) | {"event_id": 5}]


def test_dead_letters_without_an_id(vk: VK) -> None:
    """A dead letter without an id gets one from its content, so that two fetchers give it the same id."""
    (entries,) = build(vk, batch(*NAMELESS))
    (again,) = build(vk, batch(*reversed(NAMELESS)))
    ids = [entry.id for entry in entries if isinstance(entry, DeadLetter)]
    assert len(set(ids)) == len(NAMELESS)
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", id) for id in ids)
    assert [entry.id for entry in again if isinstance(entry, DeadLetter)] == ids[::-1]


# Full messages


def cropped(cmid: Any, text: str = "cropped") -> dict[str, Any]:
    return message(text, conversation_message_id=cmid, is_cropped=True, user=5, peer=5)


def test_cropped_messages_are_completed(vk: VK) -> None:
    """All full messages are requested at once; cropped ones that VK no longer has are published as they are."""
    vk.full[5, 1] = {"text": "/full", "conversation_message_id": 1}
    batches = [batch(cropped(1), message("a")), batch(cropped(2))]
    (first, second), (third,) = build(vk, *batches)
    assert (event(first)["event_type"], event(first)["message"]["text"]) == ("command", "/full")
    assert event(second)["message"]["text"] == "a"
    assert event(third)["message"]["text"] == "cropped"
    assert vk.requested[0] == {(5, 1), (5, 2)}
    build(vk, batch(message("a")))
    assert len(vk.requested) == 3, "names twice, messages once"


def test_with_raw_the_update_is_whole(vk: VK) -> None:
    """`raw` has the full message, and is no longer cropped."""
    vk.full[5, 1] = {"text": "full", "conversation_message_id": 1}
    ((entry,),) = build(vk, batch(cropped(1)), raw=True)
    full = event(entry)["raw"]["object"]["message"]
    assert full["text"] == "full"
    assert "is_cropped" not in full


# What fails


@pytest.mark.parametrize("failure", [DOWN, FatalError("VK refuses the token")])
@pytest.mark.parametrize("update", [message("a"), cropped(1, "a")], ids=["names", "full messages"])
def test_vk_fails(vk: VK, failure: Any, update: Any) -> None:
    """If VK fails, the batch keeps its updates; when VK is given up, it is built with what is known."""
    vk.failure = failure
    one = batch(update, {"type": "message_new"})
    with pytest.raises(type(failure), match=str(failure)):
        build(vk, one)
    assert one.updates
    assert len(one.updates) == 2
    ((entry, _),) = build(vk, one, give_up=True)
    assert event(entry)["message"]["text"] == "a"
    assert event(entry)["user"]["name"] == ""


def test_a_full_message_is_waited_for(vk: VK) -> None:
    """A batch waits for a full message that VK does not return, even if all names are known."""
    vk.full_failure = DOWN
    one = batch(cropped(1, "a"))
    with pytest.raises(TransientError, match=str(DOWN)):
        build(vk, one)
    assert one.updates
    assert vk.requested == [{(5, 1)}], "names are not needed yet"


def test_known_full_messages_are_not_requested_again(vk: VK) -> None:
    """Only missing full messages are requested again; otherwise a slow VK would have to return all of them at once."""
    vk.full[5, 1] = {"text": "full", "conversation_message_id": 1}
    vk.full_failure = DOWN
    one = batch(cropped(1), cropped(2))
    with pytest.raises(TransientError, match=str(DOWN)):
        build(vk, one)
    vk.full_failure = None
    ((first, second),) = build(vk, one)
    assert [event(entry)["message"]["text"] for entry in (first, second)] == ["full", "cropped"]
    assert vk.requested[:2] == [{(5, 1), (5, 2)}, {(5, 2)}]


def test_the_failure_of_full_messages_is_returned(vk: VK) -> None:
    """`build` returns the failure of full messages even if all names are known, and None if no message is cropped."""
    vk.full_failure = DOWN
    assert builder(vk).build([batch(cropped(1, "a"))], give_up=True) == DOWN
    assert builder(vk).build([batch(message("a"))], give_up=True) is None


def test_known_full_messages_are_used_when_others_are_given_up(vk: VK) -> None:
    """If VK fails for one message, another one that it has returned is still used."""
    vk.full[5, 1] = {"text": "full", "conversation_message_id": 1}
    vk.failure = DOWN
    ((first, second),) = build(vk, batch(cropped(1), cropped(2)), give_up=True)
    assert [event(entry)["message"]["text"] for entry in (first, second)] == ["full", "cropped"]
