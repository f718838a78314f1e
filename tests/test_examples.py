"""The examples do what they say: on a bus with chosen events, behind a fetcher with RAW=1, and on the demo's bus."""

import ast
import contextlib
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from fetcher import Event, Message, Peer, User
from tests import free_port
from tests.forks import LIBRARIES, ROOT, template
from tests.processes import Fetcher
from tests.servers import Server
from tests.servers import wait_until as wait_for_it
from tests.vk import CHAT, METHODS, PEER, PERSON, VK, RequestRejected, message, reaction, update

LONG = 80  # seconds, a ceiling: on a busy machine an example may be slow to import what it needs
wait_until = functools.partial(wait_for_it, timeout=LONG)

EXAMPLES = ROOT / "examples"
VKBOTTLE, WITH_VKBOTTLE = ("vkbottle", *LIBRARIES), ("async_bot", "vkbottle_bot")
RUN = """
import runpy
from tests.run import redirect_vk_to
redirect_vk_to({url!r})
if {name!r} in {WITH_VKBOTTLE}:
    from vkbottle import AiohttpClient
    request = AiohttpClient.request
    AiohttpClient.request = lambda self, url, *more, **options: request(
        self, {url!r} + "/" + url.split("/", 3)[3], *more, **options)
runpy.run_module("examples.{name}", run_name="__main__", alter_sys=True)
"""
COMMANDS = {  # as the docstrings say
    path.stem: re.findall(r"python (-m .+)", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    for path in sorted(EXAMPLES.glob("*.py"))
}
TEAM, YAN = Peer(2000000007, 7, "Футбол"), User(111222333, "Ян Ли", "Ян", "Ли", "yan")


def marked(name: str, *more: Any) -> Any:
    """Return the parameters of a test; those with vkbottle share a worker, because importing it takes seconds."""
    marks = [pytest.mark.long, pytest.mark.xdist_group("vkbottle")] if name in WITH_VKBOTTLE else []
    return pytest.param(name, *more, marks=marks)


def event(id: str, event_type: str, text: str, attachments: tuple[str, ...] = (), peer: Peer = TEAM) -> str:
    message = Message(1, text, None, [], list(attachments))
    return json.dumps(Event(event_type, id, YAN, peer, message=message).as_dict())


class Example:
    """Runs an example in a directory with these settings in `.env`; its requests to VK go to a simulated one."""

    def __init__(self, name: str, *arguments: str, vk: VK | None = None, **settings: str) -> None:
        self.out = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        code = RUN.format(url=vk.url if vk else "http://127.0.0.1:1", name=name, WITH_VKBOTTLE=WITH_VKBOTTLE)
        settings |= {"TOKEN": vk.token} if vk else {}
        self.directory = tempfile.TemporaryDirectory()
        (Path(self.directory.name) / ".env").write_text("".join(f"{key}={settings[key]}\n" for key in settings))
        libraries = VKBOTTLE if name in WITH_VKBOTTLE else LIBRARIES
        self.process = template(*libraries).start(
            ["-c", code, *arguments], Path(self.directory.name),
            {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}, self.out.fileno(), self.out.fileno(),
        )  # fmt: skip

    def __enter__(self) -> "Example":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.out.close()
        self.directory.cleanup()

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(LONG)

    @property
    def printed(self) -> list[str]:
        self.out.seek(0)
        return self.out.read().splitlines()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The address of the demo's bus."""
    with Fetcher("--demo", constants={"fetcher.commands.demo:PORT": free_port()}) as fetcher:
        yield re.findall(r"redis://[\w.:/]+", fetcher.lines[fetcher.wait_for("redis://", LONG)])[0]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The messages that the example sent through VK, which refuses one peer."""
    sent: list[dict[str, Any]] = []

    def send(vk: VK, params: dict[str, Any]) -> Any:
        peer = params.get("peer_ids") or params.get("peer_id") or params.get("user_id") or CHAT + int(params["chat_id"])
        if int(peer) == 666:
            raise RequestRejected(901, "Can't send messages for users without permission")
        sent.append(params | {"peer": int(peer)})
        return [{"peer_id": int(peer), "message_id": 0}] if "peer_ids" in params else 0

    monkeypatch.setitem(METHODS, "messages.send", send)
    return sent


def answers(sent: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """List the peer and the text of each message that was sent."""
    return [(params["peer"], params["message"]) for params in sent]


# --- On a bus with chosen events ---------------------------------------------------------------------------


def test_commands_are_answered(server: Server, client: Any, sent: list[dict[str, Any]]) -> None:
    with VK() as vk, Example("answer_commands", REDIS_URL=server.url, vk=vk) as example:
        wait_until(lambda: client.pubsub_numsub("events:command")[0][1])
        client.publish("events:message", event("a", "message", "/help"))
        client.publish("events:command", event("b", "command", "/unknown"))
        client.publish("events:command", event("c", "command", "/help", peer=Peer(666, 0, "")))
        client.publish("events:command", event("d", "command", "/HELP me"))
        client.publish("events:command", event("d", "command", "/HELP me"))
        client.publish("events:command", event("e", "command", "!start"))
        wait_until(lambda: len(sent) == 3 or example.process.poll() is not None)
        assert answers(sent) == [
            (2000000007, "I know /help and /start."),
            (2000000007, "I know /help and /start."),
            (2000000007, "Hello, Ян!"),
        ]
        ids = [int(params["random_id"]) for params in sent]
        assert ids[0] == ids[1] != ids[2]
        assert all(0 < id < 2**31 for id in ids)
        assert example.printed == ["c stays unanswered: ApiError"]


@pytest.mark.long
@pytest.mark.xdist_group("vkbottle")
def test_vkbottle_takes_every_message_of_the_demo() -> None:
    """The demo's messages have all that vkbottle requires; others would reach no handler of a bot tried on the demo."""
    from vkbottle_types.events import GroupTypes

    for sent in json.loads((ROOT / "fetcher/commands/demo.json").read_text(encoding="utf-8"))["updates"]:
        if sent["type"] == "message_new":
            assert GroupTypes.MessageNew(**sent).object.message


@pytest.mark.long
@pytest.mark.xdist_group("vkbottle")
def test_the_asynchronous_bot_answers_commands(server: Server, client: Any, sent: list[dict[str, Any]]) -> None:
    client.xgroup_create("events", "bot", "0", mkstream=True)
    for id, event_type, text, peer in [
        ("a", "message", "/ping", TEAM), ("b", "command", "/unknown", TEAM),
        ("c", "command", "/ping", Peer(666, 0, "")),
        ("d", "command", "/PING me", TEAM), ("d", "command", "/PING me", TEAM), ("e", "command", "!where", TEAM),
    ]:  # fmt: skip
        client.xadd("events", {"event": event(id, event_type, text, peer=peer)})
    with VK() as vk, Example("async_bot", "bot-1", REDIS_URL=server.url, vk=vk) as example:
        wait_until(lambda: len(sent) == 3 or example.process.poll() is not None)
        assert answers(sent) == [
            (2000000007, "Ян, I am here."),
            (2000000007, "Ян, I am here."),
            (2000000007, "This is «Футбол», 2000000007."),
        ]
        ids = [int(params["random_id"]) for params in sent]
        assert ids[0] == ids[1] != ids[2]
        assert all(0 < id < 2**31 for id in ids)
        assert example.printed == ["c stays unanswered: VKAPIError_901"]


@pytest.mark.parametrize("name", [marked(name) for name in COMMANDS])
def test_an_example_runs_as_its_docstring_says_and_ends_on_ctrl_c(server: Server, client: Any, name: str) -> None:
    """The documented command works in the repository, installed or not, and ends without a traceback."""
    (command,) = COMMANDS[name]
    environment = {"REDIS_URL": server.url, "TOKEN": "token", "PATH": os.environ["PATH"]}
    run = subprocess.Popen(
        [sys.executable, *shlex.split(command)], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_until(
            lambda: client.exists("events") or client.pubsub_numsub("events:command")[0][1] or run.poll() is not None
        )
        run.send_signal(signal.SIGINT)
        printed, _ = run.communicate(timeout=LONG)
        assert (printed, run.returncode) == ("", 0)
    finally:
        run.kill()
        run.wait()


@pytest.mark.parametrize(
    ("name", "missing"),
    [marked(name, "TOKEN") for name in COMMANDS if name != "moderation_worker"]
    + [marked(name, "The consumer's name") for name in COMMANDS if name != "answer_commands"],
)
def test_an_example_says_in_one_sentence_what_is_missing(name: str, missing: str) -> None:
    """A missing setting or argument gives no traceback: a user who tries an example has not read its source."""
    settings: dict[str, Any] = {} if missing == "TOKEN" else {"TOKEN": "token"}
    with Example(name, *["bot-1"] * (missing == "TOKEN"), **settings) as example:
        assert example.process.wait(LONG) == 1
        (line,) = example.printed
        assert line.startswith(f"{missing} is missing: ")
        (command,) = COMMANDS[name]
        assert missing == "TOKEN" or line.endswith(f"python {command}")


def test_links_are_reported_at_the_third_one(server: Server, client: Any) -> None:
    for id, text, attachments in [
        ("a", "https://example.org", ()), ("b", "", ("photo", "link")), ("c", "no link", ("photo",)),
        ("b", "again, after a crash", ("link",)),
    ]:  # fmt: skip
        client.xadd("events", {"event": event(id, "message", text, attachments)})
    client.xadd("events", {"event": event("d", "message", "ftp://in.private", peer=Peer(1, 0, "Ян Ли"))})
    client.xgroup_create("events", "moderation", "0")
    with Example("moderation_worker", "moderation-1", REDIS_URL=server.url) as example:
        wait_until(lambda: _done(client) or example.process.poll() is not None)
        assert example.printed == []
        client.xadd("events", {"event": event("e", "message", "http://example.org")})
        wait_until(lambda: example.printed)
        assert example.printed == ["Ян Ли (@yan) posts links in «Футбол»"]


def _done(client: Any) -> bool:
    (group,) = client.xinfo_groups("events")
    return bool(group["lag"] == group["pending"] == 0)


def test_each_line_of_the_shell_examples_is_understood(server: Server, client: Any) -> None:
    text = (EXAMPLES / "redis-cli.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (redis-cli .+)$", text, re.MULTILINE)
    assert len(lines) > 10
    talking = threading.Event()

    def talk() -> None:
        while not talking.wait(0.02):
            client.xadd("events", {"event": event("a", "message", "text")})
            client.xadd("{events}:dead-letter", {"update": "{}", "error": "malformed"})
            client.xadd("{events}:dead-letter:moderation", {"event": "{}", "id": "1-0", "attempts": 3})
            with contextlib.suppress(redis.ResponseError):
                client.xgroup_create("events", "moderation", "$")

    threading.Thread(target=talk, daemon=True).start()
    try:
        for line in lines:
            _, *command = [word for word in shlex.split(line) if word != "--raw"]
            connection: Any = server.client(protocol=2).connection_pool.get_connection()
            connection.send_command(*command)
            assert connection.read_response() is not None, line
            connection.disconnect()
    finally:
        talking.set()


# --- Behind a fetcher with RAW=1 -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [marked("vkbottle_bot"), marked("vk_api_script")])
def test_bot_of_another_library(
    vk: VK, server: Server, client: Any, fetch: Callable[..., Fetcher], sent: list[dict[str, Any]], name: str
) -> None:
    """The bot's handlers get each update once, even if it was sent while the bot did not run. It ends on Ctrl-C."""
    settings: dict[str, Any] = {"vk": vk, "REDIS_URL": server.url, "BUS": "other"}
    fetch(RAW=1, BUS="other")
    ping, pong = ("/ping a", "pong a") if name == "vkbottle_bot" else ("/ping", "pong")

    def joined(user: int) -> dict[str, Any]:
        return update("group_join", {"user_id": user, "join_type": "join"})

    with Example(name, "bot-1", **settings) as bot:
        wait_until(lambda: client.exists(f"{{other}}:ts:{vk.group_id}"), what="the fetcher's first poll")
        wait_until(lambda: client.xinfo_groups("other"), what="the bot's group")
        client.xadd("other", {"event": event("of-before", "message", "published without raw")})
        vk.push(message(ping), message(ping, peer=PERSON), reaction(), joined(PERSON), message("пока"), message(ping))
        expected = [(PEER, pong), (PERSON, "Welcome!"), (PEER, pong)]
        wait_until(lambda: answers(sent) == expected or bot.process.poll() is not None, what="the answers")
        assert answers(sent) == expected
        without = "of-before is skipped: it was published without `raw`, set RAW=1 for the fetcher"
        assert bot.printed.count(without) == 1
        assert bot.printed.count(f"{PERSON}: пока") == 1
    vk.push(joined(5))
    wait_until(lambda: client.xlen("other") == 8, what="the event")
    assert answers(sent) == expected
    with Example(name, "bot-1", **settings) as bot:
        wait_until(lambda: (5, "Welcome!") in answers(sent), what="the answer to what was sent meanwhile")
        assert set(answers(sent)) == {*expected, (5, "Welcome!")}, "what it was killed with may have come again"
        assert bot.interrupt() == 0
        assert "Traceback" not in "\n".join(bot.printed)


# --- On the demo's bus -------------------------------------------------------------------------------------


def test_the_demo_is_answered(demo: str, sent: list[dict[str, Any]]) -> None:
    with VK() as vk, Example("answer_commands", REDIS_URL=demo, vk=vk) as example:
        commands = redis.Redis.from_url(demo)
        wait_until(lambda: commands.pubsub_numsub("events:command")[0][1])
        # The example does not know all of the demo's commands.
        commands.publish("events:command", event("a", "command", "/help"))
        wait_until(lambda: sent)
        assert example.process.poll() is None


def test_the_demo_is_moderated(demo: str) -> None:
    client = redis.Redis.from_url(demo)
    with Example("moderation_worker", "moderation-1", REDIS_URL=demo) as example:
        delivered: set[bytes] = set()

        def third() -> bool:
            delivered.update(group["last-delivered-id"] for group in client.xinfo_groups("events"))
            return len(delivered) > 3  # the first is where the group begins

        wait_until(third)
        assert client.xpending("events", "moderation")["pending"] <= 1
        assert example.process.poll() is None
