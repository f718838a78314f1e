"""Names of people, communities and chats: who is wanted, how VK is asked, what is filled in."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
import responses

from fetcher.builders import BUILDERS
from fetcher.events import Event, Message, Peer, User
from fetcher.names import Name, fill, told, wanted
from fetcher.vk import VK
from tests import vk as stand_in

CHAT = 2_000_000_000
MAIL = -CHAT - 123


def event(uuid: int, bpid: int, title: str = "") -> Event:
    """Make an event as the builders leave it."""
    user, peer = User(uuid, "", "", "", ""), Peer(bpid, max(0, bpid - CHAT), title)
    return Event("message", "1", user, peer, message=Message(1, "", None, [], []))


def filled(names: dict[int, Name], *events: Event) -> list[tuple[str, str]]:
    """Tell the names of user and peer of each event."""
    return [(event.user.name, event.peer.name) for event in fill(events, names)]


# Who is wanted


@pytest.mark.parametrize(
    ("uuid", "bpid", "ids"),
    [
        (5, 5, {5}),
        (5, CHAT + 7, {5, CHAT + 7}),
        (-3, CHAT + 1, {-3, CHAT + 1}),
        (-3, -3, {-3}),
        (5, -3, {5, -3}),
        (5, MAIL, {5}),
        (MAIL, MAIL, set()),
        (MAIL, CHAT + 7, {CHAT + 7}),
        (5, CHAT, {5}),
        (CHAT, -CHAT, set()),
        (CHAT + 7, 5, {5}),
        (0, 0, set()),
        (CHAT - 1, 1 - CHAT, {CHAT - 1, 1 - CHAT}),
    ],
)
def test_wanted(uuid: int, bpid: int, ids: set[int]) -> None:
    """People, communities and chats are; e-mail addresses and numbers that nobody can have are not."""
    assert wanted([event(uuid, bpid)]) == ids


def test_wanted_of_a_batch() -> None:
    """Each is wanted once, whoever needs it."""
    assert wanted([event(5, 5), event(5, CHAT + 1), event(6, CHAT + 1)]) == {5, 6, CHAT + 1}
    assert wanted([]) == set()


# Filling in


def test_fill_a_person() -> None:
    """A person's names go to the user; all the rest of the event stays."""
    bare = event(5, CHAT + 7)
    (given,) = fill([bare], {5: Name("Анна Черных", "Анна", "Черных", "anna"), CHAT + 7: Name("Беседа")})
    assert given.user == User(5, "Анна Черных", "Анна", "Черных", "anna")
    assert given.peer == Peer(CHAT + 7, 7, "Беседа")
    assert given._replace(user=bare.user, peer=bare.peer) == bare


def test_fill_a_private_dialog() -> None:
    """A private dialog bears the other side's name, whoever acts in it."""
    names = {5: Name("Анна Черных", "Анна", "Черных", "anna"), -3: Name("Паб", "Паб", "", "pub")}
    assert filled(names, event(5, 5), event(-3, 5), event(5, -3)) == [
        ("Анна Черных", "Анна Черных"),
        ("Паб", "Анна Черных"),
        ("Анна Черных", "Паб"),
    ]


def test_fill_the_unknown() -> None:
    """Whom VK does not know, and what it does not tell, has its number and nothing else."""
    assert list(fill([event(5, CHAT + 7)], {5: Name()})) == [event(5, CHAT + 7)]


def test_a_chats_title_is_no_users_name() -> None:
    """A number that is a chat's never gives its title to a user of the same number."""
    assert filled({CHAT + 7: Name("Беседа")}, event(CHAT + 7, CHAT + 7)) == [("", "Беседа")]
    assert filled({MAIL: Name("почта")}, event(MAIL, 5)) == [("", "")]


def test_title_holds_from_the_update_on() -> None:
    """A title that an event tells is the peer's from that event on, until the next one, and in no other chat."""
    names = {CHAT + 7: Name("Старая"), CHAT + 8: Name("Другая")}
    chat, other = event(5, CHAT + 7), event(5, CHAT + 8)
    batch = [chat, event(5, CHAT + 7, "Новая"), chat, other, event(5, CHAT + 7, "Новейшая"), chat]
    assert [peer for _, peer in filled(names, *batch)] == ["Старая", "Новая", "Новая", "Другая", "Новейшая", "Новейшая"]
    assert names == {CHAT + 7: Name("Старая"), CHAT + 8: Name("Другая")}, "what was handed in is left as it was"


def test_told() -> None:
    """The latest title of each chat is told for the cache."""
    batch = [event(5, CHAT + 7, "Новая"), event(5, CHAT + 8), event(5, CHAT + 7, "Новейшая"), event(5, CHAT + 9, "Ещё")]
    assert told(batch) == {CHAT + 7: Name("Новейшая"), CHAT + 9: Name("Ещё")}


# Asking VK


@pytest.fixture
def there() -> Iterator[stand_in.VK]:
    """A VK whose people, communities and chats a test may choose; asked through `responses`, not over the network."""

    def answer(request: Any) -> tuple[int, dict[str, str], str]:
        _, told = there.ask(request.url.rpartition("/")[2], dict(parse_qsl(request.body, keep_blank_values=True)))
        return 200, {}, json.dumps(told)

    with stand_in.VK() as there, responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.add_callback(responses.POST, re.compile("https://api.vk.ru/method/"), answer)
        yield there


@pytest.fixture
def vk() -> VK:
    return VK(stand_in.TOKEN, stand_in.GROUP, 3600, BUILDERS)


def asked(there: stand_in.VK) -> list[tuple[str, str]]:
    """List what was asked inside each execute: the method, and the ids as they were sent."""
    calls = [call for request in there.requests for call in request.inner]
    return [(method, next(values[name] for name in values if name.endswith("_ids"))) for method, values in calls]


def test_one_request_for_all(vk: VK, there: stand_in.VK) -> None:
    """People, communities and chats are asked for in one execute, each kind by its own method, in Russian."""
    there.people[5] = {"first_name": "Анна", "last_name": "Черных", "domain": "anna"}
    there.communities[3] = {"name": "Паб", "screen_name": "pub"}
    there.chats[CHAT + 7] = "Беседа"
    assert vk.names({5, -3, CHAT + 7}) == {
        5: Name("Анна Черных", "Анна", "Черных", "anna"),
        -3: Name("Паб", "Паб", "", "pub"),
        CHAT + 7: Name("Беседа"),
    }
    assert [request.name for request in there.requests] == ["execute"]
    assert sorted(asked(there)) == [
        ("groups.getById", "3"),
        ("messages.getConversationsById", str(CHAT + 7)),
        ("users.get", "5"),
    ]
    assert all(values["lang"] == "ru" for _, values in there.requests[0].inner)
    assert there.requests[0].params["lang"] == "ru"


def test_nobody_to_ask_for(vk: VK, there: stand_in.VK) -> None:
    """Nothing is asked for nobody."""
    assert vk.names([]) == {}
    assert not there.requests


def test_who_has_no_name_is_not_asked_for(vk: VK, there: stand_in.VK) -> None:
    """E-mail addresses are never asked for, nor numbers that nobody has."""
    assert vk.names(wanted([event(MAIL, MAIL), event(0, CHAT), event(CHAT + 7, 0)])) == {}
    assert not there.requests


def test_a_full_request(vk: VK, there: stand_in.VK) -> None:
    """A thousand people and a hundred chats go into one request; what is more needs no second one up to 25 calls."""
    ids = {*range(1, 2001), *range(-600, 0), *range(CHAT + 1, CHAT + 201)}
    names = vk.names(ids)
    assert names.keys() == ids
    assert all(all((name.name, name.nick)) for id, name in names.items() if id < CHAT)
    assert names[CHAT + 150].name == "Беседа 150"
    assert [request.name for request in there.requests] == ["execute"]
    assert [method for method, _ in asked(there)].count("users.get") == 2
    assert max(there.asked.values()) == 1


@pytest.mark.parametrize(
    ("person", "name"),
    [
        ({"domain": "anna", "screen_name": "other"}, Name("Анна Черных", "Анна", "Черных", "anna")),
        ({"domain": None, "screen_name": "other"}, Name("Анна Черных", "Анна", "Черных", "other")),
        ({"domain": "", "screen_name": None}, Name("Анна Черных", "Анна", "Черных", "id5")),
        ({"deactivated": "banned"}, Name("Анна Черных", "Анна", "Черных", "id5")),
        ({"first_name": "DELETED", "last_name": "", "deactivated": "deleted"}, Name("DELETED", "DELETED", "", "id5")),
        ({"first_name": "", "domain": "anna"}, Name("Черных", "", "Черных", "anna")),
        ({"last_name": None, "domain": "anna"}, Name("Анна", "Анна", "", "anna")),
        ({"first_name": " Анна ", "domain": "anna"}, None),
    ],
)
def test_people(vk: VK, there: stand_in.VK, person: dict[str, Any], name: Name | None) -> None:
    """The nick is the domain, else the screen name, else id<N>; the name has no stray spaces at its ends."""
    there.people[5] = {"first_name": "Анна", "last_name": "Черных"} | person
    found = vk.names([5])[5]
    assert found.name == "Анна Черных" if name is None else found == name


def test_unknown_people_and_communities(vk: VK, there: stand_in.VK) -> None:
    """Whom VK leaves out of its answer has no name, and nobody gets another's: they are found by id."""
    there.unknown |= {6, -4}
    names = vk.names([5, 6, 7, -3, -4, -5])
    assert names[6] == names[-4] == Name()
    assert (names[5].firstname, names[7].firstname) == (stand_in.FIRST[5], stand_in.FIRST[7])
    assert (names[-3].name, names[-5].name) == ("Сообщество 3", "Сообщество 5")
    assert len(there.requests) == 1


def test_hidden_chats(vk: VK, there: stand_in.VK) -> None:
    """A chat that VK leaves out, or tells without its settings, has no name; its neighbours have theirs."""
    there.hidden.add(CHAT + 1)
    there.untitled.add(CHAT + 2)
    assert vk.names([CHAT + 1, CHAT + 2, CHAT + 3]) == {
        CHAT + 1: Name(),
        CHAT + 2: Name(),
        CHAT + 3: Name("Беседа 3"),
    }
    assert len(there.requests) == 1


REFUSALS = [7, 15, 18, 27, 30, 100, 113, 203, 917, 922, 925, 927, 932, 936, 945, 946, 1017]


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("id", [5, -3, CHAT + 7])
def test_refused_alone(vk: VK, there: stand_in.VK, id: int, code: int) -> None:
    """Whom VK refuses to tell about has no name; that costs nothing more."""
    there.refused[id] = code
    assert vk.names([id]) == {id: Name()}
    assert len(there.requests) == 1


@pytest.mark.parametrize("refused", [5, -3, CHAT + 7])
def test_refused_among_others(vk: VK, there: stand_in.VK, refused: int) -> None:
    """One who is refused among others has no name, the others have theirs: for one request more, to those concerned."""
    there.refused[refused] = 917
    ids = {5, 6, 25, -3, -4, CHAT + 7, CHAT + 8}
    names = vk.names(ids)
    assert names.pop(refused) == Name()
    assert names.keys() == ids - {refused}
    assert all(name.name for name in names.values())
    assert [request.name for request in there.requests] == ["execute"] * 2
    kind = {method for method, _ in there.requests[1].inner}
    assert len(kind) == 1, "who was answered is not asked for again"


def test_several_refused(vk: VK, there: stand_in.VK) -> None:
    """Of a hundred chats several may be refused: it ends, soon, and all others have their names."""
    refused = {CHAT + 1, CHAT + 2, CHAT + 50, CHAT + 100}
    there.refused |= dict.fromkeys(refused, 917)
    names = vk.names(range(CHAT + 1, CHAT + 101))
    assert {id for id, name in names.items() if not name.name} == refused
    assert len(there.requests) <= 3


def test_all_refused(vk: VK, there: stand_in.VK) -> None:
    """Where every one is refused, none has a name."""
    there.refused |= {5: 113, 6: 113, -3: 100, CHAT + 7: 917, CHAT + 8: 917}
    assert vk.names([5, 6, -3, CHAT + 7, CHAT + 8]) == dict.fromkeys([5, 6, -3, CHAT + 7, CHAT + 8], Name())


def test_never_another_kinds_name(vk: VK, there: stand_in.VK) -> None:
    """A person, a community and a chat of the same number are three."""
    there.people[7] = {"first_name": "Семёрка", "last_name": "", "domain": "seven"}
    there.communities[7] = {"name": "Сообщество семь", "screen_name": "club7"}
    there.chats[CHAT + 7] = "Беседа семь"
    names = vk.names([7, -7, CHAT + 7])
    assert [names[id].name for id in (7, -7, CHAT + 7)] == ["Семёрка", "Сообщество семь", "Беседа семь"]
    assert filled(names, event(7, CHAT + 7), event(-7, 7)) == [
        ("Семёрка", "Беседа семь"),
        ("Сообщество семь", "Семёрка"),
    ]
