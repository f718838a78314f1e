"""What flows on a real bus, shown to people: on a terminal, in a pipe, and whatever becomes of Redis."""

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
import redis

from fetcher.commands.watch import describe, watch
from fetcher.events import Action, Button, Event, Message, Peer, Reaction, Reply, User
from tests.processes import ROOT
from tests.servers import Server, cluster, wait_until

USER = User(1, "Вера Лисицына", "Вера", "Лисицына", "vera")
CHAT, PRIVATE = Peer(2000000007, 7, "Двор"), Peer(1, 0, "Вера Лисицына")
MESSAGE = Message(5, "Привет", None, [], [])
EVENT = Event("message", "a" * 40, USER, CHAT, message=MESSAGE)
WHO = "Вера Лисицына (@vera)"

# --- A line for people ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (EVENT, f"message  {WHO} in «Двор»: Привет"),
        (EVENT._replace(peer=PRIVATE, event_type="command"), f"command  {WHO} in private: Привет"),
        (EVENT._replace(message=MESSAGE._replace(text="")), f"message  {WHO} in «Двор»: (no text)"),
        (
            EVENT._replace(message=Message(5, "a", Reply(1, "b", 2), [Reply(2, "c", 0), Reply(3, "d", 0)], ["photo"])),
            f"message  {WHO} in «Двор»: a [photo] (in reply to «b») (forwards «c») (forwards «d»)",
        ),
        (
            EVENT._replace(message=MESSAGE._replace(text=""), action=Action("chat_invite_user", USER, "", 0)),
            f"message  {WHO} in «Двор»: [chat_invite_user Вера Лисицына]",
        ),
        (
            EVENT._replace(
                message=MESSAGE._replace(text=""), action=Action("chat_kick_user", User(9, "", "", "", ""), "", 0)
            ),
            f"message  {WHO} in «Двор»: [chat_kick_user 9]",
        ),
        (
            EVENT._replace(action=Action("chat_title_update", None, "Сад", 0)),
            f"message  {WHO} in «Двор»: Привет [chat_title_update Сад]",
        ),
        (EVENT._replace(payload={"да": 1}), f'message  {WHO} in «Двор»: Привет (payload {{"да": 1}})'),
        (
            Event("button", "b", USER, CHAT, button=Button(6, "c", {"да": 1})),
            f'button   {WHO} in «Двор»: pressed {{"да": 1}} below message 6',
        ),
        (
            Event("reaction", "b", USER, CHAT, reaction=Reaction(6, 4)),
            f"reaction {WHO} in «Двор»: reaction 4 to message 6",
        ),
        (
            Event("reaction", "b", USER, CHAT, reaction=Reaction(6, 0)),
            f"reaction {WHO} in «Двор»: took back the reaction to message 6",
        ),
        (
            Event("group_join", "b", USER, PRIVATE, raw={"object": {"join_type": "join"}}),
            f'group_join {WHO} in private: {{"join_type": "join"}}',
        ),
    ],
)  # fmt: skip
def test_an_event_is_one_line(event: Event, line: str) -> None:
    """Type, who, where and what, whatever the event has."""
    assert describe(event) == line


@pytest.mark.parametrize("control", ["\x1b", "\x07", "\x9b", "\x7f", "\u202e", "\u2066", "\u2028", "\x00"])
def test_no_text_moves_the_terminal(control: str) -> None:
    """Whoever writes to the community writes to the operator's screen: names, titles, texts and payloads are tame."""
    user = USER._replace(name=f"a{control}b", nick=f"c{control}d")
    peer = CHAT._replace(name=f"e{control}f")
    message = Message(1, f"g{control}h", Reply(1, f"i{control}j", 1), [], [f"k{control}l"])
    button = Button(1, "m", {f"n{control}": f"o{control}"})
    for event in (
        EVENT._replace(user=user, peer=peer, message=message, action=Action(f"p{control}", user, control, 0)),
        Event("button", "a", user, peer, button=button),
        Event(f"raw{control}", "a", user, peer, raw={"object": control}),
    ):
        assert control not in describe(event)
        assert "�" in describe(event)


def test_a_text_of_many_lines_is_one_line() -> None:
    """Line breaks and tabs are blanks, and what people write for fun stays: emoji of several parts, too."""
    event = EVENT._replace(message=MESSAGE._replace(text="a\nb\tc 👩‍💻 ё"))
    assert describe(event).endswith(": a b c 👩‍💻 ё")


# --- The bus -------------------------------------------------------------------------------------------------


class Watch:
    """Run watch() in a process of its own, on a terminal or with its output in a pipe."""

    RUN = "import sys; from fetcher.commands.watch import watch; sys.exit(watch(sys.argv[1], 'events', {}, sys.stdout))"

    def __init__(self, url: str, terminal: bool = False, group: int | None = None) -> None:
        reading, writing = pty.openpty() if terminal else os.pipe()
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.RUN.format(group), url],
            cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        os.close(writing)
        self.reading: int | None = reading
        threading.Thread(target=self._read, args=(reading,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def _read(self, reading: int) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(reading, 65536):
                self.output += data.decode()

    def wait_for(self, text: str, timeout: float = 15) -> None:
        try:
            wait_until(lambda: text in self.output, timeout, repr(text))
        except AssertionError as error:
            raise AssertionError(f"{error}; it printed {self.output!r}") from None

    def end(self) -> tuple[int, str]:
        """Press Ctrl-C, and return the exit code and what went to standard error."""
        self.process.send_signal(signal.SIGINT)
        errors = self.process.communicate(timeout=10)[1]
        return self.process.returncode, errors


def publish(owner: Any, text: str) -> None:
    """Publish a message until somebody has heard it: a channel is live."""
    event = EVENT._replace(message=MESSAGE._replace(text=text)).as_dict()
    wait_until(lambda: owner.publish("events:message", json.dumps(event)), what="a listener")


@pytest.fixture
def owner(server: Server) -> Iterator[redis.Redis]:
    with server.client() as owner:
        yield owner


LETTERS = "{events}:dead-letter"


def test_events_dead_letters_and_gaps_come_as_they_happen(server: Server, owner: redis.Redis) -> None:
    """A line each; what was there before is passed over. In a pipe there is nothing else."""
    owner.xadd(LETTERS, {"update": "old", "error": "old"})
    with Watch(server.url) as shown:
        publish(owner, "first")
        shown.wait_for("first")
        owner.xadd(LETTERS, {"update": '{"type": "a\x1b"}', "error": "no from_id"})
        owner.xadd(LETTERS, {"since": "5", "until": "9", "error": "VK had forgotten"})
        shown.wait_for("forgotten")
        assert shown.output.splitlines() == [
            f"message  {WHO} in «Двор»: first",
            'dead     letter: no from_id: {"type": "a�"}',
            "gap      from ts 5 to ts 9: VK had forgotten",
        ]
        assert shown.end() == (0, "")


def test_a_dead_letter_is_seen_in_an_empty_redis(server: Server, owner: redis.Redis) -> None:
    """There need not be a stream when it begins."""
    with Watch(server.url) as shown:
        publish(owner, "listening")
        shown.wait_for("listening")
        owner.xadd(LETTERS, {"update": "new", "error": "bad"})
        shown.wait_for("dead     letter: bad: new")


@pytest.mark.parametrize(("group", "alive"), [(5, "host-a, host-b"), (None, "5:host-a, 5:host-b, 6:host-c")])
def test_a_terminal_has_a_last_line(server: Server, owner: redis.Redis, group: int | None, alive: str) -> None:
    """It tells rate and fetchers, is redrawn below each event, and never left above one."""
    for name in ("5:host-b", "5:host-a", "6:host-c"):
        owner.set(f"{{events}}:alive:{name}", 1)
    with Watch(server.url, terminal=True, group=group) as shown:
        shown.wait_for(f"0.0 events/s, fetchers alive: {alive}")
        publish(owner, "first")
        shown.wait_for("first")
        shown.wait_for("0.1 events/s")
        assert shown.end()[0] == 0
        lines = shown.output.replace("\r\n", "\n").split("\n")
        assert re.sub(".*\x1b\\[K", "", lines[0]) == f"message  {WHO} in «Двор»: first"
        assert len(lines) == 3, "one event, the last line, and the rest after Ctrl-C"


def test_nobody_alive_is_told(server: Server) -> None:
    """The operator sees that no fetcher runs."""
    with Watch(server.url, terminal=True) as shown:
        shown.wait_for("fetchers alive: none")


def test_a_restart_of_redis_is_survived(server: Server, owner: redis.Redis) -> None:
    """Also one that comes before the first connection; the last line tells while it lasts."""
    server.stop()
    with Watch(server.url, terminal=True) as shown:
        for number in range(2):
            shown.wait_for("Redis is unavailable (ConnectionError)")
            server.start()
            publish(owner, f"event {number}")
            shown.wait_for(f"event {number}")
            owner.xadd(LETTERS, {"update": "u", "error": f"letter {number}"})
            shown.wait_for(f"letter {number}")
            shown.output = ""
            server.stop()
        assert shown.process.poll() is None


class Screen(io.StringIO):
    """A terminal in this process; `react` is told all that it shows, after each change."""

    def __init__(self, react: Callable[[str], None]) -> None:
        super().__init__()
        self.react = react

    def isatty(self) -> bool:
        return True

    def reconfigure(self, **options: Any) -> None:
        pass

    def flush(self) -> None:
        self.react(self.getvalue())


def test_what_comes_after_an_outage_is_shown(
    server: Server, owner: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is not there at the start, comes, and events are shown until Ctrl-C; the rate is that of late."""
    monkeypatch.setattr("fetcher.commands.watch.RATE_WINDOW", 1.0)
    monkeypatch.setattr("fetcher.commands.watch.LOOK_INTERVAL", 0.2)
    server.stop()
    started: list[bool] = []

    def react(shown: str) -> None:
        if shown.count("Redis is unavailable") > 1 and not started:
            server.start()
            started.append(True)
        elif "none" in shown and "Привет" not in shown:
            owner.publish("events:message", json.dumps(EVENT.as_dict()))
        elif re.search(r"Привет.*K[1-9]\.\d events/s.*K0\.0 events/s", shown, re.DOTALL):
            raise KeyboardInterrupt

    assert watch(server.url, "events", None, Screen(react)) == 0


def test_a_closed_pipe_is_the_end(server: Server, owner: redis.Redis) -> None:
    """As in `--watch | head -1`: code 0, and no word."""
    command = f'{sys.executable} -c "{Watch.RUN.format(None)}" {server.url} | head -1; echo ${{PIPESTATUS[0]}}'
    with subprocess.Popen(
        ["bash", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as shell:
        deadline = time.monotonic() + 20
        while shell.poll() is None and time.monotonic() < deadline:
            owner.publish("events:message", json.dumps(EVENT.as_dict()))
            time.sleep(0.02)
        assert shell.communicate(timeout=5)[0].splitlines() == [f"message  {WHO} in «Двор»: Привет", "0"]


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        ("+@all -scan ~* &*", redis.exceptions.NoPermissionError),
        ("+@all ~* resetchannels", redis.exceptions.NoPermissionError),
        ("+@all ~* &* >other", redis.AuthenticationError),
    ],
)
def test_what_the_operator_must_fix_ends_it(rules: str, error: type[Exception]) -> None:
    """A wrong password and a missing permission are raised, from wherever they are met."""
    password = "" if ">" in rules else ">secret"
    user = f"user limited on {password} {rules}"
    with Server(acl=[user]) as server, open(os.devnull, "w") as out, pytest.raises(error):
        watch(server.url.replace("//", "//limited:secret@"), "events", None, out)


def test_a_cluster_is_watched() -> None:
    """The heartbeats and dead letters are on one node, events are heard from any."""
    with cluster() as nodes:
        client: Any = redis.RedisCluster.from_url(nodes[0].url, decode_responses=True)
        client.set("{events}:alive:5:host-a", 1)
        with Watch(nodes[2].url, terminal=True, group=5) as shown:
            shown.wait_for("fetchers alive: host-a")
            client.xadd(LETTERS, {"update": "u", "error": "bad"})
            shown.wait_for("dead     letter: bad: u")
            with nodes[1].client() as owner:
                event = json.dumps(EVENT.as_dict())
                wait_until(lambda: owner.publish("events:message", event) or "Привет" in shown.output, what="it")
            shown.wait_for("Привет")
