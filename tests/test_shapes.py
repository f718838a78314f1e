"""Every shape of update, person and chat that VK sends, through the whole process to the bus."""

import json
import random
import re
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from fetcher.vk.builders import BUILDERS
from tests.processes import Fetcher
from tests.samples import SAMPLES
from tests.samples.other_types import OTHER_TYPES
from tests.servers import Server, wait_until
from tests.vk import CHAT, PEER, PERSON, VK, Request, button, community, message, person, reaction, traffic, update

MAIL = -CHAT - 123
SEED = 20261124

Start = Callable[..., Fetcher]
Json = dict[str, Any]


class Bus:
    """The bus of one fetcher, and the requests that the fetcher sends."""

    def __init__(self, vk: VK, server: Server, start: Start, **settings: Any) -> None:
        self.vk = vk
        self.client: Any = server.client()
        self.checkpoint = f"{{events}}:ts:{vk.group_id}"
        start(**settings)
        wait_until(lambda: self.client.exists(self.checkpoint), what="the first poll")

    def push(self, *updates: Any) -> list[Json]:
        """Let VK send the updates in one batch, and return the events that they became."""
        before, self.since = len(self.events()), len(self.vk.requests)
        self.vk.push(*updates)
        wait_until(lambda: self.client.get(self.checkpoint) == str(self.vk.ts), 25, "the commit")
        return self.events()[before:]

    def events(self) -> list[Json]:
        return [json.loads(entry["event"]) for _, entry in self.client.xrange("events")]

    def letters(self) -> list[Json]:
        return [entry for _, entry in self.client.xrange("{events}:dead-letter")]

    def lookup_requests(self) -> list[Request]:
        """List the requests to VK's API for names and messages since the last push."""
        requests = self.vk.requests[self.since :]
        return [request for request in requests if request.kind == "api" and not request.name.startswith("groups.")]


@pytest.fixture
def bus(vk: VK, server: Server, fetch: Start) -> Bus:
    return Bus(vk, server, fetch)


def names(events: list[Json]) -> list[tuple[str, str]]:
    """Return the names of user and peer of each event."""
    return [(event["user"]["name"], event["peer"]["name"]) for event in events]


def texts(events: list[Json]) -> list[str]:
    return [event["message"]["text"] for event in events]


# Ten thousand


def mixed_updates(count: int) -> list[Json]:
    """Make updates with what each becomes: ordinary traffic mixed with every sample, many times, in a fixed order."""
    rng = random.Random(SEED + 1)
    made: list[Json] = []
    for ordinary in traffic(SEED, people=300, chats=40, count=count):
        if rng.random() < 0.4:
            made.append({"update": ordinary, "event": None})
            continue
        sample = dict(rng.choice(list(SAMPLES.values())))
        if isinstance(sample["update"], dict) and isinstance(sample["update"].get("event_id") or 0, str):
            new_id = {"event_id": rng.randbytes(20).hex()}
            sample["update"] = sample["update"] | new_id
            if "event" in sample:
                sample["event"] = sample["event"] | new_id
        made.append(sample)
    return made


def without_surrogates(text: str) -> str:
    """Return a text as it is published: half of a surrogate pair becomes U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def expected_names(vk: VK, event: Json, titles: dict[int, str]) -> list[str]:
    """Return the expected name and nick of the user and of the action's user, and the expected peer's name.

    They come from VK and from the updates so far.
    """

    def known(id: int) -> tuple[str, str]:
        if 0 < id < CHAT:
            profile = person(vk, id, ["domain", "screen_name"], True)
            return f"{profile['first_name']} {profile['last_name']}", profile.get("domain", f"id{id}")
        if -CHAT < id < 0:
            profile = community(vk, -id)
            return profile["name"], profile["screen_name"]
        return (titles.get(id, f"Беседа {id - CHAT}") if id > CHAT else ""), ""

    people = [event["user"]["uuid"], *(user["uuid"] for user in action_users(event))]
    return [name for uuid in people for name in known(uuid)] + [known(event["peer"]["bpid"])[0]]


def action_users(event: Json) -> list[Json]:
    """List the user of the event's action, if there is one."""
    return [event["action"]["user"]] if event.get("action", {}).get("user") else []


def has_id(letter: Json) -> bool:
    """Return whether the update of a dead letter has an event_id."""
    update = json.loads(letter["update"])
    return isinstance(update, dict) and isinstance(update.get("event_id"), str) and bool(update["event_id"])


@pytest.mark.long
def test_ten_thousand(vk: VK, bus: Bus) -> None:
    """Each update is published, recorded as a dead letter or skipped, as expected, in VK's order."""
    vk.kept = 20_000
    sent = mixed_updates(10_000)
    events, letters = bus.push(*(each["update"] for each in sent)), bus.letters()
    published = [each for each in sent if "event" in each]
    dead = [
        {"update": json.dumps(each["update"]), "error": each["dead_letter"]} for each in sent if "dead_letter" in each
    ]
    passed = [each for each in sent if "passed_over" in each]
    assert len(events) == len(published)
    assert len(published) + len(dead) + len(passed) == 10_000
    assert min(len(published), 20 * len(dead), 100 * len(passed)) > 5000, "there is enough of each"

    titles: dict[int, str] = {}
    for each, event in zip(published, events, strict=True):
        assert event["event_id"] == each["update"]["event_id"]
        if each["event"]:
            title = each["event"]["peer"]["name"]
            titles |= {event["peer"]["bpid"]: title} if title else {}
        names = [user[name] for user in (event["user"], *action_users(event)) for name in ("name", "nick")]
        assert [*names, event["peer"]["name"]] == expected_names(vk, event, titles), event
        if each["event"]:
            bare = json.loads(without_surrogates(json.dumps(each["event"], ensure_ascii=False)))
            bare["user"] |= event["user"] | {"uuid": bare["user"]["uuid"]}
            bare["peer"]["name"] = event["peer"]["name"]
            for user, named in zip(action_users(bare), action_users(event), strict=True):
                user |= named | {"uuid": user["uuid"]}
            assert json.dumps(event) == json.dumps(bare)
    assert [letter for letter in letters if has_id(letter)] == [letter for letter in dead if has_id(letter)]
    nameless = [{json.dumps(letter) for letter in some if not has_id(letter)} for some in (letters, dead)]
    assert nameless[0] == nameless[1], "the same update without an id may be recorded once, however often it comes"

    assert max(vk.lookup_counts.values()) == 1, "nobody is looked up twice"
    assert min(vk.lookup_counts) > -CHAT, "e-mail addresses are never looked up"
    cropped = {index // 100 for index, each in enumerate(sent) if '"is_cropped": true' in json.dumps(each)}
    assert 1 < len(cropped) < 100
    assert len(bus.lookup_requests()) <= 100 + len(cropped), "one request a batch, and one more with cropped messages"


# Cropped messages


def cropped(text: str, cmid: int, peer: int = PEER) -> Json:
    attachments = [{"type": "photo", "photo": {}}]
    return message(text, peer=peer, conversation_message_id=cmid, is_cropped=True, attachments=attachments)


def add_full_message(vk: VK, cmid: int, peer: int = PEER) -> None:
    vk.messages[peer, cmid] = {
        "conversation_message_id": cmid, "peer_id": peer, "from_id": PERSON, "text": f"/весь {cmid}",
        "attachments": [{"type": "photo", "photo": {}}, {"type": "doc", "doc": {}}],
        "fwd_messages": [
            {"conversation_message_id": 1, "text": "раз"}, {"conversation_message_id": 2, "text": "два", "from_id": 5},
        ],
    }  # fmt: skip


def test_cropped_messages(vk: VK, bus: Bus) -> None:
    """One request completes all those of a batch; messages that VK no longer has are published cropped, in order."""
    add_full_message(vk, 1)
    add_full_message(vk, 3)
    add_full_message(vk, 1, PERSON)
    refusing = CHAT + 9
    vk.refused |= {(refusing, 1): 917, (refusing, 2): 917}
    events = bus.push(
        cropped("кор1", 1), message("целый"), cropped("кор2", 2), cropped("кор3", 3),
        cropped("кор4", 1, PERSON), cropped("кор5", 1, refusing), button(), message("конец"),
    )  # fmt: skip
    assert texts(events[:6]) == ["/весь 1", "целый", "кор2", "/весь 3", "/весь 1", "кор5"]
    assert [event["event_type"] for event in events] == ["command", "message", "message"] + ["command"] * 2 + [
        "message", "button", "message",
    ]  # fmt: skip
    assert events[0]["message"] == {
        "cmid": 1, "text": "/весь 1", "reply": None, "attachments": ["photo", "doc", "forward"],
        "forward": [{"cmid": 1, "text": "раз", "uuid": 0}, {"cmid": 2, "text": "два", "uuid": 5}],
    }  # fmt: skip
    assert events[2]["message"]["attachments"] == events[5]["message"]["attachments"] == ["photo"]
    assert events[4]["peer"]["bpid"] == PERSON
    assert len(bus.lookup_requests()) == 2, "for messages and for names"


def test_cropped_messages_are_refused(vk: VK, bus: Bus) -> None:
    """A message that VK refuses among others of its chat costs one more request, and the others are complete."""
    add_full_message(vk, 1)
    add_full_message(vk, 2)
    vk.refused[PEER, 2] = 15
    assert texts(bus.push(cropped("кор1", 1), cropped("кор2", 2))) == ["/весь 1", "кор2"]
    assert len(bus.lookup_requests()) == 3
    vk.fail_api({"error": {"error_code": 15, "error_msg": "Access denied"}}, method="execute")
    assert texts(bus.push(cropped("кор1", 1), message("да"))) == ["кор1", "да"]
    assert not bus.letters()


def test_cropped_messages_wait(vk: VK, bus: Bus) -> None:
    """While VK's API fails, cropped messages wait, and so does everything after them."""
    add_full_message(vk, 1)
    vk.fail_api(500, times=2)
    assert texts(bus.push(message("до"), cropped("кор1", 1), message("после"))) == ["до", "/весь 1", "после"]


# Titles


def renamed(title: str, peer: int = PEER) -> Json:
    return message("", peer=peer, action={"type": "chat_title_update", "text": title})


def test_title_holds_from_its_update_on(vk: VK, bus: Bus) -> None:
    """A new title applies from its update on, in its batch and in the next, even if VK still returns the old one."""
    vk.chats |= {PEER: "Старая", PEER + 1: "Другая"}
    first, other = message("да"), message("нет", peer=PEER + 1)

    def peers(*updates: Json) -> list[str]:
        copies = [update | {"event_id": secrets.token_hex(20)} for update in updates]
        return [event["peer"]["name"] for event in bus.push(*copies)]

    assert peers(first, renamed("Новая"), first, other, reaction(), button()) == [
        "Старая", "Новая", "Новая", "Другая", "Новая", "Новая",
    ]  # fmt: skip
    assert peers(reaction(), other) == ["Новая", "Другая"]
    assert peers(renamed("Третья"), renamed("Четвёртая"), first) == ["Третья", "Четвёртая", "Четвёртая"]
    assert peers(first, renamed("Чужая", PEER + 1), other) == ["Четвёртая", "Чужая", "Чужая"]
    assert vk.lookup_counts[PEER] == vk.lookup_counts[PEER + 1] == 1


def test_title_of_a_hidden_chat(vk: VK, bus: Bus) -> None:
    """A chat that VK hides gets its title from an update."""
    vk.hidden.add(PEER)
    assert names(bus.push(message()))[0][1] == ""
    assert [peer for _, peer in names(bus.push(message(), renamed("Найдена"), message()))] == ["", "Найдена", "Найдена"]
    assert names(bus.push(message()))[0][1] == "Найдена"


# People and chats


def test_every_user_and_peer_is_named(vk: VK, bus: Bus) -> None:
    """Whoever acts, wherever: one request resolves the names of user and peer."""
    vk.people |= {
        5: {"first_name": "Анна", "last_name": "Черных", "domain": "anna", "screen_name": "other"},
        6: {"first_name": "DELETED", "last_name": "", "deactivated": "deleted"},
        7: {"first_name": "Пётр", "last_name": "Цой", "deactivated": "banned"},
        8: {"first_name": "Ия", "last_name": "", "domain": None, "screen_name": "iya"},
        9: {"first_name": "Ян", "last_name": "Бо", "domain": None, "screen_name": None},
    }
    vk.communities[3] = {"name": "Паб & «Ко»", "screen_name": "pub"}
    vk.chats[CHAT + 5] = "Беседа пяти"
    vk.unknown |= {11, -11}
    vk.hidden.add(CHAT + 6)
    vk.untitled.add(CHAT + 7)
    events = bus.push(
        message(user=5, peer=CHAT + 5), message(user=6, peer=6), button(user=7, peer=CHAT + 6),
        reaction(user=8, peer=8), message(user=9, peer=CHAT + 7), message(user=11, peer=11),
        message(user=-3, peer=CHAT + 5), reaction(user=-3, peer=-3), message(user=-11, peer=5),
        message(user=MAIL, peer=MAIL), message(user=5, peer=MAIL), message(user=CHAT + 5, peer=CHAT + 5),
    )  # fmt: skip
    assert [list(event["user"].values()) + list(event["peer"].values()) for event in events] == [
        [5, "Анна Черных", "Анна", "Черных", "anna", CHAT + 5, 5, "Беседа пяти"],
        [6, "DELETED", "DELETED", "", "id6", 6, 0, "DELETED"],
        [7, "Пётр Цой", "Пётр", "Цой", "id7", CHAT + 6, 6, ""],
        [8, "Ия", "Ия", "", "iya", 8, 0, "Ия"],
        [9, "Ян Бо", "Ян", "Бо", "id9", CHAT + 7, 7, ""],
        [11, "", "", "", "", 11, 0, ""],
        [-3, "Паб & «Ко»", "Паб & «Ко»", "", "pub", CHAT + 5, 5, "Беседа пяти"],
        [-3, "Паб & «Ко»", "Паб & «Ко»", "", "pub", -3, 0, "Паб & «Ко»"],
        [-11, "", "", "", "", 5, 0, "Анна Черных"],
        [MAIL, "", "", "", "", MAIL, 0, ""],
        [5, "Анна Черных", "Анна", "Черных", "anna", MAIL, 0, ""],
        [CHAT + 5, "", "", "", "", CHAT + 5, 5, "Беседа пяти"],
    ]
    assert len(bus.lookup_requests()) == 1
    assert vk.lookup_counts.keys() == {5, 6, 7, 8, 9, 11, -3, -11, CHAT + 5, CHAT + 6, CHAT + 7}
    assert max(vk.lookup_counts.values()) == 1


@pytest.mark.parametrize("code", [917, 15])
def test_chats_that_refuse(vk: VK, bus: Bus, code: int) -> None:
    """A chat that VK refuses, alone or among others, has no name; other chats have theirs."""
    vk.refused |= {CHAT + 1: code, CHAT + 3: code}
    assert names(bus.push(message(peer=CHAT + 1)))[0][1] == ""
    assert len(bus.lookup_requests()) == 1
    events = bus.push(*(message(peer=CHAT + number) for number in (2, 3, 4)))
    assert [peer for _, peer in names(events)] == ["Беседа 2", "", "Беседа 4"]
    assert len(bus.lookup_requests()) == 2


@pytest.mark.long
def test_nobody_is_looked_up_twice(vk: VK, bus: Bus) -> None:
    """A batch costs one request if it has somebody new, and none if all are known, or known to be unknown."""
    vk.unknown.add(6)
    vk.hidden.add(CHAT + 2)
    acting = [(5, CHAT + 1), (6, CHAT + 2), (-3, 5)]
    for new, requests in (([], 1), ([], 0), ([(7, CHAT + 1)], 1), ([(-4, CHAT + 3)], 1), ([(7, -4)], 0)):
        acting += new
        bus.push(*(make(user=user, peer=peer) for user, peer in acting for make in (message, button, reaction)))
        assert len(bus.lookup_requests()) == requests
    assert max(vk.lookup_counts.values()) == 1


@pytest.mark.long
def test_nobody_is_looked_up_twice_while_redis_is_down(vk: VK, server: Server, bus: Bus) -> None:
    """Updates held for Redis are looked up once: a batch knows the names, and titles, of the batches before it."""
    server.stop()
    for newcomer in (PERSON + 1, PERSON + 2, PERSON + 3):
        vk.push(message(), *([renamed("Новая")] if newcomer == PERSON + 1 else []), button(user=newcomer))
        wait_until(partial(vk.lookup_counts.__getitem__, newcomer), what="the lookup of names")
    server.start()
    events = bus.push(message())
    assert [peer for _, peer in names(events)][1:] == ["Новая"] * 7
    assert all(user for user, _ in names(events))
    assert max(vk.lookup_counts.values()) == 1


def test_a_crowd_in_one_batch(vk: VK, bus: Bus) -> None:
    """A hundred people in a hundred chats cost one request."""
    events = bus.push(*(message(user=number, peer=CHAT + number) for number in range(1, 101)))
    assert [peer for _, peer in names(events)] == [f"Беседа {number}" for number in range(1, 101)]
    assert all(user for user, _ in names(events))
    assert len(bus.lookup_requests()) == 1


def kicked(member: int, **more: Any) -> Json:
    return message("", action={"type": "chat_kick_user", "member_id": member, **more})


def test_users_of_actions_are_named(vk: VK, bus: Bus) -> None:
    """Users who were invited or excluded are named like anybody else, by the same request."""
    vk.people[5] = {"first_name": "Анна", "last_name": "Черных", "domain": "anna"}
    vk.communities[3] = {"name": "Паб", "screen_name": "pub"}
    vk.unknown.add(6)
    events = bus.push(kicked(5), kicked(-3), kicked(6), kicked(MAIL, email="ivan@example.org"), kicked(0), message())
    assert [list(user.values()) for event in events for user in action_users(event)] == [
        [5, "Анна Черных", "Анна", "Черных", "anna"],
        [-3, "Паб", "Паб", "", "pub"],
        [6, "", "", "", ""],
        [MAIL, "", "", "", ""],
    ]
    assert [event.get("action", {}).get("text") for event in events] == ["", "", "", "ivan@example.org", "", None]
    assert len(bus.lookup_requests()) == 1
    events = bus.push(kicked(5), message(user=5))
    assert action_users(events[0]) == [events[1]["user"]]
    assert not bus.lookup_requests()


# The update itself


OTHERS = {type: fields for type, (fields, _, _) in OTHER_TYPES.items() if type not in BUILDERS}


def test_raw(vk: VK, server: Server, fetch: Start) -> None:
    """With RAW=1, every type is published, in the stream and on its channel, with names like any other.

    The event has the update as VK sent it.
    """
    bus = Bus(vk, server, fetch, RAW=1)
    add_full_message(vk, 1)
    sent = [message(), button(), reaction(), kicked(5), cropped("кор", 1), cropped("кор", 2)]
    sent += [update(type, fields) for type, fields in OTHERS.items()]
    with bus.client.pubsub() as live:
        live.psubscribe("events:*")
        assert live.get_message(timeout=5)
        events = bus.push(*sent)
        heard = [live.get_message(timeout=5) or {} for _ in events]
    assert [json.loads(each["data"]) for each in heard] == events
    assert [each["channel"] for each in heard] == [f"events:{event['event_type']}" for event in events]
    assert [event["event_type"] for event in events[6:]] == list(OTHERS)
    full = sent[4]["object"]["message"] | vk.messages[PEER, 1]
    sent[4]["object"] |= {"message": {name: value for name, value in full.items() if name != "is_cropped"}}
    assert [json.dumps(event["raw"]) for event in events] == [json.dumps(update) for update in sent]
    for event in events[6:]:
        names = event["user"]["name"], event["user"]["nick"], event["peer"]["name"]
        assert [*names] == expected_names(vk, event, {})
        _, user, peer = OTHER_TYPES[event["event_type"]]
        assert (event["user"]["uuid"], event["peer"]["bpid"]) == (user, peer)
    assert not bus.letters()


def test_raw_that_cannot_be_written(vk: VK, server: Server, fetch: Start) -> None:
    """With RAW=1, an update that is malformed or not JSON is a dead letter, and those around it are published."""
    bus = Bus(vk, server, fetch, RAW=1)
    half, nan = "\ud83d", float("nan")
    events = bus.push(
        message("до"), update("brand_new", {}, event_id=None), message(date=nan),
        update("brand_new", {"from_id": 5, "а": half}), update("brand_new", {"user_id": nan}), button({"а": half}),
        message("после"),
    )  # fmt: skip
    assert [event["event_type"] for event in events] == ["message", "brand_new", "button", "message"]
    assert events[1]["raw"]["object"] == {"from_id": 5, "а": "\ufffd"}
    assert events[2]["raw"]["object"]["payload"] == {"а": "\ufffd"}
    assert [letter["error"] for letter in bus.letters()] == [
        "event_id is missing or not text",
        "it cannot be written as JSON",
        "user_id is missing or not a whole number of 64 bits",
    ]


def test_without_raw(vk: VK, bus: Bus) -> None:
    """Without RAW, no event has the update, and other types are not published."""
    others = [update(type, fields) for type, fields in OTHERS.items()]
    events = bus.push(message(), *others, button(), *others, reaction())
    assert [event["event_type"] for event in events] == ["message", "button", "reaction"]
    assert not any("raw" in event for event in events)
    assert not bus.letters()


# What is hard to write


def test_hard_to_write(vk: VK, bus: Bus) -> None:
    """Lone surrogates, NaN, deep nesting, and dead letters full of them do not stop the updates around them."""
    half = "\ud83d"
    no_text: Any = [half]
    deep: Any = []
    for _ in range(450):
        deep = [{"а": deep}]
    vk.chats[CHAT + 1] = f"Беседа {half}"
    vk.people[5] = {"first_name": f"Анна{half}", "last_name": "Ч", "domain": "anna"}
    events = bus.push(
        message(f"{half}а{half}", user=5, peer=CHAT + 1), button(float("nan")), button({"deep": deep}),
        button({half: [half]}), message(no_text), update("message_new", deep), update(half, {}),
        update("message_new", half),
        message("😀\u0000\u2028\ufeff" * 1000), message("x" * 100_000) | {"event_id": half}, message("конец"),
    )  # fmt: skip
    assert events[0]["message"]["text"] == "\ufffdа\ufffd"
    assert (events[0]["user"]["name"], events[0]["peer"]["name"]) == ("Анна\ufffd Ч", "Беседа \ufffd")
    assert events[1]["button"]["payload"] == {"deep": deep}
    assert events[2]["button"]["payload"] == {"\ufffd": ["\ufffd"]}
    assert texts(events[3:]) == ["😀\u0000\u2028\ufeff" * 1000, "x" * 100_000, "конец"]
    letters = bus.letters()
    assert len(letters) == 4
    assert all(letter["update"].isascii() for letter in letters)
    assert json.loads(letters[1]["update"])["object"]["message"]["text"] == [half]
