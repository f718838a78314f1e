"""The tests' own VK and proxy do what they promise: each fault works."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import requests
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import Proxy, Server, wait_until
from tests.vk import VK, message

PEOPLE = "API.users.get({'user_ids': '%s'})".replace("'", '"')


def call(vk: VK, method: str, **params: Any) -> Any:
    """Call a method of the API."""
    body = {"access_token": vk.token, "v": "5.199", "lang": "ru", "group_id": vk.group_id} | params
    return requests.post(f"{vk.url}/method/{method}", body, timeout=5).json()


def new_key(vk: VK) -> str:
    return str(call(vk, "groups.getLongPollServer")["response"]["key"])


def poll(vk: VK, key: str, ts: Any, wait: float = 0) -> Any:
    """Poll; an answer that is not JSON raises ValueError."""
    params: Any = {"act": "a_check", "key": key, "ts": ts, "wait": wait}
    return requests.get(f"{vk.url}/whp/{vk.group_id}", params, timeout=5).json()


# --- VK ----------------------------------------------------------------------------------------------------


def test_ts_that_advances_by_more_than_one(vk: VK) -> None:
    """Each update advances ts by its step; a poll inside a step gets that step's update, and batches end on a step."""
    key, vk.batch, vk.step = new_key(vk), 2, 3
    assert vk.push(*[message(str(number)) for number in range(3)]) == 1009
    first = poll(vk, key, 1000)
    assert first["ts"] == "1006"
    assert [update["object"]["message"]["text"] for update in first["updates"]] == ["0", "1"]
    assert [update["object"]["message"]["text"] for update in poll(vk, key, 1004)["updates"]] == ["1", "2"]
    steps = iter([5, 7])
    vk.step = lambda: next(steps)
    assert vk.push(message(), message()) == 1021
    assert poll(vk, key, 1014)["ts"] == "1021"


def test_servers_that_are_a_few_numbers_apart(vk: VK) -> None:
    """Polls are answered by servers that may lack the latest updates, which the API knows."""
    key = new_key(vk)
    vk.push(*[message(str(number)) for number in range(5)])
    vk.lag = 2
    assert poll(vk, key, 1000)["ts"] == "1003"
    assert poll(vk, key, 1003) == {"ts": "1003", "updates": []}
    assert poll(vk, key, 1005) == {"failed": 1, "ts": 1003}
    assert call(vk, "groups.getLongPollServer")["response"]["ts"] == "1005"
    vk.lag = 7
    assert poll(vk, key, 1003) == {"failed": 1, "ts": 1000}
    lags = iter([5, 0])
    vk.lag = lambda: next(lags)
    assert [poll(vk, key, 1000)["ts"] for _ in range(2)] == ["1000", "1005"]


@pytest.mark.parametrize(("newest", "expected"), [(False, 1006), (True, 1009)])
def test_both_readings_of_failed_1(newest: bool, expected: int, vk: VK) -> None:
    """VK may answer with the oldest ts that it keeps, or with the newest."""
    key, vk.step, vk.kept, vk.newest_on_failed_1 = new_key(vk), 3, 1, newest
    vk.push(message(), message(), message())
    assert poll(vk, key, 1003) == {"failed": 1, "ts": expected}
    assert poll(vk, key, 1006)["ts"] == "1009"


def test_history_that_becomes_shorter(vk: VK) -> None:
    """How many updates VK keeps may be changed at any time."""
    key = new_key(vk)
    vk.push(*[message() for _ in range(5)])
    vk.kept = 2
    assert poll(vk, key, 1002) == {"failed": 1, "ts": 1003}
    assert len(poll(vk, key, 1003)["updates"]) == 2


def test_vk_restarts_its_numbering(vk: VK) -> None:
    """Earlier keys get failed 3, and a ts from before the restart failed 1; updates are counted from the new ts."""
    key = new_key(vk)
    vk.push(message())
    vk.restart(ts=7)
    assert poll(vk, key, 1000) == {"failed": 3}
    key = new_key(vk)
    assert poll(vk, key, 1001) == {"failed": 1, "ts": 7}
    vk.push(message())
    assert len(poll(vk, key, 7)["updates"]) == 1
    vk.restart(keep_keys=True)
    assert poll(vk, key, 8) == {"failed": 1, "ts": 1}


def test_one_object_fails(vk: VK) -> None:
    """Its own call inside execute fails for as long as `failing` holds its id; the other calls are answered."""
    vk.failing[6] = 10
    code = f"return [{PEOPLE % 5},{PEOPLE % 6}];"
    answer = call(vk, "execute", code=code)
    assert answer["response"][0][0]["id"] == 5
    assert answer["response"][1] is False
    assert [error["error_code"] for error in answer["execute_errors"]] == [10]
    del vk.failing[6]
    answer = call(vk, "execute", code=code)
    assert [people[0]["id"] for people in answer["response"]] == [5, 6]


@pytest.mark.parametrize("ts", [1000, None])
@pytest.mark.parametrize("keys", [1, 2])
def test_unreadable_until_a_new_key(keys: int, ts: int | None, vk: VK) -> None:
    """An answer, at one ts or at any, becomes readable with the key that heals it, not with an earlier one."""
    given = [new_key(vk)]
    vk.push(message())
    vk.unreadable_until_new_key(ts, keys)
    given += [new_key(vk) for _ in range(keys)]
    for key in given[:-1]:
        with pytest.raises(requests.JSONDecodeError):
            poll(vk, key, 1000)
    assert poll(vk, given[-1], 1000)["ts"] == "1001"
    if ts:
        assert poll(vk, given[0], 1001)["updates"] == []


def test_polls_wait_as_long_as_requested(vk: VK) -> None:
    """A poll waits for as long as it requests, which may be 0, but no longer than VK allows."""
    key = new_key(vk)
    begun = time.monotonic()
    assert poll(vk, key, 1000, wait=0) == {"ts": "1000", "updates": []}
    vk.max_wait = 0
    assert poll(vk, key, 1000, wait=25) == {"ts": "1000", "updates": []}
    assert time.monotonic() - begun < 1
    vk.max_wait = 90
    begun = time.monotonic()
    poll(vk, key, 1000, wait=0.3)
    assert time.monotonic() - begun >= 0.3


def test_dripping_answer(vk: VK) -> None:
    """An answer may take longer than the timeout, as long as each of its bytes arrives in time."""
    key, vk.drip = new_key(vk), 1.0
    vk.push(message())
    vk.fail_poll("slow")
    begun = time.monotonic()
    params: Any = {"act": "a_check", "key": key, "ts": 1000, "wait": 0}
    answer = requests.get(f"{vk.url}/whp/{vk.group_id}", params, timeout=0.5).json()
    assert answer["ts"] == "1001"
    assert time.monotonic() - begun >= 0.9


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("return 1;", 12),
        (f"return [{','.join([PEOPLE % 5] * 26)}];", 13),
        (f"return [{','.join([PEOPLE % 5] * 25)}];", 0),
    ],
)
def test_strict_execute(code: str, expected: int, vk: VK) -> None:
    """Code that does not have the form of vk_api's is refused, and so are more than 25 calls."""
    assert call(vk, "execute", code=code).get("error", {}).get("error_code", 0) == expected


# --- The proxy ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def proxy(target: Server) -> Iterator[Proxy]:
    with Proxy(target.port) as proxy:
        yield proxy


@pytest.fixture
def direct(target: Server) -> Iterator[Any]:
    with target.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Any]:
    """Return a client of the server behind the proxy, with a timeout of half a second."""
    options: Any = {"socket_timeout": 0.5, "retry": Retry(NoBackoff(), 0), "decode_responses": True}
    with redis.Redis.from_url(proxy.url, **options) as client:
        client.ping()
        yield client


def seconds(function: Any, *arguments: Any) -> float:
    begun = time.monotonic()
    function(*arguments)
    return time.monotonic() - begun


def test_delay(proxy: Proxy, client: Any) -> None:
    """The proxy delays data in each direction, by the same time however much is sent."""
    proxy.delay = 0.1
    assert 0.2 <= seconds(client.ping) < 0.4
    assert 0.2 <= seconds(client.set, "key", "x" * 1_000_000) < 0.5
    proxy.delay = 0
    assert seconds(client.ping) < 0.1


@pytest.mark.parametrize(
    ("bandwidth", "slow"), [(1_000_000, {"set", "get"}), ((1_000_000, 0), {"set"}), ((0, 1e6), {"get"})]
)
def test_bandwidth(bandwidth: Any, slow: set[str], proxy: Proxy, client: Any) -> None:
    """A link has a bandwidth in both directions, or in one."""
    proxy.bandwidth = bandwidth
    text = "x" * 300_000
    assert (seconds(client.set, "key", text) >= 0.25) == ("set" in slow)
    assert (seconds(client.get, "key") >= 0.25) == ("get" in slow)
    assert client.get("key") == text


def test_swallow_and_release(proxy: Proxy, client: Any, direct: Any) -> None:
    """Nothing passes, but connections are accepted; data sent meanwhile arrives later, even if the client has left."""
    proxy.swallow()
    with pytest.raises(redis.TimeoutError):
        client.set("key", "late")
    with pytest.raises(redis.TimeoutError):  # through a new connection
        client.ping()
    assert direct.get("key") is None
    proxy.release()
    wait_until(lambda: direct.get("key") == "late", what="the late command")
    assert client.ping()


def test_cut_while_swallowed(proxy: Proxy, client: Any, direct: Any) -> None:
    """What was swallowed is lost when its connection is cut."""
    connections = len(direct.client_list())
    proxy.swallow()
    with pytest.raises(redis.TimeoutError):
        client.set("key", "never")
    proxy.cut()
    wait_until(lambda: len(direct.client_list()) < connections, what="the end of the connection")
    proxy.release()
    assert client.ping()
    assert direct.get("key") is None


def test_dropped_reply(proxy: Proxy, client: Any, direct: Any) -> None:
    """The server executes the command; its reply and the connection are lost."""
    proxy.drop_replies(matching=b"SET")
    assert proxy.drops_left == 1
    with pytest.raises(redis.ConnectionError):
        client.set("key", "done")
    assert direct.get("key") == "done"
    assert (proxy.dropped, proxy.drops_left) == (1, 0)
    assert client.get("key") == "done"


def test_down_and_up(proxy: Proxy, client: Any) -> None:
    """No connection is accepted until the proxy is up again, on the same port."""
    proxy.down()
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            client.ping()
    proxy.up()
    assert client.ping()


def test_short_lives(proxy: Proxy, client: Any) -> None:
    """A connection is cut when its time is over, even while it is busy."""
    client.set("key", "x" * 1_000_000)
    proxy.lifetime, proxy.bandwidth = (0.2, 0.3), 100_000
    proxy.cut()
    options: Any = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 60}
    with redis.Redis.from_url(proxy.url, **options) as other, pytest.raises(redis.ConnectionError):
        other.get("key")


def test_refused_connections(proxy: Proxy, direct: Any) -> None:
    """One in this many connections is refused."""
    proxy.refuse_every = 3
    outcomes = []
    for _ in range(6):
        with redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0)) as one:
            try:
                outcomes.append(one.ping())
            except redis.ConnectionError:
                outcomes.append(False)
    assert outcomes.count(False) == proxy.refused == 2


def test_a_middlebox_that_drops_what_is_silent(proxy: Proxy, direct: Any) -> None:
    """A connection is dropped when nothing passes for too long; a long answer on a slow link is not silence."""
    direct.set("key", "x" * 300_000)
    connections = len(direct.client_list())
    proxy.max_silence, proxy.bandwidth = 0.4, 300_000
    options: Any = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 60}
    with redis.Redis.from_url(proxy.url, **options) as client:
        assert len(client.get("key")) == 300_000
        wait_until(lambda: len(direct.client_list()) == connections, 60, "the end of the silent connection")


def test_late_replies(proxy: Proxy, direct: Any) -> None:
    """Only replies are late."""
    proxy.reply_delay = (0.2, 0.3)
    options: Any = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 60}
    with redis.Redis.from_url(proxy.url, **options) as client:
        client.ping()
        assert seconds(client.ping) >= 0.2


def test_a_link_that_is_healed(proxy: Proxy, direct: Any) -> None:
    """None of the faults is left, even for open connections."""
    proxy.delay, proxy.reply_delay, proxy.bandwidth = 5, (5, 5), 10
    proxy.lifetime, proxy.max_silence, proxy.refuse_every = (0.1, 0.2), 0.1, 1
    proxy.drop_replies(1, b"PING")
    proxy.swallow()
    proxy.down()
    proxy.heal()
    options: Any = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 60}
    with redis.Redis.from_url(proxy.url, **options) as client:
        assert client.ping()
        assert proxy.drops_left == proxy.refused == 0
