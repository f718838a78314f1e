"""`--redrive` gives dead letters another chance. Nothing is lost or repeated, even if it is killed or run twice."""

import contextlib
import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from requests.adapters import HTTPAdapter

from fetcher import config, consume
from fetcher.commands.redrive import redrive
from fetcher.core.backlog import Pending
from fetcher.core.history import DeadLetter, Position
from fetcher.errors import FatalError, TransientError
from fetcher.events import Event
from tests import HOST
from tests.processes import Fetcher
from tests.run import redirect_vk_to
from tests.servers import Proxy, Server, address, bus_at, cluster, wait_until
from tests.test_deploy import acl, rules
from tests.vk import CHAT, GROUP, PEER, PERSON, VK, button, message, reaction, update

Fetch = Callable[..., Fetcher]
DEAD_LETTERS = "{events}:dead-letter"


class DeadLetterWriter:
    """Records dead letters as a fetcher of an older version did, in one commit per call."""

    def __init__(self, url: str) -> None:
        self.bus = bus_at(url, groupid=GROUP)
        self.ts = itertools.count(1)
        self.bus.read([], Position(0, 0))

    def __call__(self, *updates: Any) -> None:
        ts = next(self.ts)
        letters: Any = [
            DeadLetter(
                update["event_id"], {"update": json.dumps(update), "error": "an older version could not read it"}
            )
            for update in updates
        ]
        commit = Pending("batch", Position(0, ts - 1), Position(0, ts), entries=letters)
        assert len(self.bus.commit(commit).recorded) == len(letters)


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with Server(aof=True) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Server:
    """Return the server that all tests here share, empty."""
    with shared.client() as client:
        client.flushall()
        client.script_flush()
    return shared


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with server.client() as client:
        yield client


@pytest.fixture
def dead_letter(server: Server) -> DeadLetterWriter:
    return DeadLetterWriter(server.url)


@pytest.fixture
def run(vk: VK, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs the command in this process and returns the lines that it prints."""
    monkeypatch.setattr(HTTPAdapter, "send", HTTPAdapter.send)  # so that monkeypatch restores it
    redirect_vk_to(vk.url)

    def run_command(group: str | None = None, raises: type[Exception] | None = None, **settings: Any) -> list[str]:
        usual = {"TOKEN": vk.token, "GROUPID": str(vk.group_id), "REDIS_URL": server.url}
        given = config.parse({name: str(value) for name, value in (usual | settings).items()})
        with pytest.raises(raises) if raises else contextlib.nullcontext():
            assert redrive(given, group) == 0
        return capsys.readouterr().out.splitlines()

    return run_command


def events(client: Any) -> list[dict[str, Any]]:
    return [json.loads(fields["event"]) for _, fields in client.xrange("events")]


def ids(client: Any) -> list[str]:
    return [event["event_id"] for event in events(client)]


def counts(*outputs: str) -> list[int]:
    """Return how many dead letters each of these runs has published or given back."""
    return [
        int(count)
        for output in outputs
        for count in re.findall("^(?:published|given back.*): ([0-9]+), stay", output, re.MULTILINE)
    ]


# --- The fetcher's dead letters ----------------------------------------------------------------------------------


def test_a_dead_letter_becomes_the_event(fetch: Fetch, vk: VK, client: Any, server: Server) -> None:
    """It is the event that a fetcher makes of the update, names included.

    It is published once, at the end of the stream and on its channel.
    """
    first, second = message("/ban Вася", peer=PEER), button({"a": 1})
    fetcher = fetch()
    wait_until(lambda: client.exists(f"{{events}}:ts:{GROUP}"), 60)
    vk.push(first, second)
    wait_until(lambda: client.xlen("events") == 2, 60)
    fetcher.kill()
    expected = events(client)
    client.flushall()
    DeadLetterWriter(server.url)(first, second)
    client.xadd("events", {"event": "{}"})
    with client.pubsub() as live:
        live.psubscribe("*")
        live.get_message(timeout=60)
        process = fetch("--redrive")
        assert process.wait(60) == 0
        heard = [live.get_message(timeout=60) for _ in expected]
    assert process.output == "published: 2, stay: 0"
    assert events(client) == [{}, *expected]
    assert expected[0]["peer"]["name"] == "Беседа 7"
    assert [(one["channel"], json.loads(one["data"])) for one in heard if one] == [
        ("events:command", expected[0]), ("events:button", expected[1]),
    ]  # fmt: skip
    assert client.xlen(DEAD_LETTERS) == 0


def test_the_fetcher_does_not_publish_it_again(
    fetch: Fetch, vk: VK, client: Any, dead_letter: DeadLetterWriter
) -> None:
    """VK may repeat the update at any time, even after `seen` has forgotten it."""
    repeated, forgotten, new = message(), message(), message()
    dead_letter(repeated, forgotten)
    client.zrem(f"{{events}}:seen:{GROUP}", forgotten["event_id"])
    fetcher = fetch()
    fetcher.wait_for("Polling VK", 60)
    assert fetch("--redrive").wait(60) == 0
    vk.push(repeated, forgotten, new)
    wait_until(lambda: new["event_id"] in ids(client), 60)
    assert ids(client) == [repeated["event_id"], forgotten["event_id"], new["event_id"]]


def test_dead_letters_that_stay(run: Any, client: Any, dead_letter: DeadLetterWriter) -> None:
    """Each of these stays unchanged, and its current reason is printed; the dead letters around it are published."""
    without_user = message()
    del without_user["object"]["message"]["from_id"]
    foreign = message(group_id=5) | {"group_id": 5}
    dead_letter(message(), without_user, update("wall_post_new", {"id": 1}), foreign, message())
    client.xadd(DEAD_LETTERS, {"update": '"no object"', "error": "no update"})
    client.xadd(DEAD_LETTERS, {"update": "{", "error": "no JSON"})
    client.xadd(DEAD_LETTERS, {"since": "1", "until": "5", "error": "VK has forgotten"})
    client.xadd(DEAD_LETTERS, {"update": "", "error": "nested too deep to be kept"})
    before = client.xrange(DEAD_LETTERS)
    lines = run()
    assert client.xrange(DEAD_LETTERS) == [*before[1:4], *before[5:]]
    assert lines == [
        f"{before[1][0]} stays: from_id is missing or not a whole number of 64 bits",
        f"{before[2][0]} stays: only RAW=1 makes an event of its type",
        *(f"{before[number][0]} stays: it holds no update of this community" for number in (3, 5, 6, 7, 8)),
        "published: 2, stay: 7",
    ]
    assert len(events(client)) == 2
    assert run()[-1] == "published: 0, stay: 7"
    assert len(events(client)) == 2


def test_nothing_to_do(run: Any, client: Any) -> None:
    """If there is no stream of dead letters, none is created."""
    assert run() == ["published: 0, stay: 0"]
    assert client.dbsize() == 0


def test_the_settings_count(run: Any, client: Any, dead_letter: DeadLetterWriter) -> None:
    """BUS, prefixes, RAW and STREAM_MAXLEN apply as in the fetcher."""
    dead_letter(message("#go"), update("wall_post_new", {"id": 1, "from_id": PERSON}))
    assert run(BUS="other") == ["published: 0, stay: 0"]
    assert run(COMMAND_PREFIXES="#", RAW=1) == ["published: 2, stay: 0"]
    made = events(client)
    assert [event["event_type"] for event in made] == ["command", "wall_post_new"]
    assert all(event["raw"]["type"] in ("message_new", "wall_post_new") for event in made)
    dead_letter(*[message() for _ in range(350)])
    run(STREAM_MAXLEN=1)
    assert client.xlen("events") < 150


def test_a_cropped_message_is_published_whole(run: Any, vk: VK, client: Any, dead_letter: DeadLetterWriter) -> None:
    """The full message is requested, as the fetcher does."""
    cropped = message("the beginn", is_cropped=True)
    full = cropped["object"]["message"] | {"text": "the beginning"}
    vk.messages[PEER, full["conversation_message_id"]] = full
    dead_letter(cropped)
    run()
    assert events(client)[0]["message"]["text"] == "the beginning"


def test_old_titles_do_not_come_back(run: Any, client: Any, dead_letter: DeadLetterWriter) -> None:
    """A title in a dead letter is older than what fetchers have cached since, so it is not cached."""
    client.set(f"{{events}}:name:{PEER}", json.dumps(["Новое имя", "", "", ""]))
    renamed = message("", action={"type": "chat_title_update", "member_id": PERSON, "text": "Старое имя"})
    dead_letter(renamed)
    run()
    assert events(client)[0]["peer"]["name"] == "Старое имя"
    assert json.loads(client.get(f"{{events}}:name:{PEER}"))[0] == "Новое имя"


def test_each_name_is_looked_up_once(run: Any, vk: VK, client: Any, dead_letter: DeadLetterWriter) -> None:
    """The command sends few requests, because a running fetcher needs the request limit for itself."""
    dead_letter(*[message(user=1000 + number % 5, peer=CHAT + number % 2 + 1) for number in range(250)])
    assert run() == ["published: 250, stay: 0"]
    assert len(vk.requests) <= 5
    assert all(event["user"]["name"] and event["peer"]["name"] for event in events(client))


# --- VK fails ----------------------------------------------------------------------------------------------------


def test_one_chat_whose_title_vk_cannot_return(run: Any, vk: VK, client: Any, dead_letter: DeadLetterWriter) -> None:
    """Dead letters of that chat stay, because events are published only with their names; others are not delayed."""
    chats = [1, 1, 1, 1, 2, 3, 4, 5]
    dead_letter(*[message(peer=CHAT + chat) for chat in chats])
    vk.failing[CHAT + 1] = 10
    lines = run()
    assert lines[-1] == "published: 4, stay: 4"
    assert all("stays: VK error 10 in messages.getConversationsById" in line for line in lines[:-1])
    assert [event["peer"]["name"] for event in events(client)] == ["Беседа 2", "Беседа 3", "Беседа 4", "Беседа 5"]
    vk.failing.clear()
    assert run() == ["published: 4, stay: 0"]
    assert {event["peer"]["name"] for event in events(client)[4:]} == {"Беседа 1"}


def test_vk_fails_once(run: Any, vk: VK, client: Any, dead_letter: DeadLetterWriter) -> None:
    """The command ends after it has printed how many it has published; the next run publishes the rest."""
    dead_letter(*[message(peer=PERSON) for _ in range(100)], message(), message())
    vk.fail_api(500, method="messages.getConversationsById")
    assert run(raises=TransientError) == ["published: 100, stay: 0"]
    assert run() == ["published: 2, stay: 0"]
    assert len(set(ids(client))) == client.xlen("events") == 102


def test_vk_is_down(fetch: Fetch, vk: VK, client: Any, dead_letter: DeadLetterWriter) -> None:
    """The command ends with code 1 and one sentence. All dead letters stay, and the next run publishes them."""
    dead_letter(*[message() for _ in range(150)])
    vk.down()
    process = fetch("--redrive")
    assert process.wait(60) == 1
    assert process.output.splitlines() == [
        "published: 0, stay: 0", "event-fetcher: VK's API is unavailable (ConnectionError)",
    ]  # fmt: skip
    assert client.xlen(DEAD_LETTERS) == 150
    vk.up()
    assert fetch("--redrive").wait(60) == 0
    assert len(set(ids(client))) == client.xlen("events") == 150


def test_an_empty_shell_variable_names_no_group(fetch: Fetch, client: Any, dead_letter: DeadLetterWriter) -> None:
    """In `--redrive "$GROUP"`, an empty variable must not select the fetcher's own dead letters."""
    dead_letter(message())
    process = fetch("--redrive", "")
    assert process.wait(60) == 0
    assert process.output.splitlines() == ["given back to the group : 0, stay: 0"]
    assert client.xlen(DEAD_LETTERS) == 1


def test_a_refused_token(fetch: Fetch, vk: VK, client: Any, dead_letter: DeadLetterWriter) -> None:
    """The output is one sentence with the remedy, without the token."""
    dead_letter(message())
    process = fetch("--redrive", TOKEN="vk1.a.wrong")
    assert process.wait(60) == 1
    assert "VK refuses the token: put a valid community token into TOKEN" in process.output
    assert "vk1.a.wrong" not in process.output
    assert "Traceback" not in process.output
    assert client.xlen(DEAD_LETTERS) == 1


# --- Redis fails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [[], ["moderation"]])
@pytest.mark.parametrize(
    ("url", "end"),
    [
        (f"redis://{HOST}:1/0", "Redis is unavailable (connection refused)"),
        ("redis://:secret@{}/0", "Redis refuses the user or the password: fix REDIS_URL"),
    ],
)
def test_redis_cannot_be_reached(fetch: Fetch, server: Server, group: list[str], url: str, end: str) -> None:
    """The command prints one sentence and exits with code 1; it does not report a bug."""
    process = fetch("--redrive", *group, REDIS_URL=url.format(f"{HOST}:{server.port}"))
    assert process.wait(60) == 1
    assert process.output.splitlines()[-1] == f"event-fetcher: {end}"
    assert "Traceback" not in process.output


def test_a_lost_reply(run: Any, client: Any, dead_letter: DeadLetterWriter, server: Server) -> None:
    """The command cannot know that the event is published, but the next run does not publish it again."""
    dead_letter(message(), message())
    with Proxy(server.port) as proxy:
        proxy.drop_replies()
        assert run(raises=TransientError, REDIS_URL=proxy.url) == ["published: 0, stay: 0"]
        assert run(REDIS_URL=proxy.url) == ["published: 1, stay: 0"]
    assert len(set(ids(client))) == client.xlen("events") == 2
    assert client.xlen(DEAD_LETTERS) == 0


@pytest.mark.parametrize("rule", ["-xdel", "-xadd", "-zadd", "-publish", "-xrange", "-zrevrange"])
def test_a_missing_permission(run: Any, rule: str) -> None:
    """Whichever permission is missing, the script writes nothing, because it could not roll back."""
    with Server(acl=[f"user limited on >x ~* &* +@all {rule}"]) as server, server.client() as client:
        DeadLetterWriter(server.url)(message())
        run(raises=FatalError, REDIS_URL=address(server.port, "x", "limited"))
        assert (client.xlen(DEAD_LETTERS), client.xlen("events")) == (1, 0)


@pytest.mark.parametrize("key", ["events", f"{{events}}:seen:{GROUP}"])
def test_a_key_of_another_type(run: Any, client: Any, dead_letter: DeadLetterWriter, key: str) -> None:
    """If another program uses these keys, the dead letter stays."""
    dead_letter(message())
    client.delete(key)
    client.set(key, "mine")
    run(raises=FatalError)
    assert client.xlen(DEAD_LETTERS) == 1


def test_a_full_redis(run: Any, client: Any, dead_letter: DeadLetterWriter) -> None:
    """The dead letter is removed first, so Redis does not refuse the event that replaces it for lack of memory."""
    dead_letter(*[message() for _ in range(3)])
    client.config_set("maxmemory", 1)
    try:
        assert run() == ["published: 3, stay: 0"]
    finally:
        client.config_set("maxmemory", 0)
    assert client.xlen("events") == 3


def test_a_cluster(run: Any) -> None:
    """All keys of the command are in one slot."""
    with cluster(3) as nodes, contextlib.ExitStack() as stack:
        client = stack.enter_context(redis.RedisCluster("127.0.0.1", nodes[0].port, decode_responses=True))
        DeadLetterWriter(nodes[0].url)(message(), reaction())
        for node in nodes:
            run(REDIS_URL=node.url)
        assert client.xlen("events") == 2
        assert client.xlen(DEAD_LETTERS) == 0


# --- Several at once, and kill -9 --------------------------------------------------------------------------------


def test_two_at_once(fetch: Fetch, client: Any, dead_letter: DeadLetterWriter, server: Server) -> None:
    """Each event is published by one of them, and only once."""
    updates = [message() for _ in range(300)]
    dead_letter(*updates)
    with Proxy(server.port, delay=0.001) as proxy:
        both = [fetch("--redrive", REDIS_URL=proxy.url) for _ in range(2)]
        assert [process.wait(60) for process in both] == [0, 0]
    assert Counter(ids(client)) == Counter(update["event_id"] for update in updates)
    assert sum(counts(*[process.output for process in both])) == 300
    assert client.xlen(DEAD_LETTERS) == 0


@pytest.mark.parametrize(
    ("group", "count", "kills"), [((), 200, 3), (("moderation",), 150, 2)], ids=["the fetcher's", "a group's"]
)
def test_killed_again_and_again(
    fetch: Fetch,
    client: Any,
    dead_letter: DeadLetterWriter,
    server: Server,
    group: tuple[str, ...],
    count: int,
    kills: int,
) -> None:
    """The command is killed at random moments: each dead letter is either done or left, with nothing in between."""
    updates = [message() for _ in range(count)]
    letters = GROUP_DEAD_LETTERS if group else DEAD_LETTERS
    if group:
        set_aside(client, count)
    else:
        dead_letter(*updates)

    def counts() -> tuple[int, int]:
        """Count what is left and what is done in one transaction: a killed process may have a command on its way."""
        with client.pipeline() as pipeline:
            pipeline.xlen(letters)
            pipeline.xpending("events", *group) if group else pipeline.xlen("events")
            left, done = pipeline.execute()
        return left, done["pending"] if group else done

    with Proxy(server.port, delay=0.002) as proxy:
        while client.xlen(letters):
            process = fetch("--redrive", *group, REDIS_URL=proxy.url)
            due = counts()[1] + 40
            wait_until(lambda: counts()[1] >= due or not process.running, 60)  # noqa: B023
            kills -= process.running
            process.kill()
            proxy.cut()
            assert sum(counts()) == count
    assert kills <= 0, "it was never killed before its end"
    assert group or ids(client) == [update["event_id"] for update in updates]


def test_beside_a_fetcher(fetch: Fetch, vk: VK, client: Any, dead_letter: DeadLetterWriter) -> None:
    """A running fetcher still publishes new updates, skips those that VK repeats, and records its own dead letters."""
    old = [message() for _ in range(100)]
    dead_letter(*old)
    fetcher = fetch()
    fetcher.wait_for("Polling VK", 60)
    new = [message() for _ in range(50)]
    process = fetch("--redrive")
    for one in new:
        vk.push(one, {"type": "message_new", "event_id": f"bad {one['event_id']}"})
        vk.push(*old[:2])
    assert process.wait(60) == 0
    wait_until(lambda: client.xlen("events") >= 150 and client.xlen(DEAD_LETTERS) >= 50, 60)
    assert fetch("--redrive").wait(60) == 0
    assert Counter(ids(client)) == Counter(one["event_id"] for one in old + new)
    assert sum("update" in fields for _, fields in client.xrange(DEAD_LETTERS)) == 50


# --- A consumer group's dead letters -----------------------------------------------------------------------------

GROUP_DEAD_LETTERS, ATTEMPTS = "{events}:dead-letter:moderation", "{events}:attempts:moderation"


def set_aside(client: Any, count: int = 1) -> list[str]:
    """Add events that two groups have read and `moderation` has set aside; return the ids of their entries."""
    entries = []
    for number in range(1, count + 1):
        text = json.dumps(Event("message", str(number), *EMPTY).as_dict())
        entries.append(client.xadd("events", {"event": text}))
        client.xadd(GROUP_DEAD_LETTERS, {"event": text, "id": entries[-1], "attempts": "3"})
        client.hset(ATTEMPTS, entries[-1], 3)
    for group in ("moderation", "other"):
        client.xgroup_create("events", group, "$")
    return entries


@pytest.fixture
def failed(client: Any) -> list[str]:
    return set_aside(client, 3)


EMPTY: Any = {"uuid": 1, "name": "", "firstname": "", "lastname": "", "nick": ""}, {"bpid": 1, "cid": 0, "name": ""}


def taken(client: Any, group: str, count: int, **options: Any) -> list[str]:
    """Consume this many events, and return their event_ids."""
    with contextlib.closing(consume(client, group, f"{group}-1", **options)) as found:
        return [event.event_id for event in itertools.islice(found, count)]


def test_events_are_given_back_only_to_their_group(fetch: Fetch, client: Any, failed: list[str]) -> None:
    """The group gets each event again, with all its attempts, at once whatever the consumers' `idle` is.

    Other groups get nothing.
    """
    process = fetch("--redrive", "moderation", TOKEN=None, GROUPID=None)
    assert process.wait(60) == 0
    assert process.output == "given back to the group moderation: 3, stay: 0"
    assert client.xlen(GROUP_DEAD_LETTERS) == 0
    assert not client.exists(ATTEMPTS)
    client.xadd("events", {"event": json.dumps(Event("message", "4", *EMPTY).as_dict())})
    assert sorted(taken(client, "moderation", 4, attempts=3, idle=200_000)) == ["1", "2", "3", "4"]
    assert taken(client, "other", 1) == ["4"]


def test_dead_letters_of_a_group_that_stay(run: Any, client: Any, failed: list[str]) -> None:
    """These are events that were trimmed from the stream, and entries that are not dead letters."""
    client.xdel("events", failed[1])
    client.xadd(GROUP_DEAD_LETTERS, {"note": "by hand"})
    client.xadd(GROUP_DEAD_LETTERS, {"event": "{}", "id": "first"})
    letters = [letter for letter, _ in client.xrange(GROUP_DEAD_LETTERS)]
    lines = [
        f"{letters[1]} stays: its event is no longer in the stream",
        f"{letters[3]} stays: it names no entry of the stream",
        f"{letters[4]} stays: it names no entry of the stream",
    ]
    assert run("moderation") == [*lines, "given back to the group moderation: 2, stay: 3"]
    assert [letter for letter, _ in client.xrange(GROUP_DEAD_LETTERS)] == [letters[1], *letters[3:]]
    assert run("moderation") == [*lines, "given back to the group moderation: 0, stay: 3"]
    assert client.xpending("events", "moderation")["pending"] == 2


def test_a_group_that_does_not_exist(run: Any, client: Any, failed: list[str]) -> None:
    """A line for each dead letter reports it; nothing is created and nothing is lost."""
    client.xgroup_destroy("events", "moderation")
    lines = run("moderation")
    assert len(lines) == 4
    assert all(line.endswith("stays: the group does not exist") for line in lines[:3])
    assert client.xlen(GROUP_DEAD_LETTERS) == 3
    assert run("nobody") == ["given back to the group nobody: 0, stay: 0"]
    assert [group["name"] for group in client.xinfo_groups("events")] == ["other"]


def test_an_event_that_a_consumer_is_handling_is_not_given_back(run: Any, client: Any, failed: list[str]) -> None:
    """A consumer that crashed before its XACK gets the event again, so a second one must not get it."""
    client.xclaim("events", "moderation", "moderation-1", 0, [failed[0]], force=True)
    assert run("moderation") == ["given back to the group moderation: 3, stay: 0"]
    pending = client.xpending_range("events", "moderation", "-", "+", 10)
    assert {entry["message_id"]: (entry["consumer"], entry["times_delivered"]) for entry in pending} == {
        failed[0]: ("moderation-1", 2), failed[1]: ("redrive", 0), failed[2]: ("redrive", 0),
    }  # fmt: skip
    assert not client.exists(ATTEMPTS)


def test_a_pending_event_that_is_trimmed(run: Any, client: Any, failed: list[str]) -> None:
    """Consumers would skip the event, so the dead letter, which is all that is left of it, stays."""
    client.xclaim("events", "moderation", "moderation-1", 0, [failed[0]], force=True)
    client.xdel("events", failed[0])
    assert run("moderation")[-1] == "given back to the group moderation: 2, stay: 1"
    assert client.xlen(GROUP_DEAD_LETTERS) == 1


@pytest.mark.long
def test_an_event_that_fails_again_does_not_loop_forever(fetch: Fetch, client: Any, failed: list[str]) -> None:
    """The command ends, even if a consumer keeps setting aside the events that it gives back."""
    ended = threading.Event()
    fields = dict(client.xrange(GROUP_DEAD_LETTERS)[0][1])

    def fail() -> None:
        while not ended.is_set():
            with client.pipeline(transaction=False) as pipeline:
                for _ in range(20):
                    pipeline.xadd(GROUP_DEAD_LETTERS, fields)
                pipeline.execute()

    failing = threading.Thread(target=fail)
    failing.start()
    try:
        process = fetch("--redrive", "moderation")
        assert process.wait(60) == 0
    finally:
        ended.set()
        failing.join()


def test_two_give_back_at_once(fetch: Fetch, client: Any, server: Server) -> None:
    """An event that one command has given back and a consumer has handled is not given back by the other."""
    set_aside(client, 200)
    with Proxy(server.port, delay=0.001) as proxy, server.client() as own:
        both = [fetch("--redrive", "moderation", REDIS_URL=proxy.url) for _ in range(2)]
        handled = Counter(taken(own, "moderation", 200))
        assert [process.wait(60) for process in both] == [0, 0]
    assert handled == Counter(str(number) for number in range(1, 201))
    # The last event is acknowledged only when the next one is requested.
    assert client.xpending("events", "moderation")["pending"] <= 1
    assert sum(counts(*[process.output for process in both])) == 200


@pytest.mark.parametrize("rule", ["-xdel", "-xclaim", "-hdel", "-xpending", "-xrange"])
def test_a_missing_permission_for_a_group(run: Any, rule: str) -> None:
    """Nothing is written without all of these permissions."""
    with Server(acl=[f"user limited on >x ~* &* +@all {rule}"]) as server, server.client() as client:
        set_aside(client)
        run("moderation", raises=FatalError, REDIS_URL=address(server.port, "x", "limited"))
        assert client.xlen(GROUP_DEAD_LETTERS) == client.hlen(ATTEMPTS) == 1
        assert client.xpending("events", "moderation")["pending"] == 0


@pytest.mark.parametrize("rule", ["", *rules("redrive")])
def test_the_documented_permissions(run: Any, rule: str) -> None:
    """The documented rules suffice for both kinds of dead letters, and each rule is needed for one of them.

    Without one of the rules, nothing is lost.
    """
    with Server(acl=acl("redrive", rule)) as server, server.client() as client:
        set_aside(client)
        DeadLetterWriter(server.url)(message())
        url = address(server.port, "SECRET", "redrive")
        refused = []
        for group in (None, "moderation"):
            try:
                run(group, REDIS_URL=url)
            except FatalError as error:
                refused.append(str(error))
        assert client.xlen(DEAD_LETTERS) + client.xlen("events") == 2
        assert client.xlen(GROUP_DEAD_LETTERS) + client.xpending("events", "moderation")["pending"] == 1
        assert bool(refused) == (rule not in ("", "+info"))
        assert all("Redis refuses a permission" in sentence for sentence in refused)
        assert {entry["object"] for entry in client.acl_log()} <= {"client|setinfo"} or rule


def test_a_group_on_a_cluster(run: Any) -> None:
    """All keys of the command are in one slot."""
    with cluster(3) as nodes, redis.RedisCluster("127.0.0.1", nodes[0].port, decode_responses=True) as client:
        set_aside(client)
        for node in nodes:
            run("moderation", REDIS_URL=node.url)
        assert client.xpending("events", "moderation")["pending"] == 1
        assert client.xlen(GROUP_DEAD_LETTERS) == 0
