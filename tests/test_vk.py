"""VK through vk_api: what is sent, and what becomes of every answer. The clock is the test's own."""

import contextlib
import itertools
import json
import logging
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
import requests
import responses
import urllib3

from fetcher.builders import BUILDERS
from fetcher.errors import Fatal, Trouble, Unreadable
from fetcher.names import Name
from fetcher.vk import VK, Batch
from tests.vk import GROUP, TOKEN, error, inner_calls

CHAT = 2_000_000_000
KEY = "eyJhbGciOiJFZERTQSJ9.secret-Key.of-the-tests"
SERVER = f"https://lp.vk.ru/whp/{GROUP}"
EVENTS = {"message_new": 1, "message_event": 1, "message_reaction_event": 1}
SETTINGS = {"response": {"is_enabled": True, "api_version": "5.199", "events": EVENTS}}
START = {"response": {"key": KEY, "server": SERVER, "ts": "1000"}}
QUIET_POLL = {"ts": "1000", "updates": []}


class Clock:
    """Time that passes only in sleeps, and when a test says so."""

    def __init__(self) -> None:
        self.now = 1e6

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


class Net:
    """What VK answers: for each method of the API and for polls a list, of which the last answer stays."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.delay = 0.0  # seconds that an answer takes
        self.answers: dict[str, list[Any]] = {}
        self.answers |= {"groups.getLongPollServer": [START], "groups.getLongPollSettings": [SETTINGS]}
        self.requests: list[tuple[float, str, dict[str, str], Any]] = []  # when, what, parameters, time-out

    def answer(self, request: Any) -> tuple[int, dict[str, str], Any]:
        api = request.url.startswith("https://api.vk.ru/method/")
        name = request.url.rpartition("/")[2] if api else "poll"
        params = dict(parse_qsl(request.body, keep_blank_values=True)) if api else request.params
        self.requests.append((self.clock.now, name, params, request.req_kwargs["timeout"]))
        self.clock.now += self.delay
        answers = self.answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, tuple):
            return answer[0], {}, answer[1]
        return 200, {}, json.dumps(answer)

    def asked(self, name: str) -> list[dict[str, str]]:
        return [params for _, asked, params, _ in self.requests if asked == name]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fetcher.vk.time", clock)
    return clock


@pytest.fixture
def net(clock: Clock) -> Iterator[Net]:
    net = Net(clock)
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.add_callback(responses.POST, re.compile("https://api.vk.ru/method/"), net.answer)
        mock.add_callback(responses.GET, re.compile("https://lp.vk.ru/"), net.answer)
        yield net


@pytest.fixture
def vk(net: Net) -> VK:
    return VK(TOKEN, GROUP, 3600, BUILDERS)


@pytest.fixture
def polling(vk: VK, net: Net) -> VK:
    """A VK whose first poll and check of the settings are over."""
    net.answers["poll"] = [QUIET_POLL]
    vk.poll(vk.newest(), 25)
    vk.poll("1000", 25)
    net.requests.clear()
    return vk


def inside(*results: Any, errors: Any = None) -> dict[str, Any]:
    """Make an answer to execute."""
    return {"response": list(results)} | ({} if errors is None else {"execute_errors": errors})


def refusal(code: int, method: str = "users.get") -> dict[str, Any]:
    return {"method": method, "error_code": code, "error_msg": "Access denied"}


def person(id: int) -> dict[str, Any]:
    return {"id": id, "first_name": "Анна", "last_name": f"{id}-я", "domain": f"anna{id}"}


# What is sent


def test_every_request_has_a_time_out(vk: VK, net: Net) -> None:
    """5 seconds for the API; a poll may take 10 seconds more than its wait, but not to connect."""
    net.answers |= {"poll": [QUIET_POLL], "execute": [inside([])]}
    vk.poll(vk.newest(), 25)
    vk.poll("1000", 25)
    vk.names([5])
    vk.whole([(5, 1)])
    told = [(name, timeout) for _, name, _, timeout in net.requests]
    assert told == [
        ("groups.getLongPollServer", 5.0),
        ("poll", (5.0, 11.0)),
        ("groups.getLongPollSettings", 5.0),
        ("poll", (5.0, 35.0)),
        ("execute", 5.0),
        ("execute", 5.0),
    ]


def test_in_a_hurry(polling: VK, net: Net) -> None:
    """While Redis is away nothing waits long, and afterwards as long as ever."""
    net.answers["execute"] = [inside([])]
    for hurry in (True, False):
        polling.hurry(hurry)
        polling.poll("1000", 1)
        polling.names([5])
    assert [timeout for *_, timeout in net.requests] == [(1.5, 1.5), 1.0, (5.0, 11.0), 5.0]


def test_twenty_requests_a_second(polling: VK, net: Net) -> None:
    """Requests to the API begin at least a twentieth of a second apart; what a request has taken counts."""
    net.answers["execute"] = [inside([])]
    for net.delay in (0.0, 0.02, 0.2):
        for _ in range(45):
            polling.names([5])
    times = [time for time, name, *_ in net.requests if name == "execute"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(later - earlier > 1 for earlier, later in zip(times, times[20:], strict=False))
    assert max(gaps[:44]) < 0.06
    assert max(gaps[-44:]) < 0.201


def test_polls_need_no_pause(polling: VK, net: Net) -> None:
    """Polls do not count as requests of the API."""
    before = net.clock.now
    for _ in range(5):
        polling.poll("1000", 25)
    assert net.clock.now == before


def test_how_the_api_is_asked(polling: VK, net: Net) -> None:
    """By POST with version 5.199 and lang=ru, inside too; ids with commas; users with the fields of the nick."""
    net.answers["execute"] = [inside([], {"groups": []}, {"items": []})]
    polling.names([6, 5, -3, -4, CHAT + 7, CHAT + 8])
    (params,) = net.asked("execute")
    assert (params["v"], params["lang"], params["access_token"]) == ("5.199", "ru", TOKEN)
    calls = dict(inner_calls(params["code"]))
    assert calls["users.get"] == {"user_ids": "5,6", "lang": "ru", "fields": "domain,screen_name"}
    assert calls["groups.getById"] == {"group_ids": "4,3", "lang": "ru"}
    assert calls["messages.getConversationsById"] == {"peer_ids": f"{CHAT + 7},{CHAT + 8}", "lang": "ru"}


def test_how_a_poll_is_asked(polling: VK, net: Net) -> None:
    """With act, key, ts and wait, where VK said."""
    net.answers["poll"] = [{"ts": "1002", "updates": [1, 2]}]
    assert polling.poll("1000", 25) == Batch("1000", "1002", [1, 2])
    assert net.asked("poll") == [{"act": "a_check", "key": KEY, "ts": "1000", "wait": "25"}]


def test_nothing_is_asked_at_first(vk: VK, net: Net) -> None:
    """The server is asked for when it is needed, and once."""
    assert not net.requests
    assert vk.newest() == vk.newest() == "1000"
    assert net.asked("groups.getLongPollServer") == [
        {"group_id": str(GROUP), "lang": "ru", "v": "5.199", "access_token": TOKEN}
    ]


# Errors of the API

PASSING = [1, 6, 9, 10, 13, 14, 29, 36, 43, 995]
FATAL = [5, 27, 28, 42, 1117]
AT_START = [15, 100, 125]
OTHER = [3, 7, 17, 18, 30, 203, 917, 4242]


@pytest.mark.parametrize("code", PASSING + OTHER)
def test_start_fails_and_passes(vk: VK, net: Net, code: int) -> None:
    """These errors pass: the loop tries again."""
    net.answers["groups.getLongPollServer"] = [error(code, "Why"), START]
    with pytest.raises(Trouble, match=f"{code} in groups.getLongPollServer: Why"):
        vk.newest()
    net.clock.now += 120
    assert vk.newest() == "1000"


@pytest.mark.parametrize("code", FATAL + AT_START)
def test_fatal_at_start(vk: VK, net: Net, code: int) -> None:
    """These errors only the operator can mend: a sentence says how, with VK's own words."""
    net.answers["groups.getLongPollServer"] = [error(code, "Why")]
    with pytest.raises(Fatal, match=rf"\w+.*\(VK error {code} in groups.getLongPollServer: Why\)"):
        vk.newest()


def test_an_error_that_quotes_the_token(vk: VK, net: Net) -> None:
    """VK's own words are told without it."""
    net.answers["groups.getLongPollServer"] = [error(5, f"User authorization failed: {TOKEN} is no token")]
    with pytest.raises(Fatal, match=r"User authorization failed: \*\*\* is no token\)"):
        vk.newest()


def test_long_poll_is_off(vk: VK, net: Net) -> None:
    """Long Poll switched off is fatal, by whatever code VK tells it."""
    net.answers["groups.getLongPollServer"] = [error(4242, "longpoll for this group is not enabled")]
    with pytest.raises(Fatal, match="Long Poll"):
        vk.newest()


@pytest.mark.parametrize("code", FATAL)
@pytest.mark.parametrize("method", ["execute", "groups.getLongPollSettings"])
def test_fatal_later(vk: VK, net: Net, code: int, method: str) -> None:
    """A token that VK refuses is fatal whenever it does."""
    net.answers |= {"poll": [QUIET_POLL], method: [error(code)]}
    vk.poll("1000", 25)
    with pytest.raises(Fatal, match=str(code)):
        vk.poll("1000", 25) if method != "execute" else vk.names([5])


@pytest.mark.parametrize(
    ("code", "within"), [(code, within) for code in PASSING for within in (False, True) if within or code != 13]
)
def test_names_fail_and_pass(polling: VK, net: Net, code: int, within: bool) -> None:
    """A passing error fails the whole look-up, also when it befell one call inside."""
    failing = inside([person(5)], False, errors=[refusal(code)]) if within else error(code)
    net.answers["execute"] = [failing, inside([person(5)], {"groups": [{"id": 3, "name": "Паб"}]})]
    with pytest.raises(Trouble, match=str(code)):
        polling.names([5, -3])
    net.clock.now += 120
    assert {id: name.name for id, name in polling.names([5, -3]).items()} == {5: "Анна 5-я", -3: "Паб"}


@pytest.mark.parametrize("code", AT_START + OTHER)
def test_names_refused(polling: VK, net: Net, code: int) -> None:
    """Any other error about names leaves them empty, whether it is an answer's or a call's."""
    net.answers["execute"] = [error(code)]
    assert polling.names([5]) == {5: Name()}
    net.answers["execute"] = [inside(False, errors=[refusal(code)])]
    assert polling.names([5]) == {5: Name()}
    assert len(net.requests) == 2


@pytest.mark.parametrize("code", FATAL)
def test_refused_inside(polling: VK, net: Net, code: int) -> None:
    """About one person even an error about the token is only about that person."""
    net.answers["execute"] = [inside(False, [], errors=[refusal(code)])]
    assert polling.names([5, -3]) == {5: Name(), -3: Name()}


@pytest.mark.parametrize("code", [9, 14, 29])
def test_a_pause_that_vk_wants(polling: VK, net: Net, code: int) -> None:
    """After 9, 14 and 29 nothing is asked for a while: seconds at first, up to a minute at last, then as ever."""
    captcha = {"captcha_sid": "1", "captcha_img": "https://api.vk.ru/captcha.php?sid=1"}
    net.answers["execute"] = [{"error": error(code)["error"] | captcha}]
    pauses = []
    for _ in range(10):
        begun = net.clock.now
        while len(net.requests) == len(pauses):
            with pytest.raises(Trouble):
                polling.names([5])
            net.clock.now += 0.25
        pauses.append(net.clock.now - begun)
    assert max(pauses[:2]) < 3
    assert all(25 < pause < 62 for pause in pauses[-3:])
    net.clock.now += 62
    net.answers["execute"] = [inside([person(5)]), error(code)]
    polling.names([5])
    net.clock.now += 1
    with pytest.raises(Trouble):
        polling.names([5])
    net.clock.now += 3
    net.answers["execute"] = [inside([person(5)])]
    assert polling.names([5])[5].name, "the next trouble begins with a short pause again"


def test_polls_go_on_in_a_pause(polling: VK, net: Net) -> None:
    """The pause is the API's: VK's long poll is asked all the same."""
    net.answers["execute"] = [error(29)]
    with pytest.raises(Trouble):
        polling.names([5])
    assert polling.poll("1000", 25).updates == []


def test_too_big(polling: VK, net: Net) -> None:
    """Error 13 of execute: it is asked again in smaller parts, until each asks for one only."""
    net.answers["execute"] = [error(13), inside([person(1)], [person(2)], [person(3)])]
    assert [name.nick for name in polling.names([1, 2, 3]).values()] == ["anna1", "anna2", "anna3"]
    assert len(net.requests) == 2
    net.answers["execute"] = [error(13), error(13), inside([person(1)]), inside([person(2)])]
    assert [name.nick for name in polling.names([1, 2]).values()] == ["anna1", "anna2"]
    net.answers["execute"] = [error(13)]
    with pytest.raises(Trouble, match="13"):
        polling.names([5])


# Odd answers of the API

BROKEN = [
    requests.ConnectionError(f"/method/execute?access_token={TOKEN}"),
    requests.ConnectTimeout(TOKEN),
    requests.ReadTimeout(TOKEN),
    requests.exceptions.ChunkedEncodingError(TOKEN),
    requests.exceptions.SSLError(TOKEN),
    requests.TooManyRedirects(TOKEN),
    urllib3.exceptions.ProtocolError(TOKEN),
    urllib3.exceptions.LocationParseError(TOKEN),
    OSError(TOKEN),
    UnicodeError(TOKEN),
    (500, "{}"),
    (502, f"<html>{TOKEN}</html>"),
    (401, "{}"),
    (200, f"<html>{TOKEN}</html>"),
    (200, ""),
    (200, '{"response": [' + "1," * 10),
    (200, "[" * 100_000),
    (200, b"\xff\xfe\x00"),
]
NO_ANSWERS = [None, 5, "text", [], {}, {"error": None}, {"error": 5}, {"error": []}, {"error": {}}]
NO_ANSWERS += [{"error": {"error_msg": "no code"}}, {"error": {"error_code": [5]}}]


def named(values: list[Any]) -> list[Any]:
    return [pytest.param(value, id=f"{number} {str(value)[:20]!r}") for number, value in enumerate(values)]


@pytest.mark.parametrize("answer", named(BROKEN + NO_ANSWERS))
@pytest.mark.parametrize("method", ["groups.getLongPollServer", "execute", "groups.getLongPollSettings"])
def test_api_is_broken(vk: VK, net: Net, method: str, answer: Any, caplog: Any) -> None:
    """What is no answer is trouble that passes, told without a secret; for the settings it is not even that."""
    caplog.set_level(logging.DEBUG, "fetcher")
    net.answers |= {"poll": [QUIET_POLL], "execute": [inside([])], method: [answer]}
    troubles = []
    for ask in (vk.newest, lambda: vk.poll("1000", 25), lambda: vk.poll("1000", 25), lambda: vk.names([5])):
        try:
            ask()
        except Trouble as trouble:
            troubles.append(trouble)
        if method == "groups.getLongPollServer":
            break
    assert [type(trouble) for trouble in troubles] == [Trouble] * (method != "groups.getLongPollSettings")
    for trouble in troubles:
        assert trouble.__suppress_context__
        assert not re.search(f"{TOKEN}|access_token|http:|https:", str(trouble))
    assert not re.search(f"{TOKEN}|access_token|http:|https:", caplog.text)


SERVERS = [None, [], 5, {}, {"key": KEY, "server": SERVER}, {"key": KEY, "ts": "1"}, {"server": SERVER, "ts": "1"}]
SERVERS += [{"key": KEY, "server": SERVER, "ts": ts} for ts in (None, "", "abc", -1, 1.5, True, [], {}, "1 ", "٣")]
SERVERS += [{"key": KEY, "server": server, "ts": "1"} for server in (None, "", 5, [], "lp.vk.ru/whp/1")]


@pytest.mark.parametrize("server", named(SERVERS))
def test_server_is_odd(vk: VK, net: Net, server: Any) -> None:
    """A key, a server or a ts that is missing or of a wrong kind is trouble, and the next answer is taken."""
    net.answers["groups.getLongPollServer"] = [{"response": server}, START]
    with pytest.raises(Trouble):
        vk.newest()
    assert vk.newest() == "1000"


@pytest.mark.parametrize(("ts", "newest"), [("0", "0"), (1000, "1000"), ("9" * 25, "9" * 25)])
def test_server_is_good(vk: VK, net: Net, ts: Any, newest: str) -> None:
    """A ts may be a number or text, of any length."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": ts}}]
    assert vk.newest() == newest


POOLS = [
    *({"response": response} for response in (None, 5, True, "text", {}, {"0": []}, [], [[]], [[], {}, [], []])),
    inside(False, {}),
    inside(False, False, errors=[refusal(917)]),
    inside(False, {}, errors=[5]),
    inside(False, {}, errors=5),
    inside(False, {}, errors={"error_code": 917}),
    inside(False, {}, errors=[{"error_code": [917], "error_msg": "odd"}]),
]


@pytest.mark.parametrize("pool", named(POOLS))
def test_pool_is_odd(polling: VK, net: Net, pool: Any) -> None:
    """An answer of execute that is not of its form is trouble that passes; nobody gets another's answer."""
    net.answers["execute"] = [pool, inside([person(5)], {"groups": [{"id": 3, "name": "Паб"}]})]
    with pytest.raises(Trouble):
        polling.names([5, -3])
    assert polling.names([5, -3])[5].nick == "anna5"


ODD = [None, 5, True, "text", [], {}, [None, 5, "text", []]]
ODD += [{"groups": 5}, {"groups": [5]}, {"items": {}}, {"items": [5]}]
ODD += [[{}], {"groups": [{}]}, {"items": [{}]}, {"items": [{"peer": 5}]}]
ODD += [{"items": [{"peer": {"id": CHAT + 7}, "chat_settings": settings}]} for settings in (None, 5, [], {})]
ODD_IDS = [*([{"id": id}] for id in (None, "x", [])), *({"groups": [{"id": id}]} for id in (None, "3", []))]
ODD_IDS += [{"items": [{"peer": {"id": []}}]}, {"items": [{"conversation_message_id": []}]}]


@pytest.mark.parametrize("answer", named(ODD + ODD_IDS))
def test_call_is_odd(polling: VK, net: Net, answer: Any) -> None:
    """What a call inside answers in another form than documented names nobody, or is trouble; never a bug of ours."""
    net.answers["execute"] = [inside(answer, answer, answer)]
    names = {5: Name(), -3: Name(), CHAT + 7: Name()}
    with contextlib.suppress(Trouble):
        assert polling.names(names) == names
    net.answers["execute"] = [inside(answer)]
    with contextlib.suppress(Trouble):
        assert not polling.whole([(5, 1)]).get((5, 1))


@pytest.mark.parametrize("field", ["first_name", "last_name", "domain", "screen_name"])
@pytest.mark.parametrize("value", [None, 5, [], {"a": 1}, True])
def test_person_is_odd(polling: VK, net: Net, field: str, value: Any) -> None:
    """A name of a wrong kind is empty."""
    net.answers["execute"] = [inside([person(5) | {field: value}])]
    name = polling.names([5])[5]
    assert all(isinstance(part, str) for part in name)
    assert name.nick == ("id5" if field == "domain" else "anna5")


def test_groups_before_5_139(polling: VK, net: Net) -> None:
    """Communities may come as the list itself."""
    net.answers["execute"] = [inside([{"id": 3, "name": "Паб", "screen_name": "pub"}])]
    assert polling.names([-3]) == {-3: Name("Паб", "Паб", "", "pub")}


# Who is refused, among others


def test_refused_ids_are_split(polling: VK, net: Net) -> None:
    """Of a call that is refused for several each is asked for once more; the calls that were answered are not."""
    chats = {"items": [{"peer": {"id": CHAT + 7}, "chat_settings": {"title": "Беседа"}}]}
    net.answers["execute"] = [
        inside([person(5)], False, errors=[refusal(917)]),
        inside(chats, False, errors=[refusal(917)]),
    ]
    names = polling.names([5, CHAT + 7, CHAT + 8])
    assert names == {5: Name("Анна 5-я", "Анна", "5-я", "anna5"), CHAT + 7: Name("Беседа"), CHAT + 8: Name()}
    first, second = (inner_calls(params["code"]) for params in net.asked("execute"))
    assert [values["peer_ids"] for method, values in first if "peer_ids" in values] == [f"{CHAT + 7},{CHAT + 8}"]
    assert [values["peer_ids"] for method, values in second] == [str(CHAT + 7), str(CHAT + 8)]
    assert all(values["lang"] == "ru" for _, values in second)


def test_trouble_among_refusals(polling: VK, net: Net) -> None:
    """Trouble in the second request is trouble: no name is taken for unknown because of it."""

    refused, failed = refusal(917), refusal(10)
    net.answers["execute"] = [inside(False, errors=[refused]), inside(False, False, errors=[refused, failed])]
    with pytest.raises(Trouble, match="10"):
        polling.names([CHAT + 7, CHAT + 8])


# Whole messages


def whole(cmid: int, **more: Any) -> dict[str, Any]:
    return {"conversation_message_id": cmid, "text": f"текст {cmid}"} | more


def test_whole_messages(polling: VK, net: Net) -> None:
    """All are asked for in one request, a call for each peer; those that VK has no more are left out."""
    net.answers["execute"] = [inside({"items": [whole(2), whole(1)]}, {"count": 0, "items": []})]
    assert polling.whole([(5, 1), (5, 2), (5, 3), (CHAT + 7, 1)]) == {(5, 1): whole(1), (5, 2): whole(2)}
    (params,) = net.asked("execute")
    method = "messages.getByConversationMessageId"
    assert inner_calls(params["code"]) == [
        (method, {"conversation_message_ids": "1,2,3", "peer_id": 5, "lang": "ru"}),
        (method, {"conversation_message_ids": "1", "peer_id": CHAT + 7, "lang": "ru"}),
    ]


def test_many_whole_messages(polling: VK, net: Net) -> None:
    """VK takes a hundred numbers in a call."""
    net.answers["execute"] = [inside({"items": [whole(1)]}, {"items": []}, {"items": [whole(201)]})]
    assert polling.whole([(5, cmid) for cmid in range(1, 202)]).keys() == {(5, 1), (5, 201)}
    calls = inner_calls(net.asked("execute")[0]["code"])
    assert [len(values["conversation_message_ids"].split(",")) for _, values in calls] == [100, 100, 1]


def test_whole_messages_are_refused(polling: VK, net: Net) -> None:
    """A chat that refuses its messages leaves those of the others alone."""
    net.answers["execute"] = [
        inside({"items": [whole(1)]}, False, errors=[refusal(917)]),
        inside(False, {"items": [whole(2)]}, errors=[refusal(917)]),
    ]
    assert polling.whole([(CHAT + 7, 1), (CHAT + 7, 2), (5, 1)]) == {(5, 1): whole(1), (CHAT + 7, 2): whole(2)}
    net.answers["execute"] = [error(15)]
    assert polling.whole([(5, 1)]) == {}


# The long poll


@pytest.mark.parametrize(
    ("answer", "batch"),
    [
        ({"ts": "1002", "updates": [{"type": "a"}, None]}, Batch("1000", "1002", [{"type": "a"}, None])),
        ({"ts": 1001, "updates": [5]}, Batch("1000", "1001", [5])),
        ({"ts": "1000", "updates": []}, Batch("1000", "1000", [])),
        ({"ts": "1000", "updates": [], "pts": 5, "more": None}, Batch("1000", "1000", [])),
        ((200, b'\xef\xbb\xbf{"ts": "1001", "updates": [1]}'), Batch("1000", "1001", [1])),
        ((200, b'{"ts": "1001", "updates": ["\xd0\xd0\xb0"]}'), Batch("1000", "1001", ["\ufffdа"])),
        ((200, '{"ts": "1001", "updates": ["\\ud83d\\ude00 \\ud83d"]}'), Batch("1000", "1001", ["😀 \ud83d"])),
    ],
)
def test_poll(polling: VK, net: Net, answer: Any, batch: Batch) -> None:
    """The updates are handed out as they are, with the place where they begin and end."""
    net.answers["poll"] = [answer]
    assert polling.poll("1000", 25) == batch


UNREADABLE = [
    *(None, 5, "text", [], {}, {"updates": []}, {"ts": "1001"}),
    *({"ts": "1001", "updates": updates} for updates in (None, {}, "text", 5)),
    *({"ts": ts, "updates": []} for ts in (None, "", "abc", -1, 1.5, True, [], "1 ", "٣")),
    *({"ts": "1001", "updates": [], "failed": failed} for failed in (0, 4, -1, "1", None, [], {})),
    *({"failed": 4, "min_version": 0, "max_version": 19}, {"failed": 1}, {"failed": 1, "ts": "new"}),
    *((200, "<html>"), (200, ""), (200, '{"ts": "1001", "updates": [{"type":'), (200, "[" * 100_000)),
    *((status, '{"ts": "1001", "updates": []}') for status in (201, 400, 403, 404, 429, 500, 502)),
]


@pytest.mark.parametrize("answer", named(UNREADABLE))
def test_poll_is_unreadable(polling: VK, net: Net, answer: Any) -> None:
    """An answer that is not of its form is asked for again at the same place."""
    net.answers["poll"] = [answer, {"ts": "1001", "updates": [5]}]
    with pytest.raises(Unreadable) as told:
        polling.poll("1000", 25)
    assert not re.search(f"http|{KEY}", str(told.value))
    assert polling.poll("1000", 25) == Batch("1000", "1001", [5])


@pytest.mark.parametrize("failure", named([failure for failure in BROKEN if isinstance(failure, Exception)]))
def test_poll_is_broken(polling: VK, net: Net, failure: Exception) -> None:
    """The network's failures pass, and are told without the key."""
    net.answers["poll"] = [type(failure)(f"{SERVER}?key={KEY}"), {"ts": "1001", "updates": [5]}]
    with pytest.raises(Trouble) as told:
        polling.poll("1000", 25)
    assert type(told.value) is Trouble
    assert not re.search(f"http|{KEY}", str(told.value))
    assert polling.poll("1000", 25) == Batch("1000", "1001", [5])


def test_failed_1(polling: VK, net: Net) -> None:
    """The history is gone: a gap up to VK's new ts, under the same key."""
    net.answers["poll"] = [{"failed": 1, "ts": 2593}]
    gap = polling.poll("1000", 25)
    assert (gap.since, gap.until, gap.updates, gap.again) == ("1000", "2593", [], False)
    assert "failed 1" in gap.error
    assert not net.asked("groups.getLongPollServer")


def test_failed_2(polling: VK, net: Net) -> None:
    """The key has expired: a new key and server, the same ts, and no gap."""
    server = SERVER + "0"
    net.answers["groups.getLongPollServer"] = [{"response": {"key": "new", "server": server, "ts": "2000"}}]
    net.answers["poll"] = [{"failed": 2}, {"ts": "1001", "updates": [5]}]
    assert polling.poll("1000", 25) == Batch("1000", "1000", [])
    assert polling.poll("1000", 25) == Batch("1000", "1001", [5])
    assert [(params["key"], params["ts"]) for params in net.asked("poll")] == [(KEY, "1000"), ("new", "1000")]
    assert polling.longpoll.url == server


def test_failed_3(polling: VK, net: Net) -> None:
    """The information is lost: a new key, and a gap up to VK's newest ts."""
    net.answers["groups.getLongPollServer"] = [{"response": {"key": "new", "server": SERVER, "ts": "2000"}}]
    net.answers["poll"] = [{"failed": 3}]
    gap = polling.poll("1000", 25)
    assert (gap.since, gap.until, gap.updates, gap.again) == ("1000", "2000", [], False)
    assert "failed 3" in gap.error


@pytest.mark.parametrize("failed", [1, 2, 3])
def test_failed_again(polling: VK, net: Net, failed: int) -> None:
    """That VK fails twice running is told, for the loop to pause."""
    net.answers["poll"] = [*([{"failed": failed, "ts": 1000}] * 3), QUIET_POLL, {"failed": failed, "ts": 1000}]
    assert [polling.poll("1000", 25).again for _ in range(5)] == [False, True, True, False, False]


def test_failed_2_and_no_new_key(polling: VK, net: Net) -> None:
    """While VK gives no new key, the old one is not given up, and a new one is asked for with the next poll."""
    net.answers["poll"] = [{"failed": 2}, {"failed": 2}, {"ts": "1001", "updates": [5]}]
    net.answers["groups.getLongPollServer"] = [error(10), START]
    with pytest.raises(Trouble, match="10"):
        polling.poll("1000", 25)
    assert polling.poll("1000", 25).updates == []
    assert polling.poll("1000", 25).updates == [5]


# Places that cannot be read


def test_jump(polling: VK, net: Net) -> None:
    """What is unreadable for ten minutes at one ts is left behind, if a fresh ts can be read; the gap is told."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "2000"}}]
    net.answers["poll"] = [(200, "<html>")]
    begun = net.clock.now
    while net.clock.now < begun + 599:
        with pytest.raises(Unreadable):
            polling.poll("1000", 25)
        net.clock.now += 30
    assert not [params for params in net.asked("poll") if params["ts"] != "1000"]
    net.clock.now = begun + 601
    net.answers["poll"] = [(200, "<html>"), {"ts": "2000", "updates": []}]
    gap = polling.poll("1000", 25)
    assert (gap.since, gap.until, gap.updates) == ("1000", "2000", [])
    assert gap.error


def test_no_jump_where_all_is_unreadable(polling: VK, net: Net) -> None:
    """If the fresh ts is unreadable too, it is not VK's answer there that is wrong: no jump, one more try a minute."""
    net.answers["poll"] = [(502, "")]
    for _ in range(60):
        with pytest.raises(Unreadable):
            polling.poll("900", 25)
        net.clock.now += 15
    tries = [params for params in net.asked("poll") if params["ts"] == "1000"]
    assert 4 <= len(tries) <= 6, "of the five minutes behind the first ten"


@pytest.mark.parametrize("answer", [(404, ""), (200, "<html>moved</html>")])
def test_the_server_has_moved(polling: VK, net: Net, answer: Any) -> None:
    """An old server that answers nothing readable is left after a minute, and nothing is lost: it was not the ts."""
    net.answers["poll"] = [answer, answer, {"ts": "1002", "updates": [1, 2]}]
    moved = START["response"] | {"server": "https://lp.vk.ru/new", "ts": "1002"}
    net.answers["groups.getLongPollServer"] = [{"response": moved}]
    for _ in range(2):
        with pytest.raises(Unreadable):
            polling.poll("1000", 25)
        assert polling.longpoll.url != "https://lp.vk.ru/new"
        net.clock.now += 31
    assert polling.poll("1000", 25) == Batch("1000", "1002", [1, 2])
    assert polling.longpoll.url == "https://lp.vk.ru/new"


def test_no_jump_at_another_place(polling: VK, net: Net) -> None:
    """The ten minutes begin anew at another ts, and after an answer that could be read."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "2000"}}]
    for ts in ("1000", "1001"):
        net.answers["poll"] = [(502, "")]
        for _ in range(20):
            with pytest.raises(Unreadable):
                polling.poll(ts, 25)
            net.clock.now += 29
    net.answers["poll"] = [{"ts": "1001", "updates": []}, (502, "")]
    polling.poll("1001", 25)
    net.clock.now += 29
    with pytest.raises(Unreadable):
        polling.poll("1001", 25)
    assert "2000" not in [params["ts"] for params in net.asked("poll")]


# A new key in time


def test_renewed_in_silence(polling: VK, net: Net) -> None:
    """After an hour without an update the key is renewed, at the same ts; updates put it off."""
    net.answers["groups.getLongPollServer"] = [{"response": {"key": "new", "server": SERVER, "ts": "2000"}}]
    net.clock.now += 3500
    net.answers["poll"] = [{"ts": "1001", "updates": [5]}, {"ts": "1001", "updates": []}]
    polling.poll("1000", 25)
    net.clock.now += 3500
    polling.poll("1001", 25)
    assert not net.asked("groups.getLongPollServer")
    net.clock.now += 101
    assert polling.poll("1001", 25) == Batch("1001", "1001", [])
    assert (net.asked("poll")[-1]["key"], net.asked("poll")[-1]["ts"]) == ("new", "1001")


def test_renewal_fails(polling: VK, net: Net) -> None:
    """Without a new key the old one serves; a new one is tried for once a minute."""
    net.answers["groups.getLongPollServer"] = [error(10)]
    net.clock.now += 3601
    with pytest.raises(Trouble):
        polling.poll("1000", 25)
    assert polling.poll("1000", 25).updates == []
    net.clock.now += 61
    with pytest.raises(Trouble):
        polling.poll("1000", 25)


def test_server_has_moved(polling: VK, net: Net) -> None:
    """When the long poll's server is away, another one is asked for after a minute."""
    net.answers["poll"] = [requests.ConnectionError()]
    for _ in range(9):
        with pytest.raises(Trouble):
            polling.poll("1000", 25)
        net.clock.now += 10
    assert len(net.asked("groups.getLongPollServer")) == 1


# The settings, checked once


def test_first_poll_is_short(vk: VK, net: Net) -> None:
    """The first poll waits one second, so that the settings are checked soon; all others as long as they may."""

    net.answers["poll"] = [QUIET_POLL]
    vk.newest()
    for _ in range(3):
        vk.poll("1000", 25)
    assert [params["wait"] for params in net.asked("poll")] == ["1", "25", "25"]
    assert [name for _, name, *_ in net.requests][:3] == [
        "groups.getLongPollServer",
        "poll",
        "groups.getLongPollSettings",
    ]
    assert len(net.asked("groups.getLongPollSettings")) == 1


def settings(vk: VK, net: Net, caplog: Any, answer: Any) -> list[str]:
    """Tell the warnings that the settings give."""
    caplog.set_level(logging.INFO, "fetcher")
    net.answers |= {"poll": [QUIET_POLL], "groups.getLongPollSettings": [answer]}
    vk.poll("1000", 25)
    vk.poll("1000", 25)
    return [record.getMessage() for record in caplog.records]


def test_settings_are_right(vk: VK, net: Net, caplog: Any) -> None:
    """Nothing is said where nothing is wrong."""
    assert settings(vk, net, caplog, SETTINGS) == []


@pytest.mark.parametrize("off", [False, 0])
def test_settings_off(vk: VK, net: Net, caplog: Any, off: Any) -> None:
    """Long Poll switched off is fatal."""
    with pytest.raises(Fatal, match="switch it on"):
        settings(vk, net, caplog, {"response": SETTINGS["response"] | {"is_enabled": off}})


@pytest.mark.parametrize("version", ["5.103", "5.200", "6.0", "5.102", "5.80"])
def test_settings_version(vk: VK, net: Net, caplog: Any, version: str) -> None:
    """Before 5.103 the answers were of another form: a warning tells what to set."""
    warnings = settings(vk, net, caplog, {"response": SETTINGS["response"] | {"api_version": version}})
    assert len(warnings) == (version in ("5.102", "5.80"))
    assert all(version in warning and "5.199" in warning for warning in warnings)


def test_settings_types(vk: VK, net: Net, caplog: Any) -> None:
    """A warning names the types that are not ticked, and no other."""
    events = {"message_new": 1, "message_event": 0, "message_reply": 0}
    (warning,) = settings(vk, net, caplog, {"response": SETTINGS["response"] | {"events": events}})
    assert re.findall(r"message_\w+", warning) == ["message_event", "message_reaction_event"]


@pytest.mark.parametrize(
    "answer",
    named([error(15), error(10), error(100), {"response": {}}, {"response": []}, {"response": {"is_enabled": True}}]
    + [{"response": SETTINGS["response"] | odd} for odd in ({"api_version": "new"}, {"events": []}, {"events": None})]),
)  # fmt: skip
def test_settings_untold(vk: VK, net: Net, caplog: Any, answer: Any) -> None:
    """Where VK does not answer this question, the fetcher goes on."""
    assert settings(vk, net, caplog, answer) == []
    assert vk.poll("1000", 25).updates == []
