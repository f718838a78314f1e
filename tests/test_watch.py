"""`--watch` shows what is published on a real bus: on a terminal, in a pipe, and while Redis fails."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import pytest
import redis

from fetcher.commands.watch import describe
from fetcher.events import Action, Button, Event, Message, Peer, Reaction, Reply, User
from tests.forks import LIBRARIES, ROOT, template
from tests.processes import environment
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
            EVENT._replace(message=Message(5, "a", Reply(1, "b", 2), [], ["photo", "reply"])),
            f"message  {WHO} in «Двор»: a [photo, reply]",
        ),
        (
            EVENT._replace(message=MESSAGE._replace(text=""), action=Action("chat_invite_user", USER, "", 0)),
            f"message  {WHO} in «Двор»: [chat_invite_user Вера Лисицына]",
        ),
        (
            EVENT._replace(action=Action("chat_title_update", None, "Сад", 0)),
            f"message  {WHO} in «Двор»: Привет [chat_title_update Сад]",
        ),
        (EVENT._replace(payload={"да": 1}), f"message  {WHO} in «Двор»: Привет (payload {{'да': 1}})"),
        (
            Event("button", "b", USER, CHAT, button=Button(6, "c", {"да": 1})),
            f"button   {WHO} in «Двор»: pressed {{'да': 1}} (message 6)",
        ),
        (
            Event("reaction", "b", USER, CHAT, reaction=Reaction(6, 4)),
            f"reaction {WHO} in «Двор»: reaction 4 (message 6)",
        ),
        (
            Event("reaction", "b", USER, CHAT, reaction=Reaction(6, 0)),
            f"reaction {WHO} in «Двор»: reaction removed (message 6)",
        ),
        (
            Event("group_join", "b", USER, PRIVATE, raw={"object": {"join_type": "join"}}),
            f"group_join {WHO} in private: {{'join_type': 'join'}}",
        ),
    ],
)  # fmt: skip
def test_an_event_is_one_line(event: Event, line: str) -> None:
    """The line has type, person, place and content, whatever the event contains."""
    assert describe(event) == line


@pytest.mark.parametrize("control", ["\x1b", "\x07", "\x9b", "\x7f", "\u202e", "\u2066", "\u2028", "\x00"])
def test_texts_cannot_control_the_terminal(control: str) -> None:
    """Anyone can write to the operator's screen through the community, so all texts are made harmless."""
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
    """Line breaks and tabs become blanks; emoji stay, even those of several characters."""
    event = EVENT._replace(message=MESSAGE._replace(text="a\nb\tc 👩‍💻 ё"))
    assert describe(event).endswith(": a b c 👩‍💻 ё")


# --- The bus -------------------------------------------------------------------------------------------------


class Watch:
    """Run the program with --watch, its output in a pipe or on a terminal."""

    def __init__(self, url: str, terminal: bool = False, constants: dict[str, Any] | None = None, **more: Any) -> None:
        reading, writing = pty.openpty() if terminal else os.pipe()
        self.output = ""  # everything that it has written
        env = environment() | {"REDIS_URL": url, "CONSTANTS": json.dumps(constants or {})} | more
        log, errors = os.pipe()
        self.log = open(log, encoding="utf-8")  # noqa: SIM115  # read_log() closes it
        command = ["-m", "tests.run", "--watch"]
        self.process = template(*LIBRARIES).start(command, ROOT, env, writing, errors)
        os.close(writing)
        os.close(errors)
        self.errors = ""  # everything that it has logged
        self.readers = [
            threading.Thread(target=read, daemon=True) for read in (lambda: self.read(reading), self.read_log)
        ]
        for reader in self.readers:
            reader.start()

    def __enter__(self) -> Self:
        self.wait_for_log("Watching the bus 'events'")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()  # not kill -9, which would lose the coverage data
        self.process.wait(60)

    def read(self, reading: int) -> None:
        with contextlib.suppress(OSError):  # a terminal whose other end is closed
            for data in iter(lambda: os.read(reading, 65536), b""):
                self.output += data.decode()
        os.close(reading)

    def read_log(self) -> None:
        with self.log:
            for line in self.log:
                self.errors += line

    @property
    def screen(self) -> list[str]:
        """The lines on the terminal after all output, without those that were erased by moving the cursor up."""
        text = self.output.replace("\r\n", "\n")
        return re.sub(r"[^\n]*\n\x1b\[A\r\x1b\[K", "", text).splitlines()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output, what=f"{text!r} in {self.output!r}")

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.errors, what=f"{text!r} in {self.errors!r}")

    def end(self) -> int:
        """Press Ctrl-C, wait until all output is read, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        for reader in self.readers:
            reader.join(60)
        return code


def put(owner: Any, text: str) -> None:
    """Put a message on the stream."""
    event = EVENT._replace(message=MESSAGE._replace(text=text)).as_dict()
    owner.xadd("events", {"event": json.dumps(event)})


@pytest.fixture
def owner(server: Server) -> Iterator[redis.Redis]:
    with server.client() as owner:
        yield owner


DEAD_LETTERS = "{events}:dead-letter"


def test_events_dead_letters_and_gaps_appear_as_they_happen(server: Server, owner: redis.Redis) -> None:
    """Each is one line, and earlier entries are left out. A pipe gets nothing else."""
    put(owner, "old")
    owner.xadd(DEAD_LETTERS, {"update": "old", "error": "old"})
    with Watch(server.url) as shown:
        for number in range(3):
            put(owner, f"event {number}")
        shown.wait_for("event 2")
        owner.xadd(DEAD_LETTERS, {"update": '{"type": "a\x1b"}', "error": "no from_id"})
        owner.xadd(DEAD_LETTERS, {"since": "5", "until": "9", "error": "VK had forgotten"})
        shown.wait_for("forgotten")
        owner.xadd("events", {"event": '{"odd": 1}'})
        owner.xadd("events", {"event": "[" * 100_000})
        shown.wait_for("no event: event: [[[")
        assert shown.end() == 0
        assert shown.output.splitlines() == [
            *(f"message  {WHO} in «Двор»: event {number}" for number in range(3)),
            'dead letter: error: no from_id, update: {"type": "a�"}',
            "gap: error: VK had forgotten, since: 5, until: 9",
            'no event: event: {"odd": 1}',
            f"no event: event: {'[' * 300}",
        ]
        assert shown.errors == "event-fetcher: Watching the bus 'events'\n"


def test_the_first_entries_of_an_empty_redis_are_seen(server: Server, owner: redis.Redis) -> None:
    """The stream need not exist at the start."""
    with Watch(server.url) as shown:
        owner.xadd(DEAD_LETTERS, {"update": "new", "error": "bad"})
        shown.wait_for("dead letter: error: bad, update: new")
        put(owner, "first")
        shown.wait_for("first")


def test_more_than_is_read_at_once(server: Server, owner: redis.Redis) -> None:
    """Nothing is skipped when many entries arrive at the same moment."""
    with Watch(server.url, constants={"fetcher.commands.watch:MAX_ENTRIES": 3}) as shown:
        with owner.pipeline() as pipeline:
            for number in range(10):
                put(pipeline, f"event {number}.")
            pipeline.execute()
        shown.wait_for("event 9.")
        assert re.findall(r"event (\d)\.", shown.output) == [*"0123456789"]


def test_a_terminal_has_a_last_line(server: Server, owner: redis.Redis) -> None:
    """It shows the rate and the fetchers, moves below each new event, and appears once, even after Ctrl-C."""
    alive = "5:host-a, 5:host-b, 6:host-c"
    for name in ("5:host-b", "5:host-a", "6:host-c"):
        owner.set(f"{{events}}:alive:{name}", 1)
    constants = {"fetcher.commands.watch:STATUS_INTERVAL": 1.0}
    with Watch(server.url, terminal=True, constants=constants) as shown:
        shown.wait_for(f"0.0 events/s, fetchers alive: {alive}")
        put(owner, "first")
        shown.wait_for("first")
        put(owner, "second")
        shown.wait_for("second")
        wait_until(lambda: re.search(r"[12]\.0 events/s", shown.output), what="the rate")
        assert shown.end() == 0
        first, second, last = shown.screen
        assert first == f"message  {WHO} in «Двор»: first"
        assert second == f"message  {WHO} in «Двор»: second"
        assert re.fullmatch(rf"[0-2]\.0 events/s, fetchers alive: {alive}", last)
        assert shown.output.endswith("\n"), "the shell's prompt begins a line"


def test_the_rate_falls_when_nothing_arrives(server: Server, owner: redis.Redis) -> None:
    """The rate falls again when nothing arrives."""
    with Watch(server.url, terminal=True, constants={"fetcher.commands.watch:STATUS_INTERVAL": 1.0}) as shown:
        with owner.pipeline() as pipeline:
            for _ in range(4):
                put(pipeline, "text")
            pipeline.execute()
        shown.wait_for("4.0 events/s")
        wait_until(lambda: "0.0 events/s" in shown.screen[-1], what="the end of the rate")


def test_a_missing_fetcher_is_shown(server: Server, owner: redis.Redis) -> None:
    """The operator sees that no fetcher runs; a heartbeat that appears later is found."""
    with Watch(server.url, terminal=True, constants={"fetcher.commands.watch:STATUS_INTERVAL": 0.1}) as shown:
        shown.wait_for("fetchers alive: none")
        owner.set("{events}:alive:5:host-a\x1b", 1)
        shown.wait_for("fetchers alive: 5:host-a�")


def test_a_narrow_terminal(server: Server) -> None:
    """The last line never wraps, because a wrapped line could not be erased."""
    with Watch(server.url, terminal=True, COLUMNS="20") as shown:
        shown.wait_for("0.0 events/s, fetc")
        assert {len(line) for line in shown.screen} == {19}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_restart_of_redis_is_survived(server: Server, owner: redis.Redis, terminal: bool) -> None:
    """Each try is logged while the outage lasts, and so is its end. No entry is skipped or shown twice."""
    with Watch(server.url, terminal, constants={"fetcher.commands.watch:STATUS_INTERVAL": 0.5}) as shown:
        for number in range(1, 3):
            put(owner, f"event {number}")
            shown.wait_for(f"event {number}")
            server.stop()
            refused = "event-fetcher: Redis is unavailable (connection refused): trying again\n"
            wait_until(lambda: shown.errors.count(refused) >= 2 * number, what="two tries")  # noqa: B023
            server.start()
            put(owner, f"after {number}")
            again = "event-fetcher: Watching the bus 'events'\n"
            wait_until(lambda: shown.errors.count(again) == number + 1, what=again)  # noqa: B023
            shown.wait_for(f"after {number}")
        assert re.findall(r"(?:event|after) \d", shown.output) == ["event 1", "after 1", "event 2", "after 2"]
        assert shown.process.poll() is None


def test_redis_may_come_later(server: Server, owner: redis.Redis) -> None:
    """The command also waits for Redis's first answer."""
    server.stop()
    shown = Watch(server.url)
    shown.wait_for_log("event-fetcher: Redis is unavailable (connection refused): trying again")
    server.start()
    with shown:
        put(owner, "first")
        shown.wait_for("first")


def test_a_closed_pipe_ends_it(server: Server, owner: redis.Redis) -> None:
    """In `--watch | head -1`, the command ends with code 0 and no traceback."""
    command = f"{sys.executable} -m tests.run --watch | head -1; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"REDIS_URL": server.url, "BUS": "events", "TOKEN": "", "GROUPID": ""}
    with subprocess.Popen(
        ["bash", "-c", command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as shell:
        while shell.poll() is None:
            put(owner, "Привет")
            time.sleep(0.05)
        output, errors = shell.communicate(timeout=60)
    assert output.splitlines() == [f"message  {WHO} in «Двор»: Привет", "0"]
    assert errors == "event-fetcher: Watching the bus 'events'\n"


@pytest.mark.parametrize(
    ("rules", "before", "sentence"),
    [
        ("+@all -scan ~* &*", "event-fetcher: Watching the bus 'events'\n", "Redis refuses a permission"),
        ("+@all ~{events}:* &*", "", "Redis refuses a permission"),
        ("+@all ~* &* >other", "", "Redis refuses the user or the password"),
    ],
)
def test_an_error_that_only_the_operator_can_fix_ends_it(rules: str, before: str, sentence: str) -> None:
    """A wrong password or a missing permission gives one sentence and exit code 1."""
    user = f"user limited on {'' if '>' in rules else '>secret'} {rules}"
    with Server(acl=[user]) as server:
        shown = Watch(server.url.replace("//", "//limited:secret@"))
        assert shown.process.wait(60) == 1
        shown.wait_for_log(f"{before}event-fetcher: {sentence}")
        assert shown.errors.count("\n") == 1 + before.count("\n")


def test_a_cluster_is_watched() -> None:
    """The address may name any node."""
    with cluster() as nodes:
        client: Any = redis.RedisCluster.from_url(nodes[0].url, decode_responses=True)
        client.set("{events}:alive:5:host-a", 1)
        with Watch(nodes[2].url, terminal=True) as shown:
            shown.wait_for("fetchers alive: 5:host-a")
            client.xadd(DEAD_LETTERS, {"update": "u", "error": "bad"})
            shown.wait_for("dead letter: error: bad, update: u")
            put(client, "Привет")
            shown.wait_for("Привет")
