"""The program as its users run it: a process between a fake VK over HTTP and a real server."""

import ast
import functools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fetcher import __version__
from tests import HOST, free_port
from tests.processes import ROOT, Fetcher, environment
from tests.servers import Proxy, Server, wait_until
from tests.vk import CHAT, GROUP, PERSON, VK, button, message, reaction, traffic, update

EXIT_FATAL, EXIT_SETTINGS, EXIT_BUG = 1, 2, 70
CEILING = 60.0  # seconds; anything that takes longer counts as hanging
Fetch = Callable[..., Fetcher]
DOCUMENT = json.loads((Path(__file__).parent / "samples" / "document.json").read_text(encoding="utf-8"))["update"]


def texts(server: Server) -> list[str]:
    with server.client() as client:
        return [entry["event"] for _, entry in client.xrange("events")]


def ids(server: Server) -> list[str]:
    return [json.loads(text)["event_id"] for text in texts(server)]


def dead_letters(server: Server) -> list[dict[str, str]]:
    with server.client() as client:
        return [entry for _, entry in client.xrange("{events}:dead-letter")]


def started(server: Server, group: int = GROUP) -> None:
    """Wait for the checkpoint, which the fetcher stores before its first poll."""
    with server.client() as client:
        wait_until(lambda: client.exists(f"{{events}}:ts:{group}"), what="the checkpoint")


def arrived(server: Server, count: int) -> list[str]:
    with server.client() as client:
        wait_until(lambda: client.xlen("events") >= count, what=f"the arrival of {count} events")
    time.sleep(0.1)  # time for events that must not arrive
    return ids(server)


def test_the_contracts_update_becomes_the_contracts_event(fetch: Fetch, server: Server) -> None:
    """The contract's sample update becomes exactly its event, key by key, on the channel and in the stream."""
    with VK(DOCUMENT["group_id"]) as vk, server.client() as client, client.pubsub() as live:
        vk.people[206295116] = {"first_name": "Руслан", "last_name": "Башинский", "domain": "oidaho"}
        vk.chats[2000000002] = "FUNCKA | TOASTER | DEV | CHAT"
        live.subscribe("events:message")
        live.get_message(timeout=60)
        fetch(VK_URL=vk.url, GROUPID=vk.group_id)
        started(server, vk.group_id)
        vk.push(DOCUMENT)
        assert arrived(server, 1)
        expected = (
            '{"event_type": "message", "event_id": "d31e92e8ccde1fa2cde93eeaf9cbdf6d0cd0a936", '
            '"user": {"uuid": 206295116, "name": "Руслан Башинский", "firstname": "Руслан", "lastname": "Башинский", '
            '"nick": "oidaho"}, "peer": {"bpid": 2000000002, "cid": 2, "name": "FUNCKA | TOASTER | DEV | CHAT"}, '
            '"message": {"cmid": 2707, "text": "Hi!", "reply": null, "forward": [], "attachments": []}}'
        )
        (text,) = texts(server)
        assert json.dumps(json.loads(text), ensure_ascii=False) == expected
        assert "Руслан" in text, "the JSON is UTF-8, not ASCII"
        assert live.get_message(timeout=60)["data"] == text


def test_every_type_goes_to_its_channel(fetch: Fetch, vk: VK, server: Server) -> None:
    """Each type of event has its own channel, named after the bus; other types of update are skipped."""
    with server.client() as client, client.pubsub() as live:
        live.psubscribe("events*", "my.bus*")
        fetch(BUS="my.bus", COMMAND_PREFIXES="#")
        with server.client() as other:
            wait_until(lambda: other.exists(f"{{my.bus}}:ts:{GROUP}"))
        vk.push(
            message("Hi"),
            message("#go"),
            update("wall_post_new", {"id": 1}),
            button({"a": 1}),
            reaction(3),
            message("/no"),
        )
        wait_until(lambda: client.xlen("my.bus") == 5)
        got = [
            item["channel"] for item in iter(lambda: live.get_message(timeout=0.3), None) if item["type"] == "pmessage"
        ]
        assert got == ["my.bus:message", "my.bus:command", "my.bus:button", "my.bus:reaction", "my.bus:message"]


def test_a_malformed_update_becomes_a_dead_letter(fetch: Fetch, vk: VK, server: Server) -> None:
    """The updates around it are published, and it is recorded whole, in ASCII, with the reason.

    If VK repeats it, there is no second dead letter.
    """
    fetcher = fetch()
    started(server)
    broken = [
        update("message_new", {"message": {"text": "нет адресата \ud83d", "peer_id": PERSON}}),
        None,
        {"type": "message_new"},
    ]
    vk.push(message("1"), *broken, message("2"))
    assert len(arrived(server, 2)) == 2
    letters = dead_letters(server)
    assert [json.loads(letter["update"]) for letter in letters] == broken
    assert all(letter["update"].isascii() for letter in letters)
    assert letters[0]["error"] == "from_id is missing or not a whole number of 64 bits"
    fetcher.wait_for("Dead letter: from_id is missing or not a whole number of 64 bits")
    vk.replay(2)
    vk.push(message("3"))
    assert len(arrived(server, 3)) == 3
    assert {letter["update"] for letter in dead_letters(server)} == {json.dumps(one) for one in broken}


def test_a_kill_at_any_moment_loses_and_repeats_nothing(fetch: Fetch, vk: VK, server: Server) -> None:
    """kill -9 under traffic, several times: each event is published once and in order, in stream and channels."""
    rng, sent, heard = random.Random(7), list[str](), list[str]()
    vk.kept = 10_000  # enough, however long the restarts take here
    with server.client() as client, client.pubsub() as live:
        live.psubscribe("events:*")
        fetcher = fetch()
        started(server)
        for _ in range(6):
            for _ in range(rng.randrange(20, 60)):
                updates = traffic(rng.randrange(10**9), 40, 5, rng.randrange(1, 4))
                sent += [one["event_id"] for one in updates]
                vk.push(*updates)
                time.sleep(rng.uniform(0, 0.02))
            fetcher.restart()
        assert arrived(server, len(sent)) == sent
        for item in iter(lambda: live.get_message(timeout=0.3), None):
            if item["type"] == "pmessage":
                heard.append(json.loads(item["data"])["event_id"])
        assert heard == sent
        assert not dead_letters(server)


def test_updates_that_arrive_while_it_is_stopped_are_published_later(fetch: Fetch, vk: VK, server: Server) -> None:
    """After a restart, the fetcher polls VK from the checkpoint."""
    fetcher = fetch()
    started(server)
    first, missed, last = message(), [message() for _ in range(150)], message()
    vk.push(first)
    arrived(server, 1)
    assert fetcher.terminate() == 0
    vk.push(*missed)
    fetcher.start()
    arrived(server, 151)
    vk.push(last)
    assert arrived(server, 152) == [one["event_id"] for one in [first, *missed, last]]


def test_a_first_start_killed_before_its_first_event_loses_nothing(fetch: Fetch, vk: VK, server: Server) -> None:
    """The first start stores VK's ts of that moment as the checkpoint."""
    fetcher = fetch()
    started(server)
    fetcher.kill()
    missed = message()
    vk.push(missed)
    fetcher.start()
    assert arrived(server, 1) == [missed["event_id"]]


def test_a_first_start_without_redis_loses_nothing(vk: VK) -> None:
    """Redis and VK may start in any order: the fetcher logs that it waits, and continues from VK's first ts."""
    server = Server()
    server.stop()
    with server, Fetcher(VK_URL=vk.url, TOKEN=vk.token, GROUPID=GROUP, REDIS_URL=server.url) as fetcher:
        fetcher.wait_for("Redis is unavailable")
        held = [message() for _ in range(5)]
        for one in held:
            vk.push(one)
            time.sleep(0.1)
        server.start()
        assert arrived(server, 5) == [one["event_id"] for one in held]
        fetcher.wait_for("Recovered")


def test_it_waits_for_vk(fetch: Fetch, vk: VK, server: Server) -> None:
    """If VK is down at the start, the fetcher logs that and continues when VK is up."""
    vk.down()
    fetcher = fetch()
    fetcher.wait_for("VK's API is unavailable")
    vk.up()
    started(server)
    vk.push(message())
    assert arrived(server, 1)


@pytest.mark.long
def test_a_storm_costs_few_requests(fetch: Fetch, server: Server) -> None:
    """10,000 updates from 1,000 people in 50 chats cost at most 60 requests, at most 20 in a second.

    Nobody is looked up twice.
    """
    updates = traffic(1, 1000, 50, 10_000)
    with VK(kept=20_000, latency=0.05, rps=20) as vk:
        fetch(VK_URL=vk.url)
        started(server)
        vk.push(*updates)
        assert arrived(server, 10_000) == [one["event_id"] for one in updates]
        requests = sum(request.kind == "api" for request in vk.requests)
        assert requests <= 60, requests
        assert vk.busiest_second() <= 20
        assert not vk.too_many
        assert max(vk.lookup_counts.values()) == 1
        assert sum(id > CHAT for id in vk.lookup_counts) == 50


def test_names_survive_a_restart(fetch: Fetch, vk: VK, server: Server) -> None:
    """The names are cached in Redis; NAMES_TTL=0 turns the cache off."""
    fetcher = fetch()
    started(server)
    vk.push(message())
    arrived(server, 1)
    fetcher.restart()
    vk.push(message())
    arrived(server, 2)
    assert set(vk.lookup_counts.values()) == {1}
    fetcher.settings["NAMES_TTL"] = 0
    fetcher.restart()
    vk.push(message())
    arrived(server, 3)
    assert set(vk.lookup_counts.values()) == {2}


@pytest.mark.long
def test_an_outage_of_redis_with_more_updates_than_vk_keeps(fetch: Fetch, vk: VK, server: Server) -> None:
    """1,000 updates arrive in an outage, and VK keeps 256: none is lost, even if VK is down when Redis is back."""
    fetcher = fetch(POLL_WAIT=1)
    started(server)
    server.stop()
    sent: list[str] = []
    for _ in range(100):
        updates = [message(user=PERSON + random.Random(len(sent)).randrange(50)) for _ in range(10)]
        sent += [one["event_id"] for one in updates]
        vk.push(*updates)
        time.sleep(0.04)
    fetcher.wait_for("Redis is unavailable")
    # Wait for two polls at the last ts. The first returns nothing, so by the second the fetcher knows all names.
    wait_until(lambda: sum(request.params.get("ts") == str(vk.ts) for request in vk.requests) > 1, what="the last poll")
    vk.down()
    server.start()
    assert arrived(server, 1000) == sent
    assert not dead_letters(server)


@pytest.mark.long
def test_memory_is_bounded(fetch: Fetch, vk: VK, server: Server) -> None:
    """At the limit the fetcher does not poll; what VK then forgets is a recorded gap, and the rest is published."""
    fetcher = fetch(constants={"fetcher.core.backlog:MAX_PENDING": 300, "fetcher.vk.api:MAX_PAUSE": 1}, POLL_WAIT=1)
    started(server)
    server.stop()
    sent = []
    for _ in range(100):
        updates = [message() for _ in range(10)]
        sent += [one["event_id"] for one in updates]
        vk.push(*updates)
        time.sleep(0.02)
    fetcher.wait_for("Redis is unavailable")
    before = max(int(request.params["ts"]) for request in vk.requests if request.kind == "poll")
    assert before - 1000 <= 300 + vk.batch
    server.start()
    wait_until(lambda: ids(server)[-1:] == sent[-1:], what="the last event")
    (gap,) = dead_letters(server)
    lost = int(gap["until"]) - int(gap["since"])
    assert ids(server) == sent[: int(gap["since"]) - 1000] + sent[int(gap["until"]) - 1000 :]
    assert lost > 0
    assert gap["error"]


def test_two_fetchers_side_by_side(fetch: Fetch, vk: VK, server: Server) -> None:
    """Two fetchers publish each event once, even after an outage in which both hold batches."""
    fetchers = [fetch(POLL_WAIT=1), fetch(POLL_WAIT=1)]
    started(server)
    sent = []
    for step in range(60):
        if step == 20:
            server.stop()
        if step == 40:
            server.start()
        one = message()
        sent.append(one["event_id"])
        vk.push(one)
        time.sleep(0.03)
    assert arrived(server, 60) == sent
    for fetcher in fetchers:
        assert fetcher.running


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"TOKEN": None, "GROUPID": ""}, ["TOKEN", "GROUPID"]),
        ({"GROUPID": "-5"}, ["GROUPID"]),
        (
            {"GROUPID": "club1", "POLL_WAIT": 91, "NAMES_TTL": "-1", "STREAM_MAXLEN": 0},
            ["GROUPID", "POLL_WAIT", "NAMES_TTL", "STREAM_MAXLEN"],
        ),
        ({"BUS": "two words", "LOG_LEVEL": "LOUD", "RENEW_AFTER": "soon"}, ["BUS", "LOG_LEVEL", "RENEW_AFTER"]),
        ({"REDIS_URL": "localhost:6379"}, ["REDIS_URL"]),
        ({"REDIS_URL": "redis://:pass@host:port/0"}, ["REDIS_URL"]),
        ({"REDIS_URL": "redis://:pass@host:6379/x"}, ["REDIS_URL"]),
        ({"TOKEN_FILE": "/does/not/exist"}, ["TOKEN_FILE"]),
    ],
)
def test_wrong_settings(fetch: Fetch, settings: dict[str, Any], named: list[str]) -> None:
    """One sentence names every wrong setting, and the exit code is 2."""
    fetcher = fetch(**settings)
    assert fetcher.wait() == EXIT_SETTINGS
    assert len(fetcher.lines) == 1
    assert all(name in fetcher.output for name in named)
    assert "pass@" not in fetcher.output


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"TOKEN": "wrong"}, "TOKEN"),
        ({"GROUPID": 5}, "GROUPID"),
        ({"REDIS_URL": "redis://:wrong@127.0.0.1:{port}/0"}, "REDIS_URL"),
        ({"REDIS_URL": "redis://:right@127.0.0.1:{port}/99"}, "does not have the database of REDIS_URL"),
    ],
)
def test_errors_that_only_the_operator_can_fix(
    fetch: Fetch, server: Server, settings: dict[str, Any], expected: str
) -> None:
    """One sentence says what to fix, without a traceback, and the exit code is 1."""
    server.config(requirepass="right")
    server.password = "right"
    url = {"REDIS_URL": settings["REDIS_URL"].format(port=server.port)} if "REDIS_URL" in settings else {}
    fetcher = fetch(**settings | {"REDIS_URL": server.url} | url)
    assert fetcher.wait() == EXIT_FATAL
    assert len(fetcher.lines) == 2
    assert expected in fetcher.lines[-1]


def test_long_poll_switched_off(fetch: Fetch, vk: VK) -> None:
    """The fetcher prints one sentence, even if VK still issues a key."""
    vk.fail_api({"response": {"is_enabled": False}}, method="groups.getLongPollSettings")
    fetcher = fetch()
    assert fetcher.wait() == 1
    assert "Long Poll is switched off" in fetcher.lines[-1]
    vk.settings["is_enabled"] = False
    fetcher.start()
    assert fetcher.wait() == 1
    assert "Long Poll" in fetcher.lines[-1]


def test_the_settings_of_long_poll_are_checked(fetch: Fetch, vk: VK, server: Server) -> None:
    """An old version and event types that are off are logged at the start.

    The fetcher also runs if VK does not return these settings.
    """
    vk.settings |= {"api_version": "5.92", "events": {"message_new": 1, "message_event": 0}}
    fetcher = fetch()
    fetcher.wait_for("set 5.199")
    fetcher.wait_for("does not send message_event, message_reaction_event")
    vk.fail_api(500, method="groups.getLongPollSettings")
    fetcher.restart()
    started(server)
    vk.push(message())
    assert arrived(server, 1)


def test_settings_come_from_dotenv_and_token_file(fetch: Fetch, vk: VK, server: Server, tmp_path: Path) -> None:
    """The environment overrides .env, TOKEN_FILE overrides TOKEN, and an empty setting counts as unset."""
    (tmp_path / "token").write_text(vk.token + "\n")
    (tmp_path / ".env").write_text(
        f"TOKEN=wrong\nTOKEN_FILE=token\nBUS=other\nGROUPID={GROUP}\nREDIS_URL={server.url}\n"
    )
    fetch(TOKEN=None, GROUPID="", REDIS_URL=None, BUS="events", cwd=tmp_path)
    started(server)


def test_health(fetch: Fetch, vk: VK, server: Server) -> None:
    """--health exits with 0 while the fetcher polls and Redis answers, and otherwise with 1 and one sentence.

    Wrong settings give 2. No token is needed.
    """

    def health(**settings: Any) -> tuple[int, list[str]]:
        check = fetch("--health", TOKEN=None, **settings)
        return check.wait(), check.lines

    code, lines = health()
    assert (code, len(lines)) == (EXIT_FATAL, 1)
    assert "polled" in lines[0]
    fetcher = fetch(POLL_WAIT=1)
    with server.client() as client:
        wait_until(lambda: client.keys("{events}:alive:*"), what="the heartbeat")
        (key,) = client.keys("{events}:alive:*")
        assert key.startswith(f"{{events}}:alive:{GROUP}:")
        assert 0 < client.ttl(key) <= 31
    assert health() == (0, [])
    assert health(GROUPID=GROUP + 1)[0] == EXIT_FATAL
    code, lines = health(GROUPID="nobody")
    assert (code, len(lines)) == (EXIT_SETTINGS, 1)
    assert "GROUPID" in lines[0]
    fetcher.kill()
    server.stop()
    code, lines = health()
    assert (code, lines) == (EXIT_FATAL, ["event-fetcher: Redis is unavailable (connection refused)"])


def test_no_heartbeat_without_polls(fetch: Fetch, vk: VK, server: Server) -> None:
    """A fetcher is not healthy if VK does not answer its polls."""
    vk.fail_poll("reset", 10**6)
    fetcher = fetch()
    fetcher.wait_for("VK's long poll is unavailable")
    time.sleep(0.5)
    with server.client() as client:
        assert not client.keys("{events}:alive:*")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("failure", ["none", "VK hangs", "Redis hangs"])
def test_signals_end_it_at_once(fetch: Fetch, vk: VK, server: Server, number: int, failure: str) -> None:
    """Whatever the fetcher waits for, a signal ends it at once, with code 0.

    It does not wait for a timeout, which would add a line to the log.
    """
    fetcher = fetch()
    fetcher.wait_for("Polling VK")
    if failure == "VK hangs":
        vk.fail_api("hang", 10)
        vk.push(message())
        wait_until(lambda: vk.injected["api hang"], what="the hanging request")
    if failure == "Redis hangs":
        with server.client() as client:
            client.client_pause(10**6, all=False)  # milliseconds; writes only
            vk.push(message())
            wait_until(lambda: any("b" in one["flags"] for one in client.client_list()), what="the hanging write")
    fetcher.signal(number)
    assert fetcher.wait() == 0
    assert len(fetcher.lines) == 2


def test_a_bug_shows_a_traceback_without_secrets(fetch: Fetch, vk: VK, server: Server) -> None:
    """A bug in the fetcher ends it with code 70."""
    fetcher = fetch(constants={"fetcher.core.backlog:MAX_PENDING": f"{vk.token} {server.url}"})
    assert fetcher.wait() == EXIT_BUG
    assert "Traceback" in fetcher.output
    assert vk.token not in fetcher.output


def test_version(fetch: Fetch) -> None:
    """--version prints the version, and nothing else."""
    version = fetch("--version")
    assert version.wait() == 0
    assert version.lines == [__version__]


# Signals from the first moment on


QUIET = {  # so that neither the real VK nor a server is ever reached
    "PATH": os.environ["PATH"],
    "TOKEN": "x",
    "GROUPID": "1",
    "HTTPS_PROXY": "http://127.0.0.1:1",
    "REDIS_URL": "redis://127.0.0.1:1/0",
}
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}


def python(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Run Python in the project's directory, without tests.run around the program."""
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=QUIET | COVERAGE | (env or {}), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def blocks(pid: int, number: int) -> bool:
    """Return whether the process blocks this signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's word is needed")
@pytest.mark.parametrize(
    ("program", "number"), [(["main.py"], signal.SIGTERM), (["-m", "fetcher"], signal.SIGINT)], ids=["main.py", "-m"]
)
@pytest.mark.parametrize("delay", [0, 0.05, 0.2, 0.4])
def test_signals_end_it_from_its_first_line_on(program: list[str], number: int, delay: float) -> None:
    """A signal ends it with code 0 and without a traceback while it imports, reads its settings or connects."""
    with python(*program) as process:
        wait_until(lambda: blocks(process.pid, number), what="its first line")
        time.sleep(delay)
        process.send_signal(number)
        assert process.wait(CEILING) == 0
        assert "Traceback" not in process.communicate()[0]


def with_site(tmp_path: Path, code: str) -> dict[str, str]:
    """Return an environment variable that makes the process run this code before anything else."""
    (tmp_path / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


# How it is run


@pytest.mark.parametrize("program", [["main.py"], ["-m", "fetcher"]], ids=" ".join)
def test_it_runs_both_ways(program: list[str]) -> None:
    """`python main.py` and `python -m fetcher` are the same program."""
    with python(*program, "--version") as process:
        assert process.communicate(timeout=CEILING)[0].strip() == __version__
        assert process.returncode == 0
    with python(*program, "--what") as process:
        assert "usage" in process.communicate(timeout=CEILING)[0]
        assert process.returncode == EXIT_SETTINGS


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import fetcher", []),
        ("from fetcher import Event, User; import fetcher.events", []),
        ("from fetcher import consume", ["redis"]),
    ],
)
def test_importing_the_event_classes_loads_no_slow_module(code: str, loaded: list[str]) -> None:
    """Importing the event classes loads neither redis-py nor vk_api, nor any other slow module."""
    show = (
        "import sys; print(*sorted({'redis', 'vk_api', 'requests', 'dotenv', 'fetcher.bus.bus'} & sys.modules.keys()))"
    )
    with python("-c", f"{code}; {show}") as process:
        assert process.communicate(timeout=CEILING)[0].split() == loaded


def test_an_import_leaves_signals_alone() -> None:
    """Only the program blocks signals; importing the package or its modules does not."""
    modules = "fetcher, fetcher.bus.bus, fetcher.core.relay, fetcher.config"
    code = f"import {modules}, signal; print(signal.pthread_sigmask(0, []))"
    with python("-c", code) as process:
        assert process.communicate(timeout=CEILING)[0].strip() == "set()"


def test_raw(fetch: Fetch, vk: VK, server: Server) -> None:
    """With RAW=1, every type that VK sends is published on its own channel, with the update unchanged."""
    joined = update("group_join", {"user_id": PERSON, "join_type": "join"})
    with server.client() as client, client.pubsub() as live:
        live.psubscribe("events:*")
        fetch(RAW=1)
        started(server)
        one = message("/help")
        vk.push(joined, one)
        arrived(server, 2)
        first, second = map(json.loads, texts(server))
        assert (first["event_type"], first["user"]["uuid"], first["raw"]) == ("group_join", PERSON, joined)
        assert (second["event_type"], second["message"]["text"], second["raw"]) == ("command", "/help", one)
        heard = [item["channel"] for item in iter(lambda: live.get_message(timeout=0.3), None)]
        assert heard[1:] == ["events:group_join", "events:command"]


def test_watch(fetch: Fetch, vk: VK, server: Server) -> None:
    """--watch needs neither token nor community, prints what is published, and ends if only the operator can help."""
    watch = fetch("--watch", TOKEN=None, GROUPID=None)
    watch.wait_for("Watching the bus 'events'")
    fetch()
    started(server)
    vk.push(message("Всем привет"))
    watch.wait_for("Всем привет")
    server.config(requirepass="right")
    server.password = "right"
    with server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    assert watch.wait() == EXIT_FATAL
    assert watch.lines[-1] == "event-fetcher: Redis refuses the user or the password: fix REDIS_URL"


@pytest.mark.parametrize(
    "arguments", [["--watch", "--health"], ["--demo", "--setup"], ["--redrive", "--health"], ["--hea"], ["x"]]
)
def test_one_command_at_a_time(fetch: Fetch, arguments: list[str]) -> None:
    """Two commands, or an unknown or abbreviated one, are a usage error with the exit code of wrong settings."""
    mistaken = fetch(*arguments)
    assert mistaken.wait() == EXIT_SETTINGS
    assert mistaken.lines[0].startswith("usage: event-fetcher")


def test_metrics(fetch: Fetch, vk: VK, server: Server, tmp_path: Path) -> None:
    """The port serves the metrics; a port that is taken, or the missing extra, gives one sentence."""
    port = free_port()
    fetch(METRICS_PORT=port)
    started(server)
    vk.push(message())
    arrived(server, 1)
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=CEILING) as answer:
        served = answer.read().decode()
    assert 'event_fetcher_events_total{type="message"} 1.0' in served
    assert 'event_fetcher_vk_requests_total{method="groups.getLongPollServer"} 1.0' in served
    second = fetch(METRICS_PORT=port)
    assert second.wait() == EXIT_FATAL
    sentence = f"METRICS_PORT: port {port} cannot be opened (Address already in use): choose another one"
    assert second.lines[-1].endswith(f" CRITICAL {sentence}")
    third = fetch(METRICS_PORT=port, **with_site(tmp_path, "import sys; sys.modules['prometheus_client'] = None"))
    assert third.wait() == EXIT_FATAL
    assert third.lines[-1].endswith(" CRITICAL METRICS_PORT needs prometheus-client: pip install '.[metrics]'")


@pytest.mark.parametrize("command", ["--health", "--watch"])
def test_a_bug_in_a_command_shows_a_traceback_without_secrets(fetch: Fetch, command: str) -> None:
    """Commands keep the loop's promise: code 70, and no secret in the output."""
    constants = {"fetcher.bus.connection:TIMEOUT": "secret"}
    bug = fetch(command, constants=constants, REDIS_URL="redis://:secret@127.0.0.1:1/0")
    assert bug.wait() == EXIT_BUG
    assert bug.lines[0] == "event-fetcher: A bug in the fetcher; please report it"
    assert "Traceback" in bug.lines[1]
    assert "secret" not in bug.output


@pytest.mark.parametrize("command", ["--setup", "--redrive", "--demo"])
def test_output_that_cannot_be_written_is_a_sentence(vk: VK, server: Server, command: str) -> None:
    """A full disk gives a sentence and code 1.

    If standard output is closed, the commands still do the rest of their work.
    """
    program = [sys.executable, "-m", "tests.run", command]
    settings = {"VK_URL": vk.url, "TOKEN": vk.token, "GROUPID": str(vk.group_id), "REDIS_URL": server.url}
    settings["CONSTANTS"] = json.dumps({"fetcher.commands.demo:PORT": free_port()})
    with open("/dev/full", "w") as full, subprocess.Popen(
        program, env=environment() | settings, stdout=full, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:  # fmt: skip
        assert process.communicate(timeout=CEILING)[1] == (
            "event-fetcher: The output cannot be written (No space left on device)\n"
        )
    assert process.returncode == EXIT_FATAL
    if command != "--demo":  # which never ends by itself
        closed = ["sh", "-c", '"$@" >&-', "sh", *program]
        done = subprocess.run(closed, env=environment() | settings, stderr=subprocess.PIPE, timeout=CEILING)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["--setup", "--health", "--redrive"])
def test_an_interrupted_command_fails(fetch: Fetch, command: str) -> None:
    """A signal ends these commands with code 1, not 0: an interrupted health check says nothing about health."""
    with socket.create_server((HOST, 0)) as silent:
        fetcher = fetch(command, REDIS_URL=f"redis://{HOST}:{silent.getsockname()[1]}/0")
        silent.settimeout(CEILING)
        with silent.accept()[0]:
            assert fetcher.terminate() == EXIT_FATAL


# Where it cannot start


def test_an_older_python_is_a_sentence(tmp_path: Path) -> None:
    """Python 3.9 can parse main.py, and so can 2.7: it prints which version is needed instead of a traceback."""
    tree = ast.parse((ROOT / "main.py").read_text(encoding="utf-8"), feature_version=(3, 9))
    assert not any(isinstance(node, ast.JoinedStr | ast.AnnAssign) for node in ast.walk(tree))
    environment = with_site(tmp_path, "import sys; sys.version_info = (3, 9, 18, 'final', 0)")
    with python("main.py", "--demo", env=environment) as process:
        printed = process.communicate(timeout=CEILING)[0]
    assert process.returncode == 1
    assert printed == "event-fetcher: Python 3.11 or later is needed, this is Python 3.9\n"


def test_a_missing_package_is_a_sentence(tmp_path: Path) -> None:
    """Outside the venv, the program names the missing package, and how to install and run it."""
    environment = with_site(tmp_path, "import sys; sys.modules['vk_api'] = None")
    with python("main.py", "--demo", env=environment) as process:
        printed = process.communicate(timeout=CEILING)[0]
    assert process.returncode == 1
    assert re.fullmatch(
        r"event-fetcher: the package vk_api is not installed here; .*pip install '\.\[demo\]'.*\n", printed
    )


# Two faults at once


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    server.config(requirepass="right")
    server.password = "right"
    with Proxy(server.port, "right") as proxy:
        yield proxy


@pytest.mark.long
def test_the_password_of_redis_is_changed_for_a_moment(fetch: Fetch, vk: VK, server: Server, proxy: Proxy) -> None:
    """With updates pending, a wrong password is logged as CRITICAL, once, and nothing is lost.

    With nothing pending, it ends the fetcher.
    """
    fetcher = fetch(REDIS_URL=proxy.url, POLL_WAIT=1)
    started(server)
    proxy.down()
    sent = [message() for _ in range(100)]
    vk.push(*sent[:50])
    fetcher.wait_for("Redis is unavailable")
    polled(vk)
    server.config(requirepass="other")
    server.password = "other"
    proxy.up()
    fetcher.wait_for("CRITICAL Redis refuses the user or the password")
    vk.push(*sent[50:])
    polled(vk)
    server.config(requirepass="right")
    server.password = "right"
    assert arrived(server, 100) == [one["event_id"] for one in sent]
    fetcher.wait_for("Recovered")
    assert fetcher.output.count("CRITICAL") == 1
    server.config(requirepass="other")
    server.password = "other"
    proxy.cut()
    assert fetcher.wait() == EXIT_FATAL
    assert "fix REDIS_URL" in fetcher.lines[-1]
    assert "right" not in fetcher.output


def has_requested(vk: VK, method: str) -> bool:
    """Return whether VK has received a request for this method."""
    return any(request.name == method for request in vk.requests)


def polled(vk: VK) -> None:
    """Wait until VK is polled at its latest ts."""
    wait_until(lambda: any(one.params.get("ts") == str(vk.ts) for one in vk.requests), what="the latest ts")


def test_the_token_is_revoked_while_updates_are_pending(fetch: Fetch, vk: VK, server: Server) -> None:
    """The pending updates are published, if need be without names; the fetcher ends when it has nothing to lose."""
    fetcher = fetch(POLL_WAIT=1, constants={"fetcher.core.relay:NAMES_TIMEOUT": 2})
    started(server)
    wait_until(lambda: has_requested(vk, "groups.getLongPollSettings"), what="the end of the start")
    vk.token = "another"
    server.stop()
    vk.push(message(), message())
    fetcher.wait_for("CRITICAL VK refuses the token")
    server.start()
    arrived(server, 2)
    assert [json.loads(text)["user"]["name"] for text in texts(server)] == ["", ""]
    assert fetcher.wait() == EXIT_FATAL
    assert "put a valid community token into TOKEN" in fetcher.lines[-1]
    assert fetcher.output.count("trying again, because") == 1
    assert not dead_letters(server)


def test_the_end_of_a_storm_is_not_late(fetch: Fetch, vk: VK, server: Server, proxy: Proxy) -> None:
    """The last events do not wait for another poll, though all answers are full, including the last one.

    VK holds the next poll for longer than any commit takes.
    """
    vk.batch, vk.min_wait, proxy.delay = 10, 25, 0.05
    fetch(REDIS_URL=proxy.url)
    started(server)
    begun = time.monotonic()
    vk.push(*(message() for _ in range(100)))
    arrived(server, 100)
    assert time.monotonic() - begun < 9, "not as late as VK, nor as a poll that fails"
    assert not dead_letters(server)


def test_names_fail_for_long(fetch: Fetch, vk: VK, server: Server) -> None:
    """VK fails for one person: that event waits for the limit and is published without the name.

    Events of other people have their names.
    """
    fetcher = fetch(POLL_WAIT=1, constants={"fetcher.core.relay:NAMES_TIMEOUT": 2})
    started(server)
    vk.failing[PERSON] = 10
    begun = time.monotonic()
    vk.push(message(user=PERSON))
    fetcher.wait_for("VK error 10")
    arrived(server, 1)
    assert time.monotonic() - begun >= 2
    vk.push(message(user=PERSON), button(user=-5))
    arrived(server, 3)
    del vk.failing[PERSON]
    vk.push(message(user=PERSON))
    arrived(server, 4)
    first, *_, third, last = (json.loads(text) for text in texts(server))
    assert (first["user"]["uuid"], first["user"]["name"]) == (PERSON, "")
    assert first["peer"]["name"]
    assert third["user"]["name"] == "Сообщество 5"
    assert last["user"]["name"]
    assert not dead_letters(server)


@pytest.mark.parametrize("step", [1, 3])
def test_dead_letters_of_two_fetchers(fetch: Fetch, vk: VK, server: Server, step: int) -> None:
    """An update without an id is recorded once, however VK counts and however its answers split the history."""
    vk.step = step
    vk.batch = 2
    fetchers = [fetch(POLL_WAIT=1), fetch(POLL_WAIT=1)]
    started(server)
    broken = [{"type": "message_new", "number": number} for number in range(30)]
    good = [message() for _ in range(30)]
    for number in range(30):
        if number == 15:
            fetchers[1].restart()
        vk.push(broken[number], good[number])
    arrived(server, 30)
    for fetcher in fetchers:
        fetcher.kill()  # one of them is behind: it holds updates that the other has already recorded
        fetcher.start()
    last = message()
    vk.push(broken[0] | {"number": 99}, last)
    assert arrived(server, 31) == [one["event_id"] for one in [*good, last]]
    letters = [json.loads(letter["update"])["number"] for letter in dead_letters(server)]
    assert letters == [*range(30), 99]


@pytest.mark.long
def test_updates_that_are_very_deep(fetch: Fetch, vk: VK, server: Server, request: pytest.FixtureRequest) -> None:
    """Whether reading, building or writing fails, each becomes an event, a dead letter or part of a gap.

    The process survives.
    """
    fetcher = fetch(RAW=1, POLL_WAIT=1, constants={"fetcher.vk.longpoll:UNREADABLE_TIMEOUT": 1})
    started(server)
    vk.batch = 1
    first = vk.ts
    request.addfinalizer(functools.partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(4000)  # so that this test can read everything that the fetcher could still write
    for depth in (*range(940, 1100, 4), 1400, 3000, 9000, 20_000, 100_000):  # each Python version has its own limit
        vk.push(button(f"nested {depth}"))
    fetcher.wait_for("A gap from ts")
    last = message()
    vk.push(last)
    wait_until(lambda: ids(server)[-1:] == [last["event_id"]], what="the last event")
    assert fetcher.running
    *letters, gap = dead_letters(server)
    published = len(ids(server)) - 1
    assert all("cannot be" in letter["error"] or "Recursion" in letter["error"] for letter in letters)
    assert published + len(letters) == int(gap["since"]) - first
    assert int(gap["until"]) == vk.ts - 1
