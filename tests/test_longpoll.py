"""The long poll: what is requested and what each answer means, unreadable places, keys, and VK's settings."""

import contextlib
import itertools
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3

from fetcher.core.history import Answer
from fetcher.errors import FatalError, MalformedResponse, TransientError
from fetcher.vk.api import Api
from fetcher.vk.builders import BUILDERS
from fetcher.vk.longpoll import LongPoll
from tests.net import (
    BROKEN,
    FATAL_AT_START_CODES,
    FATAL_CODES,
    KEY,
    NO_ANSWERS,
    OTHER_CODES,
    QUIET_POLL,
    SERVER,
    SETTINGS,
    START,
    TRANSIENT_CODES,
    Metrics,
    Net,
    mixed,
    named,
)
from tests.vk import GROUP, TOKEN, error

NEW_KEY = {"response": {"key": "new", "server": SERVER, "ts": "2000"}}
HTML = (200, "<html>")


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as net:
        net.answers["poll"] = [QUIET_POLL]
        yield net


@pytest.fixture
def longpoll(net: Net) -> LongPoll:
    return LongPoll(Api(TOKEN, Metrics()), GROUP, 3600)


@pytest.fixture
def polling(longpoll: LongPoll, net: Net) -> LongPoll:
    """A long poll after its first poll and the check of the settings."""
    longpoll.poll(longpoll.renew(), 25)
    longpoll.poll(1000, 25)
    net.clock.now += 1
    net.requests.clear()
    return longpoll


def without_size(answer: Answer, polled: int = 1000) -> list[tuple[Any, ...]]:
    """Return the gap in an answer, if there is one, and the answer without its size."""
    return [(polled, answer.since, answer.gap)] * bool(answer.gap) + [answer[:3]]


def empty(answer: Answer) -> bool:
    return without_size(answer) == [(1000, 1000, [])]


def server_of(longpoll: LongPoll) -> str:
    """Return the address that is polled."""
    return str(longpoll.server.url)


def keys(net: Net) -> list[tuple[str, str]]:
    """Return the key and the ts of each poll."""
    return [(params["key"], params["ts"]) for params in net.params_of("poll")]


# What is requested


def test_creating_the_long_poll_sends_no_request(longpoll: LongPoll, net: Net) -> None:
    """The server is not requested before it is needed."""
    assert not net.requests
    assert longpoll.renew() == 1000
    assert net.params_of("groups.getLongPollServer") == [
        {"group_id": str(GROUP), "lang": "ru", "v": "5.199", "access_token": TOKEN}
    ]


def test_parameters_of_a_poll(polling: LongPoll, net: Net) -> None:
    """A poll sends act, key, ts and wait to VK's server."""
    net.answers["poll"] = [{"ts": "1002", "updates": [1, 2]}]
    assert polling.poll(1000, 25) == Answer(1000, 1002, [1, 2], len('{"ts": "1002", "updates": [1, 2]}'))
    assert net.params_of("poll") == [{"act": "a_check", "key": KEY, "ts": "1000", "wait": "25"}]


def test_a_poll_with_wait_0_is_abandoned_if_it_is_held_back(polling: LongPoll, net: Net) -> None:
    """A poll with wait 0 asks VK not to wait; an answer that takes longer than a second counts as empty."""
    pool: Any = None
    for late in (requests.ReadTimeout(), urllib3.exceptions.ReadTimeoutError(pool, "", "")):  # before or during it
        net.answers["poll"] = [{"ts": "1002", "updates": [1, 2]}, late]
        assert polling.poll(1000, 25).until == 1002
        assert polling.poll(1002, 0) == Answer(1002, 1002, [])
    assert net.timeouts()[-1] == ("poll", (5.0, 1.0))
    assert net.params_of("poll")[-1]["wait"] == "0"
    net.clock.now += 11
    polling.poll(1002, 0)
    assert not net.params_of("groups.getLongPollServer"), "nothing is wrong with this key"


def test_an_abandoned_poll_proves_nothing(polling: LongPoll, net: Net) -> None:
    """A poll with wait 0 that is abandoned at the lower ts of a key does not confirm that ts."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "30"}}]
    polling.renew()
    net.clock.now += 11
    net.answers["poll"] = [requests.ReadTimeout()]
    assert polling.poll(1000, 0) == Answer(1000, 1000, [])


def test_polls_need_no_pause(polling: LongPoll, net: Net) -> None:
    """Polls do not count towards the rate limit of the API."""
    before = net.clock.now
    net.answers["poll"] = [{"ts": "1001", "updates": [5]}]
    for _ in range(5):
        polling.poll(1000, 25)
    assert net.clock.now == before


def test_immediate_empty_answers_slow_down_the_polls(polling: LongPoll, net: Net) -> None:
    """If VK or a proxy answers at once that nothing is new, there are five polls a second, not thousands."""
    before = net.clock.now
    for _ in range(50):
        assert empty(polling.poll(1000, 25))
    assert 9.9 <= net.clock.now - before <= 10.1
    net.answers["poll"] = [{"ts": str(ts), "updates": []} for ts in range(1001, 1051)]
    before = net.clock.now
    for ts in range(1000, 1050):
        polling.poll(ts, 25)
    assert 9.9 <= net.clock.now - before <= 10.1, "also if VK's ts moves on"
    net.answers["poll"] = [QUIET_POLL]
    net.delay, before = 0.5, net.clock.now
    polling.poll(1000, 25)
    assert net.clock.now == before + 0.5, "what VK holds back is not delayed any more"


def test_every_request_has_a_timeout(longpoll: LongPoll, net: Net) -> None:
    """API requests time out after 5 seconds; polls after 10 seconds more than their wait, or 5 seconds to connect."""
    longpoll.poll(longpoll.renew(), 25)
    longpoll.poll(1000, 25)
    assert net.timeouts() == [
        ("groups.getLongPollServer", 5.0),
        ("poll", (5.0, 11.0)),
        ("groups.getLongPollSettings", 5.0),
        ("poll", (5.0, 35.0)),
    ]


def test_polls_go_on_in_a_pause(polling: LongPoll, net: Net) -> None:
    """Polls go on while API requests pause."""
    net.answers["users.get"] = [error(29)]
    with pytest.raises(TransientError):
        polling.api.method("users.get")
    assert empty(polling.poll(1000, 25))


def test_a_new_key_in_a_pause(polling: LongPoll, net: Net) -> None:
    """If the key expires while VK limits other requests, a new key is requested, and polls go on."""
    net.answers["execute"] = [error(29)]
    for _ in range(9):
        net.clock.now += 62
        with pytest.raises(TransientError):
            polling.api.method("execute")
    net.answers["poll"] = [{"failed": 2}, QUIET_POLL]
    assert empty(polling.poll(1000, 25))
    assert len(net.params_of("groups.getLongPollServer")) == 1
    net.clock.now += 1
    with pytest.raises(TransientError, match="pause"):
        polling.api.method("execute")


def test_a_redirect_of_a_poll(polling: LongPoll, net: Net) -> None:
    """A redirect of a poll is followed, because a poll has all its parameters in its address."""
    net.answers["poll"] = [(301, "", ("Location", f"{SERVER}?new=1")), QUIET_POLL]
    assert empty(polling.poll(1000, 25))
    assert [params.get("new") for params in net.params_of("poll")] == [None, "1"]


# The server and its key


@pytest.mark.parametrize("code", FATAL_CODES + FATAL_AT_START_CODES)
def test_fatal_at_start(longpoll: LongPoll, net: Net, code: int) -> None:
    """Only the operator can fix these errors: a sentence says how, with VK's own words."""
    net.answers["groups.getLongPollServer"] = [error(code, "Why")]
    with pytest.raises(FatalError, match=rf"\w+.*\(VK error {code} in groups.getLongPollServer: Why\)"):
        longpoll.renew()


@pytest.mark.parametrize("code", TRANSIENT_CODES + OTHER_CODES)
def test_errors_at_the_start_are_transient(longpoll: LongPoll, net: Net, code: int) -> None:
    """These errors are transient: the loop requests the server again."""
    net.answers["groups.getLongPollServer"] = [error(code, "Why"), START]
    with pytest.raises(TransientError, match=f"{code} in groups.getLongPollServer: Why"):
        longpoll.renew()
    net.clock.now += 120
    assert longpoll.renew() == 1000


@pytest.mark.parametrize("answer", named(BROKEN + NO_ANSWERS))
def test_no_answer_at_the_start(longpoll: LongPoll, net: Net, answer: Any) -> None:
    """A missing or unreadable answer is a transient error that contains no secret."""
    net.answers["groups.getLongPollServer"] = [answer, START]
    with pytest.raises(TransientError) as raised:
        longpoll.renew()
    assert type(raised.value) is TransientError
    assert raised.value.__suppress_context__
    assert not re.search(f"{TOKEN}|access_token|http:|https:", str(raised.value))
    assert longpoll.renew() == 1000


SERVERS: list[Any] = [
    None,
    [],
    5,
    {},
    {"key": KEY, "server": SERVER},
    {"key": KEY, "ts": "1"},
    {"server": SERVER, "ts": "1"},
]
SERVERS += [{"key": KEY, "server": SERVER, "ts": ts} for ts in mixed(None, "", "abc", -1, 1.5, True, [], {}, "1 ", "٣")]


@pytest.mark.parametrize("server", named(SERVERS))
def test_a_malformed_server(longpoll: LongPoll, net: Net, server: Any) -> None:
    """A missing or wrong key, server or ts is a transient error, and the next answer is used."""
    net.answers["groups.getLongPollServer"] = [{"response": server}, START]
    with pytest.raises(TransientError):
        longpoll.renew()
    assert longpoll.renew() == 1000


@pytest.mark.parametrize(("ts", "latest"), [("0", 0), (1000, 1000), ("9" * 25, int("9" * 25)), ("007", 7), ("000", 0)])
def test_a_valid_server(longpoll: LongPoll, net: Net, ts: Any, latest: int) -> None:
    """A ts may be a number or text, of any length; zeros before it mean nothing."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": ts}}]
    assert longpoll.renew() == latest


def test_a_malformed_new_server_does_not_replace_the_old_one(polling: LongPoll, net: Net) -> None:
    """Key, server and ts are replaced together, or not at all."""
    net.answers["groups.getLongPollServer"] = [{"response": {"key": "new", "server": "https://lp.vk.ru/new", "ts": ""}}]
    with pytest.raises(TransientError):
        polling.renew()
    polling.poll(1000, 25)
    assert keys(net) == [(KEY, "1000")]


@pytest.mark.parametrize("server", named(mixed(None, "", 5, [], "lp.vk.ru/whp/1")))
def test_a_malformed_address(polling: LongPoll, net: Net, server: Any) -> None:
    """A malformed address makes polls fail with a transient error, until a new key brings another one."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"server": server}}, START]
    polling.renew()
    for _ in range(2):
        with pytest.raises(TransientError):
            polling.poll(1000, 25)
        net.clock.now += 6
    assert empty(polling.poll(1000, 25))


def test_vk_apis_check_and_listen_work(longpoll: LongPoll, net: Net) -> None:
    """vk_api's own check() and listen() work with our server as usual."""
    new_message = {"type": "message_new", "event_id": "1", "group_id": GROUP, "v": "5.199"}
    new_message |= {"object": {"message": {"peer_id": 5, "from_id": 5, "text": "hi"}, "client_info": {}}}
    net.answers["poll"] = [{"ts": "1001", "updates": [new_message]}, {"failed": 1, "ts": 1002}, {"failed": 2}]
    net.answers["poll"] += [{"failed": 3}, {"ts": "2001", "updates": [new_message]}]
    longpoll.renew()
    server = longpoll.server
    assert (server.key, server.server, server.ts) == (KEY, SERVER, "1000")
    (event,) = server.check()
    assert event.message.text == "hi"
    assert str(server.ts) == "1001"
    net.answers["groups.getLongPollServer"] = [NEW_KEY]
    event = next(server.listen())
    assert event.message.text == "hi"
    assert keys(net) == [(KEY, "1000"), (KEY, "1001"), (KEY, "1002"), ("new", "1002"), ("new", "2000")]
    server.update_longpoll_server(update_ts=False)
    assert str(server.ts) == "2001"


# What is answered


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"ts": "1002", "updates": [{"type": "a"}, None]}, Answer(1000, 1002, [{"type": "a"}, None])),
        ({"ts": 1001, "updates": [5]}, Answer(1000, 1001, [5])),
        ({"ts": "01001", "updates": [5]}, Answer(1000, 1001, [5])),
        ({"ts": "1000", "updates": []}, Answer(1000, 1000, [])),
        ({"ts": "1000", "updates": [], "pts": 5, "more": None}, Answer(1000, 1000, [])),
        ({"ts": "1001", "updates": [5], "failed": 0}, Answer(1000, 1001, [5])),
        ((200, b'\xef\xbb\xbf{"ts": "1001", "updates": [1]}'), Answer(1000, 1001, [1])),
        ((200, b'{"ts": "1001", "updates": ["\xd0\xd0\xb0"]}'), Answer(1000, 1001, ["\ufffdа"])),
        ((200, '{"ts": "1001", "updates": ["\\ud83d\\ude00 \\ud83d"]}'), Answer(1000, 1001, ["😀 \ud83d"])),
    ],
)
def test_poll(polling: LongPoll, net: Net, answer: Any, expected: Answer) -> None:
    """A poll returns the updates as they are, with the ts where they begin and end."""
    net.answers["poll"] = [answer]
    assert without_size(polling.poll(1000, 25)) == [expected[:3]]


def test_the_size_of_an_answer(polling: LongPoll, net: Net) -> None:
    """The size of an answer is in bytes, because memory is limited in bytes."""
    body = '{"ts": "1001", "updates": ["я"]}'
    net.answers["poll"] = [(200, body)]
    assert polling.poll(1000, 25) == Answer(1000, 1001, ["я"], len(body.encode()))


UNREADABLE: list[Any] = [
    *(None, 5, "text", [], {}, {"updates": []}, {"ts": "1001"}),
    *({"ts": "1001", "updates": updates} for updates in mixed(None, {}, "text", 5)),
    *({"ts": ts, "updates": []} for ts in mixed(None, "", "abc", -1, 1.5, True, [], "1 ", "٣", "1" * 31)),
    *({"ts": "1001", "updates": [], "failed": failed} for failed in mixed(4, -1, "1", None, [], {})),
    *({"failed": 4, "min_version": 0, "max_version": 19}, {"failed": 1}, {"failed": 1, "ts": "new"}),
    (200, b"\x1f\x8bnonsense", ("Content-Encoding", "gzip")),
    *((200, "<html>"), (200, ""), (200, '{"ts": "1001", "updates": [{"type":'), (200, "[" * 100_000)),
    *((status, '{"ts": "1001", "updates": []}') for status in (400, 403, 404, 429, 500, 502)),
]


@pytest.mark.parametrize("answer", named(UNREADABLE))
def test_poll_is_unreadable(polling: LongPoll, net: Net, answer: Any) -> None:
    """An answer of another form is an error that quotes no key; the same ts is polled again."""
    net.answers["poll"] = [answer, {"ts": "1001", "updates": [5]}]
    with pytest.raises(MalformedResponse) as raised:
        polling.poll(1000, 25)
    assert not re.search(f"http|{KEY}", str(raised.value))
    assert without_size(polling.poll(1000, 25)) == [(1000, 1001, [5])]


@pytest.mark.parametrize("failure", named([failure for failure in BROKEN if isinstance(failure, Exception)]))
def test_poll_is_broken(polling: LongPoll, net: Net, failure: Exception) -> None:
    """Network failures are transient, and the error does not contain the key."""
    net.answers["poll"] = [type(failure)(f"{SERVER}?key={KEY}"), {"ts": "1001", "updates": [5]}]
    with pytest.raises(TransientError) as raised:
        polling.poll(1000, 25)
    assert isinstance(raised.value, MalformedResponse) == isinstance(failure, ValueError)
    assert not re.search(f"http|{KEY}", str(raised.value))
    assert without_size(polling.poll(1000, 25)) == [(1000, 1001, [5])]


FORGOTTEN = "VK has forgotten the updates in between"


def test_failed_1(polling: LongPoll, net: Net) -> None:
    """If VK has forgotten updates, one poll returns a gap up to VK's new ts and what follows it, with the same key."""
    answer = {"failed": 1, "ts": 2593, "error": {"code": 1}}
    net.answers["poll"] = [answer, {"ts": "2594", "updates": [5]}]
    assert without_size(polling.poll(1000, 25)) == [(1000, 2593, f"{FORGOTTEN} (failed 1)"), (2593, 2594, [5])]
    assert [(params["ts"], params["wait"]) for params in net.params_of("poll")] == [("1000", "25"), ("2593", "1")]
    assert not net.params_of("groups.getLongPollServer")


def test_after_a_gap_the_key_is_not_behind(polling: LongPoll, net: Net) -> None:
    """After a gap VK itself has named the new ts, so silence there is no reason for a new key."""
    net.clock.now += 100
    net.answers["poll"] = [{"failed": 1, "ts": 2593}, {"ts": "2593", "updates": []}]
    for ts in (1000, 2593, 2593):
        polling.poll(ts, 25)
    assert not net.params_of("groups.getLongPollServer")


def test_gaps_that_follow_each_other_are_one(polling: LongPoll, net: Net) -> None:
    """If VK has also forgotten the ts that it names, there is a single gap, up to the ts of a new key."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "1027"}}]
    net.answers["poll"] = [{"failed": 1, "ts": ts} for ts in (1001, 1003)] + [{"ts": "1027", "updates": []}]
    assert without_size(polling.poll(1000, 25)) == [(1000, 1027, f"{FORGOTTEN} (failed 1)"), (1027, 1027, [])]


def test_vk_has_forgotten_everything_that_it_names(polling: LongPoll, net: Net) -> None:
    """If VK has forgotten every ts that it names, there is no gap yet, and the loop waits."""
    net.answers["poll"] = [{"failed": 1, "ts": ts} for ts in range(1001, 2000)]
    with pytest.raises(TransientError, match="refuses every key and ts"):
        polling.poll(1000, 25)
    assert len(net.requests) < 10


def test_failed_2(polling: LongPoll, net: Net) -> None:
    """If the key has expired, the poll takes a new key and server and goes on at the same ts, without a gap."""
    net.answers["groups.getLongPollServer"] = [{"response": {"key": "new", "server": SERVER + "0", "ts": "2000"}}]
    net.answers["poll"] = [{"failed": 2}, {"ts": "1001", "updates": [5]}, QUIET_POLL]
    assert without_size(polling.poll(1000, 25)) == [(1000, 1001, [5])]
    assert keys(net) == [(KEY, "1000"), ("new", "1000")]
    assert polling.latest_ts == 2000
    polling.poll(1000, 25)
    assert keys(net)[2:] == [("new", "1000")]


def test_failed_2_repeatedly(polling: LongPoll, net: Net) -> None:
    """If new keys are refused, too, the loop pauses and tries again: VK limits how often keys may be requested."""
    net.answers["poll"] = [{"failed": 2}]
    begun = net.clock.now
    with pytest.raises(TransientError, match="refuses every key and ts"):
        polling.poll(1000, 25)
    assert len(net.params_of("groups.getLongPollServer")) == 4
    assert net.clock.now >= begun + 3


def test_failed_2_and_no_new_key(polling: LongPoll, net: Net) -> None:
    """While VK gives no new key, the old one is kept, and a new one is requested with the next poll."""
    net.answers["poll"] = [{"failed": 2}, {"failed": 2}, {"ts": "1001", "updates": [5]}]
    net.answers["groups.getLongPollServer"] = [error(10), START]
    with pytest.raises(TransientError, match="10"):
        polling.poll(1000, 25)
    assert without_size(polling.poll(1000, 25)) == [(1000, 1001, [5])]


@pytest.mark.parametrize("first", [[], [{"failed": 2, "ts": "odd"}]], ids=["at once", "after failed 2"])
def test_failed_3(polling: LongPoll, net: Net, first: list[Any]) -> None:
    """If VK has lost its history, the poll takes a new key, and there is a gap up to VK's latest ts."""
    net.answers["groups.getLongPollServer"] = [NEW_KEY]
    net.answers["poll"] = [*first, {"failed": 3, "ts": "odd"}, {"ts": "2000", "updates": []}]
    assert without_size(polling.poll(1000, 25)) == [(1000, 2000, f"{FORGOTTEN} (failed 3)"), (2000, 2000, [])]
    assert keys(net)[-1] == ("new", "2000")


def test_failed_3_and_a_key_that_is_behind(polling: LongPoll, net: Net) -> None:
    """If VK's answer at the lower ts of a new key reaches the polled ts, nothing is missing, and polls go on there."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "998"}}]
    net.answers["poll"] = [{"failed": 3}, {"ts": "1000", "updates": [4, 5]}, {"ts": "1002", "updates": [6, 7]}]
    assert without_size(polling.poll(1000, 25)) == [(1000, 1002, [6, 7])]
    assert [ts for _, ts in keys(net)] == ["1000", "998", "1000"]


def test_failed_3_and_an_answer_that_passes_the_polled_ts(polling: LongPoll, net: Net) -> None:
    """Nothing of it is dropped: the updates up to the polled ts may be new ones, if VK has restarted its numbering."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "998"}}]
    net.answers["poll"] = [{"failed": 3}, {"ts": "1002", "updates": [4, 5, 6, 7]}]
    assert without_size(polling.poll(1000, 25)) == [(1000, 1002, [4, 5, 6, 7])]
    assert [ts for _, ts in keys(net)] == ["1000", "998"]


def test_failed_3_and_no_new_key(polling: LongPoll, net: Net) -> None:
    """If VK gives no new key after it has lost its history, there is no gap yet."""
    net.answers["groups.getLongPollServer"] = [error(10), NEW_KEY]
    net.answers["poll"] = [{"failed": 3}, {"failed": 3}, {"ts": "2000", "updates": []}]
    with pytest.raises(TransientError, match="10"):
        polling.poll(1000, 25)
    assert polling.poll(1000, 25).gap


KEY_FAILURES: dict[str, list[Any]] = {
    "keys that expire at once": [{"failed": 2}],
    "histories that are lost at once": [{"failed": 3}],
    "answers of both kinds": [{"failed": 2}, {"failed": 3}] * 500,
    "a lower ts": [{"ts": "999", "updates": []}],
    "a lower ts where VK has forgotten": [{"failed": 1, "ts": 999}],
}


@pytest.mark.parametrize("answers", KEY_FAILURES.values(), ids=KEY_FAILURES)
@pytest.mark.parametrize("key", [START, error(10), (200, "<html>")], ids=["a key", "no key", "a malformed key"])
def test_keys_are_requested_at_most_once_a_second(longpoll: LongPoll, net: Net, answers: list[Any], key: Any) -> None:
    """Whatever goes wrong, keys are requested at most once a second, because VK answers error 29 to faster requests."""
    net.answers |= {"poll": list(answers), "groups.getLongPollServer": [START, key]}
    longpoll.renew()
    begun = net.clock.now
    while net.clock.now < begun + 20:
        with contextlib.suppress(TransientError):
            longpoll.poll(1000, 1)
        net.clock.now += 0.1
    times = [time for time, name, *_ in net.requests if name == "groups.getLongPollServer"]
    assert len(times) > 10
    assert all(later - earlier >= 0.999 for earlier, later in itertools.pairwise(times))


# A lower ts


@pytest.mark.parametrize("apart", range(1, 6))
@pytest.mark.parametrize("failed", [False, True])
def test_servers_that_are_a_few_updates_apart(polling: LongPoll, net: Net, apart: int, failed: bool) -> None:
    """A lower ts alone is no restart of VK's numbering: if a new key's ts is not lower, the same ts is polled again."""
    behind: Any = {"failed": 1, "ts": 1000 - apart} if failed else {"ts": str(1000 - apart), "updates": []}
    net.answers["groups.getLongPollServer"] = [START]
    net.answers["poll"] = [behind, behind, behind, {"ts": "1001", "updates": [5]}]
    with pytest.raises(TransientError, match="an earlier ts than it was polled at"):
        polling.poll(1000, 25)
    assert len(net.params_of("groups.getLongPollServer")) == 1
    assert without_size(polling.poll(1000, 25)) == [(1000, 1001, [5])]
    assert len(net.params_of("groups.getLongPollServer")) == 1, "the first thing is to poll once more"


def test_vk_restarts_its_numbering(polling: LongPoll, net: Net) -> None:
    """A restart is believed if VK repeats the lower ts and a new key's ts is lower, too; polls then go on there."""
    lower, forgotten = {"ts": "30", "updates": [5]}, {"failed": 1, "ts": 30}
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "31"}}]
    net.answers["poll"] = [lower, lower, forgotten, forgotten, {"ts": "31", "updates": [6]}]
    expected = [[(1000, 30, [5])], [(1000, 30, f"{FORGOTTEN} (failed 1)"), (30, 31, [6])]]
    for answers in expected:
        assert without_size(polling.poll(1000, 25)) == answers


def test_vk_waits_for_a_ts_that_is_far_ahead(polling: LongPoll, net: Net) -> None:
    """VK may stay silent after it has restarted its numbering.

    If the ts of the key is lower, and there has been no update for ten seconds, polls go on at the ts of the key.
    """
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "30"}}]
    net.answers["poll"] = [{"failed": 2}, QUIET_POLL, QUIET_POLL, {"ts": "35", "updates": [5]}]
    for _ in range(2):
        assert empty(polling.poll(1000, 25))
        net.clock.now += 6
    assert without_size(polling.poll(1000, 25)) == [(30, 35, [5])]
    assert len(net.params_of("groups.getLongPollServer")) == 2


def test_a_key_whose_ts_is_behind(polling: LongPoll, net: Net) -> None:
    """If VK's answer at the lower ts of a key leads back to the polled ts, VK has not restarted its numbering."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "998"}}]
    net.answers["poll"] = [{"failed": 2}, QUIET_POLL, {"ts": "1000", "updates": [4, 5]}, QUIET_POLL]
    assert empty(polling.poll(1000, 25))
    net.clock.now += 11
    assert empty(polling.poll(1000, 25))
    assert [ts for _, ts in keys(net)] == ["1000", "1000", "998", "1000"]
    net.clock.now += 3500
    assert empty(polling.poll(1000, 25))
    assert keys(net)[-1][1] == "1000", "VK has said that it is here"
    assert len(net.params_of("groups.getLongPollServer")) == 2


def test_another_fetcher_was_faster(polling: LongPoll, net: Net) -> None:
    """The ts may be later than any that VK has told this fetcher, if another fetcher has moved the checkpoint there."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "1300"}}]
    net.answers["poll"] = [QUIET_POLL, {"ts": "1210", "updates": [5]}]
    assert empty(polling.poll(1000, 25))
    net.clock.now += 100
    assert without_size(polling.poll(1200, 25)) == [(1200, 1210, [5])]
    assert [ts for _, ts in keys(net)] == ["1000", "1200"]


def test_an_update_proves_that_vk_has_not_restarted_its_numbering(polling: LongPoll, net: Net) -> None:
    """The server that issues keys may lag for a moment: if an update arrives, the lower ts of the key means nothing."""
    net.answers["groups.getLongPollServer"] = [{"response": START["response"] | {"ts": "998"}}]
    net.answers["poll"] = [{"failed": 2}, {"ts": "1001", "updates": [5]}, {"ts": "1001", "updates": []}]
    polling.poll(1000, 25)
    net.clock.now += 100
    assert without_size(polling.poll(1001, 25)) == [(1001, 1001, [])]
    assert keys(net)[-1] == (KEY, "1001")


# Places that cannot be read


def unreadable_for_ten_minutes(polling: LongPoll, net: Net) -> None:
    """Poll at an unreadable ts until it may be skipped; until then no other ts is polled."""
    net.answers["poll"] = [HTML]
    begun = net.clock.now
    while net.clock.now < begun + 599:
        with pytest.raises(MalformedResponse):
            polling.poll(1000, 25)
        net.clock.now += 30
    assert {ts for _, ts in keys(net)} == {"1000"}
    net.clock.now = begun + 601
    net.requests.clear()


def test_an_unreadable_ts_is_skipped(polling: LongPoll, net: Net) -> None:
    """A ts that is unreadable for ten minutes, and once more with a new key, is a gap if the latest ts can be read."""
    net.answers["groups.getLongPollServer"] = [NEW_KEY]
    unreadable_for_ten_minutes(polling, net)
    net.answers["poll"] = [{"ts": "2000", "updates": []}, HTML, {"ts": "2001", "updates": [5]}]
    gap = (1000, 2000, "VK's answer there could not be read for too long")
    assert without_size(polling.poll(1000, 25)) == [gap, (2000, 2001, [5])]
    assert keys(net) == [("new", "2000"), ("new", "1000"), ("new", "2000")]


def test_an_unreadable_ts_is_skipped_though_the_latest_is_refused(polling: LongPoll, net: Net) -> None:
    """If VK refuses the latest ts, the gap ends at the ts of another new key, and keeps its reason."""
    net.answers["groups.getLongPollServer"] = [NEW_KEY]
    unreadable_for_ten_minutes(polling, net)
    refused = {"failed": 1, "ts": 2001}
    net.answers["poll"] = [refused, HTML, refused, {"ts": "2001", "updates": []}]
    gap = (1000, 2000, "VK's answer there could not be read for too long")
    assert without_size(polling.poll(1000, 25)) == [gap, (2000, 2001, [])]


def test_a_new_key_makes_the_ts_readable(polling: LongPoll, net: Net) -> None:
    """If the ts can be read with a new key, there is no gap: not all of VK's servers were at fault."""
    net.answers["groups.getLongPollServer"] = [NEW_KEY]
    unreadable_for_ten_minutes(polling, net)
    net.answers["poll"] = [{"ts": "2000", "updates": []}, {"ts": "1002", "updates": [1, 2]}, HTML]
    assert without_size(polling.poll(1000, 25)) == [(1000, 1002, [1, 2])]
    with pytest.raises(MalformedResponse):
        polling.poll(1000, 25)
    assert len(keys(net)) == 3, "its ten minutes begin again"


def test_vk_has_forgotten_the_unreadable_ts(polling: LongPoll, net: Net) -> None:
    """If VK has forgotten the ts when it is polled once more, that counts like any other answer."""
    net.answers["groups.getLongPollServer"] = [NEW_KEY]
    unreadable_for_ten_minutes(polling, net)
    net.answers["poll"] = [{"ts": "2000", "updates": []}, {"failed": 1, "ts": 1500}, {"ts": "1500", "updates": []}]
    assert without_size(polling.poll(1000, 25)) == [(1000, 1500, f"{FORGOTTEN} (failed 1)"), (1500, 1500, [])]


@pytest.mark.parametrize("failing", ["key", "latest ts", "latest ts refused", "old ts"])
def test_a_failure_while_a_ts_is_skipped(polling: LongPoll, net: Net, failing: str) -> None:
    """If a request fails while a ts is skipped, there is no gap, and the next poll tries again."""
    away = requests.ConnectionError()
    net.answers["groups.getLongPollServer"] = [NEW_KEY]
    unreadable_for_ten_minutes(polling, net)
    latest: dict[str, Any] = {"ts": "2000", "updates": []}
    answers: dict[str, list[Any]] = {"key": [], "latest ts": [away], "old ts": [latest, away]}
    answers["latest ts refused"] = [{"failed": 2}]
    if failing == "key":
        net.answers["groups.getLongPollServer"] = [error(10), NEW_KEY]
    net.answers["poll"] = [*answers[failing], HTML]
    with pytest.raises(TransientError) as raised:
        polling.poll(1000, 25)
    assert type(raised.value) is (MalformedResponse if failing == "latest ts refused" else TransientError)
    net.answers["poll"] = [latest, HTML, latest]
    assert polling.poll(1000, 25).gap


def test_nothing_is_skipped_if_the_latest_ts_is_unreadable(polling: LongPoll, net: Net) -> None:
    """If the latest ts is unreadable, too, no ts is skipped, because it is not the cause."""
    net.answers["poll"] = [(502, "")]
    for _ in range(60):
        with pytest.raises(MalformedResponse):
            polling.poll(900, 25)
        net.clock.now += 15
    assert {ts for _, ts in keys(net)} == {"900", "1000"}


def test_the_ten_minutes_begin_again_at_another_ts(polling: LongPoll, net: Net) -> None:
    """The ten minutes begin again at another ts, and after an answer that could be read."""
    net.answers["groups.getLongPollServer"] = [NEW_KEY]
    for ts in (1000, 1001):
        net.answers["poll"] = [(502, "")]
        for _ in range(20):
            with pytest.raises(MalformedResponse):
                polling.poll(ts, 25)
            net.clock.now += 29
    net.answers["poll"] = [{"ts": "1001", "updates": []}, (502, "")]
    polling.poll(1001, 25)
    net.clock.now += 29
    with pytest.raises(MalformedResponse):
        polling.poll(1001, 25)
    assert "2000" not in [ts for _, ts in keys(net)]


# A new key in time


@pytest.mark.parametrize("answer", [(404, ""), (200, "<html>moved</html>")])
def test_the_server_has_moved(polling: LongPoll, net: Net, answer: Any) -> None:
    """A server with unreadable answers is replaced once its key is ten seconds old; nothing is lost."""
    net.answers["poll"] = [answer, answer, {"ts": "1002", "updates": [1, 2]}]
    moved = START["response"] | {"server": "https://lp.vk.ru/new", "ts": "1002"}
    net.answers["groups.getLongPollServer"] = [{"response": moved}]
    for _ in range(2):
        with pytest.raises(MalformedResponse):
            polling.poll(1000, 25)
        assert server_of(polling) != "https://lp.vk.ru/new"
        net.clock.now += 6
    assert without_size(polling.poll(1000, 25)) == [(1000, 1002, [1, 2])]
    assert server_of(polling) == "https://lp.vk.ru/new"


def test_a_failed_poll_is_followed_by_a_new_key(polling: LongPoll, net: Net) -> None:
    """If a poll fails and the key is not new, the next poll takes a new one; a poll that succeeds takes none."""
    net.clock.now += 100
    net.answers["poll"] = [QUIET_POLL, requests.ConnectionError(), QUIET_POLL]
    polling.poll(1000, 25)
    with pytest.raises(TransientError):
        polling.poll(1000, 25)
    assert not net.params_of("groups.getLongPollServer")
    for _ in range(3):
        polling.poll(1000, 25)
        net.clock.now += 100
    assert len(net.params_of("groups.getLongPollServer")) == 1


def test_the_server_is_down(polling: LongPoll, net: Net) -> None:
    """While the server cannot be reached, another one is requested every ten seconds."""
    net.answers["poll"] = [requests.ConnectionError()]
    for _ in range(9):
        with pytest.raises(TransientError):
            polling.poll(1000, 25)
        net.clock.now += 4
    assert len(net.params_of("groups.getLongPollServer")) == 2


def test_the_key_is_renewed_after_an_hour_of_silence(polling: LongPoll, net: Net) -> None:
    """After an hour without an update, a new key is taken at the same ts; updates postpone that."""
    net.answers["groups.getLongPollServer"] = [NEW_KEY]
    net.clock.now += 3500
    net.answers["poll"] = [{"ts": "1001", "updates": [5]}, {"ts": "1001", "updates": []}]
    polling.poll(1000, 25)
    net.clock.now += 3500
    polling.poll(1001, 25)
    assert not net.params_of("groups.getLongPollServer")
    net.clock.now += 101
    assert without_size(polling.poll(1001, 25)) == [(1001, 1001, [])]
    assert keys(net)[-1] == ("new", "1001")
    net.clock.now += 3599
    polling.poll(1001, 25)
    assert len(net.params_of("groups.getLongPollServer")) == 1


@pytest.mark.parametrize(("failure", "kind"), [(error(10), TransientError), (error(5), FatalError)])
def test_renewal_fails(polling: LongPoll, net: Net, failure: Any, kind: type[Exception]) -> None:
    """If VK gives no new key, polls go on with the old one, and a new one is requested every ten seconds."""
    net.answers["groups.getLongPollServer"] = [failure]
    net.clock.now += 3601
    for tries in (1, 2):
        with pytest.raises(kind, match="groups"):
            polling.poll(1000, 25)
        for _ in range(2):
            assert empty(polling.poll(1000, 25))
            net.clock.now += 4
        assert len(net.params_of("groups.getLongPollServer")) == tries
        net.clock.now += 3


def test_renewal_fails_during_an_outage(polling: LongPoll, net: Net) -> None:
    """While polls fail, too, a new key is requested every ten seconds."""
    net.answers["groups.getLongPollServer"] = net.answers["poll"] = [requests.ConnectionError()]
    net.clock.now += 100
    for _ in range(11):
        with pytest.raises(TransientError):
            polling.poll(1000, 25)
        net.clock.now += 6
    assert len(net.params_of("groups.getLongPollServer")) == 5


# The settings, checked once


def test_the_first_poll_is_short(longpoll: LongPoll, net: Net) -> None:
    """The first poll waits one second, so that the settings are checked soon; all others wait for up to `wait`."""
    longpoll.renew()
    for _ in range(3):
        longpoll.poll(1000, 25)
    assert [params["wait"] for params in net.params_of("poll")] == ["1", "25", "25"]
    assert [name for _, name, *_ in net.requests][:3] == [
        "groups.getLongPollServer",
        "poll",
        "groups.getLongPollSettings",
    ]
    assert len(net.params_of("groups.getLongPollSettings")) == 1


def test_a_first_poll_that_fails_is_short_again(longpoll: LongPoll, net: Net) -> None:
    """Polls stay short until VK has answered one; the settings are checked after that."""
    net.answers["poll"] = [requests.ConnectionError(), QUIET_POLL]
    longpoll.renew()
    with pytest.raises(TransientError):
        longpoll.poll(1000, 25)
    assert not net.params_of("groups.getLongPollSettings")
    for _ in range(2):
        longpoll.poll(1000, 25)
    assert [params["wait"] for params in net.params_of("poll")] == ["1", "1", "25"]
    assert len(net.params_of("groups.getLongPollSettings")) == 1


def test_the_settings_are_requested_once(longpoll: LongPoll, net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """The settings are checked once even if later polls fail, so that a warning is not repeated at each of them."""
    net.answers["poll"] = [QUIET_POLL, requests.ConnectionError()]
    net.answers["groups.getLongPollSettings"] = [{"response": SETTINGS["response"] | {"api_version": "5.80"}}]
    longpoll.poll(longpoll.renew(), 25)
    for _ in range(3):
        with pytest.raises(TransientError):
            longpoll.poll(1000, 25)
    assert len(net.params_of("groups.getLongPollSettings")) == 1
    assert len([message for message in caplog.messages if "5.80" in message]) == 1


def settings(longpoll: LongPoll, net: Net, caplog: pytest.LogCaptureFixture, answer: Any) -> list[str]:
    """Return the warnings that the settings cause."""
    caplog.set_level(logging.INFO, "fetcher")
    net.answers["groups.getLongPollSettings"] = [answer]
    longpoll.poll(longpoll.renew(), 25)
    return [record.getMessage() for record in caplog.records]


def test_settings_are_right(longpoll: LongPoll, net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """Correct settings cause no warning."""
    assert settings(longpoll, net, caplog, SETTINGS) == []


@pytest.mark.parametrize("off", [False, 0])
def test_settings_off(longpoll: LongPoll, net: Net, caplog: pytest.LogCaptureFixture, off: Any) -> None:
    """Long Poll switched off is fatal at each check; once it is on, polling goes on."""
    with pytest.raises(FatalError, match="switch it on"):
        settings(longpoll, net, caplog, {"response": SETTINGS["response"] | {"is_enabled": off}})
    with pytest.raises(FatalError, match="switch it on"):
        longpoll.poll(1000, 25)
    net.answers["groups.getLongPollSettings"] = [SETTINGS]
    assert empty(longpoll.poll(1000, 25))


@pytest.mark.parametrize("code", FATAL_CODES)
def test_settings_and_a_token_that_vk_refuses(
    longpoll: LongPoll, net: Net, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """A refused token is fatal, even if VK refuses it only in the check of the settings."""
    with pytest.raises(FatalError, match=str(code)):
        settings(longpoll, net, caplog, error(code))


@pytest.mark.parametrize("version", ["5.103", "5.200", "6.0", "5.102", "5.80"])
def test_settings_version(longpoll: LongPoll, net: Net, caplog: pytest.LogCaptureFixture, version: str) -> None:
    """Before API version 5.103 updates had another form: a warning says which version to set."""
    warnings = settings(longpoll, net, caplog, {"response": SETTINGS["response"] | {"api_version": version}})
    assert len(warnings) == (version in ("5.102", "5.80"))
    assert all(version in warning and "5.199" in warning for warning in warnings)


def test_settings_types(longpoll: LongPoll, net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """A warning names the types that are not ticked, and no other."""
    events = dict.fromkeys(BUILDERS, 1) | {"message_event": 0, "message_reply": 0}
    del events["message_reaction_event"]
    (warning,) = settings(longpoll, net, caplog, {"response": SETTINGS["response"] | {"events": events}})
    assert re.findall(r"message_\w+", warning) == ["message_event", "message_reaction_event"]


@pytest.mark.parametrize("events", [{}, [], None])
def test_settings_without_types(longpoll: LongPoll, net: Net, caplog: pytest.LogCaptureFixture, events: Any) -> None:
    """If no type is ticked, VK may send an empty list in place of the object: the warning names all types."""
    (warning,) = settings(longpoll, net, caplog, {"response": SETTINGS["response"] | {"events": events}})
    assert ", ".join(BUILDERS) in warning


MALFORMED_SETTINGS: list[Any] = [
    error(15),
    error(10),
    error(100),
    {"response": {}},
    {"response": []},
    {"response": {"is_enabled": True}},
]
MALFORMED_SETTINGS += [
    {"response": SETTINGS["response"] | {"api_version": version}} for version in mixed("new", None, [])
]


@pytest.mark.parametrize("answer", named(MALFORMED_SETTINGS + BROKEN + NO_ANSWERS))
def test_settings_that_vk_does_not_return(
    longpoll: LongPoll, net: Net, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    """If VK does not return the settings, the fetcher goes on without a warning."""
    assert settings(longpoll, net, caplog, answer) == []
    assert empty(longpoll.poll(1000, 25))
