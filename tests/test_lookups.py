"""Names and full messages: how they are requested from VK, and what is made of every answer."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
import responses

from fetcher.core.history import Name
from fetcher.errors import CallFailed, FatalError, TransientError
from fetcher.vk import lookups
from fetcher.vk.api import Api
from tests.net import (
    BROKEN,
    FATAL_AT_START_CODES,
    FATAL_CODES,
    NO_ANSWERS,
    OTHER_CODES,
    TRANSIENT_CODES,
    Metrics,
    Net,
    inside,
    mixed,
    named,
    person,
    refusal,
)
from tests.vk import CHAT, TOKEN, VK, error, inner_calls
from tests.vk.methods import FIRST


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as net:
        net.answers["execute"] = [inside([])]
        yield net


@pytest.fixture
def api(net: Net) -> Api:
    return Api(TOKEN, Metrics())


@pytest.fixture
def vk(monkeypatch: pytest.MonkeyPatch) -> Iterator[VK]:
    """A VK whose people, communities and chats a test may choose; reached through `responses`, not over the network."""
    monkeypatch.setattr("fetcher.vk.api.API_INTERVAL", 0)

    def answer(request: Any) -> tuple[int, dict[str, str], str]:
        _, response = one.ask(request.url.rpartition("/")[2], dict(parse_qsl(request.body, keep_blank_values=True)))
        return 200, {}, json.dumps(response)

    with VK() as one, responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.add_callback(responses.POST, re.compile("https://api.vk.ru/method/"), answer)
        yield one


def names_of(ids: Any) -> dict[int, Name]:
    """Look up names; VK must answer without a failure."""
    names, failure = lookups.names(Api(TOKEN, Metrics()), ids)
    assert failure is None
    return names


def executed_calls(vk: VK) -> list[tuple[str, str]]:
    """List the calls inside each execute: the method, and the ids as they were sent."""
    calls = [call for request in vk.requests for call in request.inner]
    return [(method, next(values[name] for name in values if name.endswith("_ids"))) for method, values in calls]


# How names are requested


def test_how_names_are_requested(api: Api, net: Net) -> None:
    """Names are requested in Russian, even inside an execute, with ids joined by commas, and the nick's fields."""
    net.answers["execute"] = [inside([], {"groups": []}, {"items": []})]
    assert lookups.names(api, [6, 5, -3, -4, CHAT + 7, CHAT + 8])[1] is None
    (params,) = net.params_of("execute")
    assert (params["v"], params["lang"], params["access_token"]) == ("5.199", "ru", TOKEN)
    calls = dict(inner_calls(params["code"]))
    assert calls["users.get"] == {"user_ids": "5,6", "lang": "ru", "fields": "domain,screen_name"}
    assert calls["groups.getById"] == {"group_ids": "4,3", "lang": "ru"}
    assert calls["messages.getConversationsById"] == {"peer_ids": f"{CHAT + 7},{CHAT + 8}", "lang": "ru"}


def test_nobody_to_look_up(api: Api, net: Net) -> None:
    """Without ids there is no request, nor for 0 and 2,000,000,000, which are neither people nor chats."""
    assert lookups.names(api, []) == ({}, None)
    assert lookups.names(api, [0, CHAT]) == ({}, None)
    assert lookups.full_messages(api, []) == ({}, None)
    assert not net.requests


def test_one_request_for_all(vk: VK) -> None:
    """People, communities and chats are requested in one execute, each kind by its own method."""
    vk.people[5] = {"first_name": "Анна", "last_name": "Черных", "domain": "anna"}
    vk.communities[3] = {"name": "Паб", "screen_name": "pub"}
    vk.chats[CHAT + 7] = "Беседа"
    assert names_of({5, -3, CHAT + 7}) == {
        5: Name("Анна Черных", "Анна", "Черных", "anna"),
        -3: Name("Паб", "Паб", "", "pub"),
        CHAT + 7: Name("Беседа"),
    }
    assert [request.name for request in vk.requests] == ["execute"]
    assert sorted(executed_calls(vk)) == [
        ("groups.getById", "3"),
        ("messages.getConversationsById", str(CHAT + 7)),
        ("users.get", "5"),
    ]


def test_a_full_request(vk: VK) -> None:
    """One request holds up to 25 calls: here for 2,000 people, 600 communities and 200 chats."""
    ids = {*range(1, 2001), *range(-600, 0), *range(CHAT + 1, CHAT + 201)}
    names = names_of(ids)
    assert names.keys() == ids
    assert all(all((name.name, name.nick)) for id, name in names.items() if id < CHAT)
    assert names[CHAT + 150].name == "Беседа 150"
    assert [request.name for request in vk.requests] == ["execute"]
    assert [method for method, _ in executed_calls(vk)].count("users.get") == 2
    assert max(vk.lookup_counts.values()) == 1


def test_more_than_a_request(vk: VK) -> None:
    """More than 25 calls take a second request; otherwise VK would refuse the first one."""
    names = names_of(range(CHAT + 1, CHAT + 2602))
    assert len(names) == 2601
    assert all(name.name for name in names.values())
    assert [len(request.inner) for request in vk.requests] == [25, 2]


# Names


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
        ({"first_name": " Анна ", "domain": "anna"}, Name("Анна Черных", " Анна ", "Черных", "anna")),
    ],
)
def test_people(vk: VK, person: dict[str, Any], name: Name) -> None:
    """The nick is the domain, or else the screen name, or else id<N>; the name has no stray spaces."""
    vk.people[5] = {"first_name": "Анна", "last_name": "Черных"} | person
    assert names_of([5])[5] == name


def test_unknown_people_and_communities(vk: VK) -> None:
    """Those that VK leaves out of its answer have no name; answers are matched by id, so no names are mixed up."""
    vk.unknown |= {6, -4}
    names = names_of([5, 6, 7, -3, -4, -5])
    assert names[6] == names[-4] == Name()
    assert (names[5].firstname, names[7].firstname) == (FIRST[5], FIRST[7])
    assert (names[-3].name, names[-5].name) == ("Сообщество 3", "Сообщество 5")
    assert len(vk.requests) == 1


def test_hidden_chats(vk: VK) -> None:
    """A chat that VK leaves out, or returns without its settings, has no name; its neighbours have theirs."""
    vk.hidden.add(CHAT + 1)
    vk.untitled.add(CHAT + 2)
    assert names_of([CHAT + 1, CHAT + 2, CHAT + 3]) == {CHAT + 1: Name(), CHAT + 2: Name(), CHAT + 3: Name("Беседа 3")}
    assert len(vk.requests) == 1


def test_names_of_different_kinds_are_not_mixed_up(vk: VK) -> None:
    """A person, a community and a chat with the same number each have their own name."""
    vk.people[7] = {"first_name": "Семёрка", "last_name": "", "domain": "seven"}
    vk.communities[7] = {"name": "Сообщество семь", "screen_name": "club7"}
    vk.chats[CHAT + 7] = "Беседа семь"
    names = names_of([7, -7, CHAT + 7])
    assert [names[id].name for id in (7, -7, CHAT + 7)] == ["Семёрка", "Сообщество семь", "Беседа семь"]


def test_a_refused_id_is_logged(vk: VK, caplog: pytest.LogCaptureFixture) -> None:
    """An id that VK refuses is logged at level DEBUG, with VK's error."""
    caplog.set_level("DEBUG", "fetcher")
    vk.refused[CHAT + 7] = 917
    names_of([5, CHAT + 7])
    (logged,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(rf"VK error 917 in messages.getConversationsById: .* of \[{CHAT + 7}\]", logged)


# What VK refuses


REFUSALS = [7, 15, 18, 27, 30, 100, 113, 203, 917, 922, 925, 927, 932, 936, 945, 946, 1017]


@pytest.mark.parametrize("id", [5, -3, CHAT + 7])
def test_refused_alone(vk: VK, id: int) -> None:
    """A person, community or chat that VK refuses has no name; that costs no further request."""
    for code in REFUSALS:
        vk.refused[id] = code
        assert names_of([id]) == {id: Name()}
    assert len(vk.requests) == len(REFUSALS)


@pytest.mark.parametrize("refused", [5, -3, CHAT + 7])
def test_refused_among_others(vk: VK, refused: int) -> None:
    """If one of several ids is refused, it has no name, and the others get theirs for one more request."""
    vk.refused[refused] = 917
    ids = {5, 6, 25, -3, -4, CHAT + 7, CHAT + 8}
    names = names_of(ids)
    assert names.pop(refused) == Name()
    assert names.keys() == ids - {refused}
    assert all(name.name for name in names.values())
    assert [request.name for request in vk.requests] == ["execute"] * 2
    kind = {method for method, _ in vk.requests[1].inner}
    assert len(kind) == 1, "answered ids are not requested again"


def test_several_refused(vk: VK) -> None:
    """If several of a hundred chats are refused, all others have their names after a few requests."""
    refused = {CHAT + 1, CHAT + 2, CHAT + 50, CHAT + 100}
    vk.refused |= dict.fromkeys(refused, 917)
    names = names_of(range(CHAT + 1, CHAT + 101))
    assert {id for id, name in names.items() if not name.name} == refused
    assert len(vk.requests) <= 3


def test_all_refused(vk: VK) -> None:
    """If all are refused, none has a name."""
    vk.refused |= {5: 113, 6: 113, -3: 100, CHAT + 7: 917, CHAT + 8: 917}
    assert names_of([5, 6, -3, CHAT + 7, CHAT + 8]) == dict.fromkeys([5, 6, -3, CHAT + 7, CHAT + 8], Name())


def test_refused_ids_are_split(api: Api, net: Net) -> None:
    """The ids of a refused call are requested once more, in smaller calls; answered calls are not repeated."""
    chats = {"items": [{"peer": {"id": CHAT + 7}, "chat_settings": {"title": "Беседа"}}]}
    net.answers["execute"] = [
        inside([person(5)], False, errors=[refusal(917)]),
        inside(chats, False, errors=[refusal(917)]),
    ]
    names = lookups.names(api, [5, CHAT + 7, CHAT + 8])
    anna = Name("Анна 5-я", "Анна", "5-я", "anna5")
    assert names == ({5: anna, CHAT + 7: Name("Беседа"), CHAT + 8: Name()}, None)
    first, second = (inner_calls(params["code"]) for params in net.params_of("execute"))
    assert [values["peer_ids"] for method, values in first if "peer_ids" in values] == [f"{CHAT + 7},{CHAT + 8}"]
    assert [values["peer_ids"] for method, values in second] == [str(CHAT + 7), str(CHAT + 8)]
    assert all(values["lang"] == "ru" for _, values in second)


@pytest.mark.parametrize("code", FATAL_AT_START_CODES + OTHER_CODES)
def test_a_request_that_is_refused(api: Api, net: Net, code: int) -> None:
    """Any other error, of the request or of a call inside, leaves names empty, and costs no further request."""
    net.answers["execute"] = [error(code)]
    assert lookups.names(api, [5, 6, -3]) == ({5: Name(), 6: Name(), -3: Name()}, None)
    assert len(net.requests) == 1
    net.answers["execute"] = [inside(False, errors=[refusal(code)])]
    assert lookups.names(api, [5]) == ({5: Name()}, None)


@pytest.mark.parametrize("code", FATAL_CODES)
def test_refused_inside(api: Api, net: Net, code: int) -> None:
    """Inside an execute, even an error about the token concerns only that person."""
    net.answers["execute"] = [inside(False, [], errors=[refusal(code)])]
    assert lookups.names(api, [5, -3]) == ({5: Name(), -3: Name()}, None)


# What fails


@pytest.mark.parametrize("code", FATAL_CODES)
def test_a_token_that_vk_refuses(api: Api, net: Net, code: int) -> None:
    """A refused token is fatal for the whole request."""
    net.answers["execute"] = [error(code)]
    names, failure = lookups.names(api, [5])
    assert not names
    assert type(failure) is FatalError
    assert str(code) in str(failure)


@pytest.mark.parametrize(("code", "within"), [(code, within) for code in TRANSIENT_CODES for within in (False, True)])
def test_transient_errors(api: Api, net: Net, code: int, within: bool) -> None:
    """A transient error may concern the whole request, or only one call inside: then the others are answered."""
    failing = [inside([person(5)], False, errors=[refusal(code)]) if within else error(code)]
    failing *= 3 if code == 13 and not within else 1  # each of the two calls is too large even alone
    net.answers["execute"] = [*failing, inside([person(5)], {"groups": [{"id": 3, "name": "Паб"}]})]
    names, failure = lookups.names(api, [5, -3])
    assert type(failure) is (CallFailed if within or code == 13 else TransientError)
    assert str(code) in str(failure)
    assert {id: name.name for id, name in names.items()} == ({5: "Анна 5-я"} if within else {})
    net.clock.now += 120
    names, failure = lookups.names(api, [5, -3])
    assert failure is None
    assert {id: name.name for id, name in names.items()} == {5: "Анна 5-я", -3: "Паб"}


def test_answers_before_a_failure_are_kept(api: Api, net: Net) -> None:
    """If one of several requests fails, the answers to those before it are kept."""
    title = {"items": [{"peer": {"id": CHAT + 1}, "chat_settings": {"title": "Беседа"}}]}
    net.answers["execute"] = [inside(*[title] * 25), error(10)]
    names, failure = lookups.names(api, range(CHAT + 1, CHAT + 2601))
    assert len(names) == 2500
    assert names[CHAT + 1] == Name("Беседа")
    assert isinstance(failure, TransientError)


@pytest.mark.parametrize("failing", [{5}, {5, 77, 150}, {-3}, {CHAT + 7}])
def test_a_few_ids_fail_among_many(vk: VK, failing: set[int]) -> None:
    """If VK fails for a few of many ids, all others have their names after a few more requests."""
    ids = {*range(1, 201), -3, -4, CHAT + 7, CHAT + 8}
    vk.failing |= dict.fromkeys(failing, 10)
    names, failure = lookups.names(Api(TOKEN, Metrics()), ids)
    assert names.keys() == ids - failing
    assert all(name.name for name in names.values())
    assert type(failure) is CallFailed
    assert "VK error 10" in str(failure)
    assert len(vk.requests) <= 4


def failed(*codes: int) -> Any:
    """Make an answer to execute in which each call fails."""
    return inside(*[False] * len(codes), errors=[refusal(code) for code in codes])


TOO_LARGE = error(13)
CALLS: dict[str, tuple[list[int], list[Any], dict[int, str], str]] = {
    # who is looked up, VK's answers, nicks, and the failure
    "all answered": ([1, 2], [inside([person(1), person(2)])], {1: "anna1", 2: "anna2"}, ""),
    "one is refused, the other fails": ([1, 2], [failed(917), failed(917, 10)], {1: ""}, "VK error 10"),
    "fails only with others": ([1, 2], [failed(10), inside([person(1)], [person(2)])], {1: "anna1", 2: "anna2"}, ""),
    "all fail: none is requested alone": ([*range(1, 1001)], [failed(10), failed(*[10] * 25)], {}, "VK error 10"),
    "VK wants a pause: no request during it": ([1, 2], [failed(29)], {}, "VK has asked for a pause"),
    "too large, each requested alone": ([1, 2], [TOO_LARGE, inside([person(1)], [])], {1: "anna1", 2: ""}, ""),
    "too large, even so": (
        [1, 2], [TOO_LARGE] * 2 + [inside([person(1)]), inside([person(2)])], {1: "anna1", 2: "anna2"}, "",
    ),
    "too large for the second": ([1, 2], [TOO_LARGE] * 2 + [inside([person(1)]), TOO_LARGE], {1: "anna1"}, "error 13"),
    "too large for one": ([5], [TOO_LARGE], {}, "VK error 13"),
}  # fmt: skip


@pytest.mark.parametrize(("ids", "answers", "nicks", "error"), CALLS.values(), ids=CALLS)
def test_calls_that_fail(
    api: Api, net: Net, ids: list[int], answers: list[Any], nicks: dict[int, str], error: str
) -> None:
    """An id that fails among others is requested again alone, with few requests; then the loop tries again."""
    net.answers["execute"] = [*answers]
    names, failure = lookups.names(api, ids)
    assert {id: name.nick for id, name in names.items()} == nicks
    assert len(net.requests) == len(answers)
    kind = TransientError if "pause" in error else CallFailed if error else type(None)
    assert type(failure) is kind, "not rejected"
    assert error in str(failure)


def test_a_lookup_on_a_slow_api_ends_soon(api: Api, net: Net) -> None:
    """However many requests are due, a lookup ends soon, so that VK is polled meanwhile; what was answered is kept."""
    net.delay = 0.9
    net.answers["execute"] = [TOO_LARGE, inside(*[[]] * 12)]
    chats = range(CHAT + 1, CHAT + 2501)
    names, failure = lookups.names(api, chats)
    assert len(names) == 2 * 12 * 100
    assert str(failure) == "VK's API is slow"
    assert len(net.requests) == 3
    net.answers["execute"] = [inside([])]
    names, failure = lookups.names(api, chats[2400:])
    assert (len(names), failure) == (100, None)


POOLS: list[Any] = [
    *({"response": response} for response in mixed(None, 5, True, "text", {}, {"0": []}, [], [[]], [[], {}, [], []])),
    inside(False, {}),
    inside(False, False, errors=[refusal(917)]),
    inside(False, {}, errors=5),
]


@pytest.mark.parametrize("answer", named(BROKEN + NO_ANSWERS + POOLS))
def test_an_unreadable_answer_is_transient(api: Api, net: Net, answer: Any) -> None:
    """A missing or unreadable answer, or an execute of another form, is a transient error that contains no secret."""
    net.answers["execute"] = [answer, inside([person(5)], {"groups": [{"id": 3, "name": "Паб"}]})]
    names, failure = lookups.names(api, [5, -3])
    assert not names, "nobody gets another's answer"
    assert type(failure) is TransientError
    assert not re.search(f"{TOKEN}|access_token|http:|https:", str(failure))
    assert lookups.names(api, [5, -3])[0][5].nick == "anna5"


@pytest.mark.parametrize(
    "errors", named([[5], [None], [{}], {"error_code": 917}, [{"error_code": [917], "error_msg": "odd"}]])
)
def test_a_malformed_error_of_a_call(api: Api, net: Net, errors: Any) -> None:
    """A malformed error of a call is a transient failure like any other; the other calls are answered."""
    net.answers["execute"] = [inside(False, {"groups": [{"id": 3, "name": "Паб"}]}, errors=errors)]
    names, failure = lookups.names(api, [5, -3])
    assert {id: name.name for id, name in names.items()} == {-3: "Паб"}
    assert type(failure) is CallFailed


MALFORMED: list[Any] = [None, 5, True, "text", [], {}, [None, 5, "text", []]]
MALFORMED += [{"groups": 5}, {"groups": [5]}, {"items": {}}, {"items": [5]}]
MALFORMED += [[{}], {"groups": [{}]}, {"items": [{}]}, {"items": [{"peer": 5}]}]
MALFORMED += [{"items": [{"peer": {"id": CHAT + 7}, "chat_settings": settings}]} for settings in mixed(None, 5, [], {})]
MALFORMED += [
    *([{"id": id}] for id in mixed(None, "x", [])),
    *({"groups": [{"id": id}]} for id in mixed(None, "3", [])),
]
MALFORMED += [{"items": [{"peer": {"id": []}}]}, {"items": [{"conversation_message_id": []}]}]


@pytest.mark.parametrize("answer", named(MALFORMED))
def test_a_malformed_answer_of_a_call(api: Api, net: Net, answer: Any) -> None:
    """An inner answer of an undocumented form gives no names and no messages, but raises no error."""
    net.answers["execute"] = [inside(answer, answer, answer)]
    names, failure = lookups.names(api, [5, -3, CHAT + 7])
    assert failure is None
    assert {id: names[id] for id in (5, -3, CHAT + 7)} == {5: Name(), -3: Name(), CHAT + 7: Name()}
    net.answers["execute"] = [inside(answer)]
    messages, failure = lookups.full_messages(api, [(5, 1)])
    assert failure is None
    assert (5, 1) not in messages


@pytest.mark.parametrize("field", ["first_name", "last_name", "domain", "screen_name"])
@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), ("", ""), (5, "5"), ([], None), ({"a": 1}, None), (True, None)]
)
def test_a_malformed_person(api: Api, net: Net, field: str, value: Any, text: str | None) -> None:
    """Missing fields are empty, numbers become text; a malformed person has no name, and the others have theirs."""
    net.answers["execute"] = [inside([5, person(6) | {"domain": None, field: value}, person(7)])]
    names, failure = lookups.names(api, [6, 7])
    assert failure is None
    assert names[7] == Name("Анна 7-я", "Анна", "7-я", "anna7")
    known = {"first_name": "Анна", "last_name": "6-я", "domain": "", "screen_name": ""} | {field: text}
    first, last = known["first_name"], known["last_name"]
    nick = known["domain"] or known["screen_name"] or "id6"
    assert names[6] == (Name() if text is None else Name(f"{first} {last}".strip(), str(first), str(last), nick))


def test_groups_before_5_139(api: Api, net: Net) -> None:
    """Before API version 5.139 the answer is the list of communities itself."""
    net.answers["execute"] = [inside([{"id": 3, "name": "Паб", "screen_name": "pub"}])]
    assert lookups.names(api, [-3]) == ({-3: Name("Паб", "Паб", "", "pub")}, None)


# Full messages


def full(cmid: int, **more: Any) -> dict[str, Any]:
    return {"conversation_message_id": cmid, "text": f"текст {cmid}"} | more


def test_full_messages(api: Api, net: Net) -> None:
    """All are requested at once, with a call for each peer; those that VK no longer has are left out."""
    net.answers["execute"] = [inside({"items": [full(2), full(1)]}, {"count": 0, "items": []})]
    places = {(5, 1), (5, 2), (5, 3), (CHAT + 7, 1)}
    assert lookups.full_messages(api, places) == ({(5, 1): full(1), (5, 2): full(2)}, None)
    (params,) = net.params_of("execute")
    method = "messages.getByConversationMessageId"
    assert inner_calls(params["code"]) == [
        (method, {"conversation_message_ids": "1,2,3", "peer_id": 5, "lang": "ru"}),
        (method, {"conversation_message_ids": "1", "peer_id": CHAT + 7, "lang": "ru"}),
    ]


def test_many_full_messages(api: Api, net: Net) -> None:
    """A call requests at most a hundred messages, because VK takes no more."""
    net.answers["execute"] = [inside({"items": [full(1)]}, {"items": []}, {"items": [full(201)]})]
    assert lookups.full_messages(api, ((5, cmid) for cmid in range(1, 202)))[0].keys() == {(5, 1), (5, 201)}
    calls = inner_calls(net.params_of("execute")[0]["code"])
    assert [len(values["conversation_message_ids"].split(",")) for _, values in calls] == [100, 100, 1]


def test_full_messages_are_refused(api: Api, net: Net) -> None:
    """A chat whose messages are refused does not affect the others."""
    net.answers["execute"] = [
        inside({"items": [full(1)]}, False, errors=[refusal(917)]),
        inside(False, {"items": [full(2)]}, errors=[refusal(917)]),
    ]
    places = [(CHAT + 7, 1), (CHAT + 7, 2), (5, 1)]
    assert lookups.full_messages(api, places) == ({(5, 1): full(1), (CHAT + 7, 2): full(2)}, None)
    net.answers["execute"] = [error(15)]
    assert lookups.full_messages(api, [(5, 1)]) == ({}, None)


def test_full_messages_fail(api: Api, net: Net) -> None:
    """If VK fails for one chat, the full messages of other chats are still returned."""
    net.answers["execute"] = [inside({"items": [full(1)]}, False, errors=[refusal(10)])]
    messages, failure = lookups.full_messages(api, [(5, 1), (CHAT + 7, 1)])
    assert messages == {(5, 1): full(1)}
    assert type(failure) is CallFailed
    net.answers["execute"] = [error(5)]
    messages, failure = lookups.full_messages(api, [(5, 1)])
    assert not messages
    assert type(failure) is FatalError
