"""docs/consumers.md says what consumers do: whatever can be run there is run, and both languages are alike."""

import asyncio
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, closing
from typing import Any

import pytest
import redis.asyncio

import fetcher.asyncio
from fetcher import Event, consume, subscribe
from fetcher.consumers import connection
from tests import HOST
from tests.processes import ROOT
from tests.servers import Server, cluster, wait_until
from tests.test_subscriber import add, event, fill, text

PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("consumers.md", "consumers.ru.md")}
ENGLISH, RUSSIAN = PAGES.values()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


PYTHON = blocks(ENGLISH, "python")
RUN = """
import functools, redis, redis.asyncio
redis.Redis = functools.partial(redis.Redis, port={port})
redis.asyncio.Redis = functools.partial(redis.asyncio.Redis, port={port})
{block}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with server.client() as client:
        client.flushall()
        yield client


def block(part: str) -> str:
    """Return the only block of Python that contains this."""
    (found,) = [block for block in PYTHON if part in block]
    return found


def run_until(server: Server, block: str, *printed: str) -> None:
    """Run the block while events are published, until it has printed all of this; it must not exit before that."""
    code = RUN.format(port=server.port, block=block.replace(":6379", f":{server.port}"))
    arguments = [sys.executable, "-u", "-c", code]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out,
        server.client() as client,
        ExitStack() as stack,
    ):
        environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "PATH": os.environ["PATH"]}
        process = subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, env=environment)
        stack.callback(process.wait)
        stack.callback(process.kill)

        def shown() -> str:
            out.seek(0)
            return out.read()

        def has_printed() -> bool:
            for event_type in ("message", "command"):
                client.publish(f"events:{event_type}", text(event(event_type, event_type)))
                client.xadd("events", {"event": text(event(event_type, event_type))})
            assert process.poll() is None, shown()
            return all(part in shown() for part in printed)

        wait_until(has_printed, 80, "what the block prints")


@pytest.mark.parametrize(
    ("part", "printed"),
    [
        ('"message", "command"', ["Ян Ли in «Ян Ли»: текст message", "Ян Ли in «Ян Ли»: текст command"]),
        ('group="archive", consumer="archive-1"):\n    print', ["message message Ян Ли", "command command Ян Ли"]),
        ("attempts=3", ["message message Ян Ли", "command command Ян Ли"]),
        ("from fetcher.asyncio", ["message message Ян Ли", "command command Ян Ли"]),
        ("faststream", ["live: Ян Ли текст command", "durable: message", "durable: command"]),
    ],
)
def test_consumers(server: Server, client: Any, part: str, printed: list[str]) -> None:
    run_until(server, block(part), *printed)


def test_pydantic(capsys: pytest.CaptureFixture[str]) -> None:
    """pydantic can validate the NamedTuples as they are."""
    from pydantic import TypeAdapter

    exec(block("validate_json"), {})
    assert capsys.readouterr().out == "Ян Ли 4\n"
    given = TypeAdapter(Event).validate_python(event(1).as_dict())
    assert type(given) is Event
    assert given == event(1)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_events_wait_while_a_script_is_replaced(client: Any, page: str) -> None:
    """The group that "Moving from your script" creates before there are events gets all that are published later."""
    ((command, group),) = re.findall(r"`redis-cli (XGROUP CREATE events (\w+) .+)`", page)
    assert f'group="{group}"' in page
    assert f'group="{group}"' in (ROOT / "examples/vk_api_script.py").read_text(encoding="utf-8")
    client.execute_command(*shlex.split(command))
    add(client, "events", 1, 2)
    with closing(consume(client, group, "bot-1")) as events:
        assert [next(events).event_id, next(events).event_id] == ["1", "2"]


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_parameter_of_consume(page: str) -> None:
    """The page has every parameter with its default."""
    documented = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", page, re.MULTILINE))
    parameters = list(inspect.signature(consume).parameters.values())[1:]
    assert list(documented) == [parameter.name for parameter in parameters]
    for parameter in parameters:
        if parameter.default not in (inspect.Parameter.empty, None):
            assert documented[parameter.name] == f"`{json.dumps(parameter.default)}`"
    assert inspect.signature(fetcher.asyncio.consume).parameters.keys() == inspect.signature(consume).parameters.keys()


def permissions(attempts: bool) -> str:
    """Return the documented ACL line with a known password; without `attempts`, leave out what only they need."""
    (line,) = re.findall("^user consumer .+$", OPERATIONS, re.MULTILINE)
    return str(line if attempts else re.sub(r" \(.+?\)", "", line)).replace("SECRET", "secret")


SYNC, ASYNC = redis.Redis, redis.asyncio.Redis
READERS: dict[str, tuple[Any, Callable[[Any], Any], bool]] = {
    "all": (SYNC, lambda own: subscribe(own), False),
    "some": (SYNC, lambda own: subscribe(own, "message"), False),
    "some, async": (ASYNC, lambda own: fetcher.asyncio.subscribe(own, "message"), False),
    "group": (SYNC, lambda own: consume(own, "new", "a", start="0", idle=0.5), False),
    "attempts": (SYNC, lambda own: consume(own, "moderation", "a", idle=0.5, attempts=3), True),
    "attempts, async": (ASYNC, lambda own: fetcher.asyncio.consume(own, "moderation", "a", attempts=3), True),
}


@pytest.mark.parametrize("name", READERS)
def test_permissions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented permissions suffice to wait, to create a group, and to claim, release and acknowledge entries."""
    make, read, attempts = READERS[name]
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 1.2)
    with Server(acl=[permissions(attempts)]) as server, server.client() as owner:
        fill(owner, 100)
        owner.xgroup_create("events", "moderation", "0")
        owner.xreadgroup("moderation", "a", {"events": ">"}, count=3)
        if attempts:  # the first entry is to become a dead letter
            owner.hset("{events}:attempts:moderation", owner.xrange("events")[0][0], 9)
        listening = ExitStack()

        def publish() -> None:
            wait_until(lambda: owner.pubsub_numsub("events:message")[0][1] + owner.pubsub_numpat())
            time.sleep(1.5)
            for id in range(60):
                owner.publish("events:message", text(event(id)))

        def pause(number: int) -> None:
            time.sleep(0.3 * (number == 50))  # what is read ahead is released

        async def take_asynchronously(own: Any) -> None:
            async with own, aclosing(read(own)) as events:
                for number in range(60):
                    await anext(events)
                    pause(number)

        own = make(host=HOST, port=server.port, username="consumer", password="secret")
        with listening:
            if name in ("all", "some", "some, async"):
                publishing = threading.Thread(target=publish)
                publishing.start()
                listening.callback(publishing.join)
            if make is ASYNC:
                asyncio.run(take_asynchronously(own))
            else:
                with own, closing(read(own)) as events:
                    for number in range(60):
                        next(events)
                        pause(number)
        assert owner.xlen("{events}:dead-letter:moderation") == attempts
        refused = {entry["object"] for entry in owner.acl_log()}
        assert refused <= {"client|setinfo"}


def test_permissions_on_a_cluster() -> None:
    """On a cluster the line suffices together with what the page adds for clusters."""
    (more,) = re.findall(r"`(\+cluster\S+ \+command \+asking)`", OPERATIONS)
    line = permissions(attempts=True).replace(" (", f" {more} (", 1)
    with cluster(1, acl=[line]) as (node,), node.client() as owner:
        add(owner, "events", 1)
        own = redis.RedisCluster(HOST, node.port, username="consumer", password="secret")
        with closing(consume(own, "moderation", "a", start="0", attempts=1)) as events:
            assert next(events).event_id == "1"


# --- Both languages ---------------------------------------------------------------------------------------------


def test_both_pages_have_the_same_structure() -> None:
    """Both languages have the same headings, tables, code and links."""
    for pattern in (r"^(#+) ", r"^\|", r"^```(\w+)"):
        assert re.findall(pattern, ENGLISH, re.MULTILINE) == re.findall(pattern, RUSSIAN, re.MULTILINE)
    assert re.findall(r"^```(?!$).*?^```$", ENGLISH, re.MULTILINE | re.DOTALL) == re.findall(
        r"^```(?!$).*?^```$", RUSSIAN, re.MULTILINE | re.DOTALL
    )
    links = [set(re.findall(r"\]\(([^)#]+)", page)) for page in PAGES.values()]
    assert {link.replace(".ru.md", ".md") for link in links[0]} == {link.replace(".ru.md", ".md") for link in links[1]}
    for page in PAGES.values():
        for link in re.findall(r"\]\(([^)#]+)", page):
            assert (ROOT / "docs" / link).exists(), link
