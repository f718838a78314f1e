"""The documentation says what the code does: settings, options, exit codes, events, and whatever can be run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest

import fetcher
from fetcher import Event, Peer, User, __version__, config, events
from fetcher.bus import bus
from fetcher.commands.watch import describe
from fetcher.core import backlog, pieces, relay
from fetcher.core.history import Name
from fetcher.events import CHATS, channel
from fetcher.vk import lookups
from fetcher.vk.builders import BUILDERS
from fetcher.vk.entries import EntryBuilder, ids_to_resolve, with_names
from tests import free_port
from tests.processes import ROOT, Fetcher, uncovered
from tests.samples import SAMPLES
from tests.servers import Server, bus_at, entries, wait_until
from tests.test_config import NAMES as SETTINGS
from tests.vk import VK, button, message, reaction

TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]
}
ENGLISH, RUSSIAN, GUIDE = TEXTS["README.md"], TEXTS["README.ru.md"], TEXTS["CONTRIBUTING.md"]
TRANSLATED = ["README.md", "docs/operations.md", "docs/consumers.md"]
RECORDED = json.loads((ROOT / "fetcher/commands/demo.json").read_text(encoding="utf-8"))["updates"]

GROUP, PERSON, CHAT = 218730916, 206295116, 2000000002
UPDATES = [  # the updates behind the events in the READMEs
    SAMPLES["document"]["update"],
    message("[club218730916|@toaster] /command", PERSON, CHAT, conversation_message_id=3895)
    | {"event_id": "b0d7020c0bd1ad36b76567054400abc8b279f960"},
    button({"action": "buy", "id": 7}, PERSON, CHAT, conversation_message_id=3896, event_id="5bba1af2abf1")
    | {"event_id": "8e06a1f9ae3d3e3aa1e8d1f8a4ab77ee5b1c1a43"},
    reaction(4, PERSON, CHAT, cmid=3895) | {"event_id": "1f5b20a1ea13b0c32f0c9f2a8f1a0f9f0e7a1d26"},
]
TRY = "python3 -m venv .venv && .venv/bin/pip install '.[demo]' && .venv/bin/python main.py --demo\n"
TEST = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python -m pytest\n"
MARKERS = {"docs/benchmark.md": ["bench"], "docs/reliability.md": ["simulation", "soak"]}

# The test files that a new type of event concerns
OF_TYPES = ("builders", "docs", "entries", "events", "longpoll", "names", "operations", "schema")
WITH_SERVERS = ("demo", "setup")

# …except the tests of random updates, of the long poll's answers and of Redis's ACL rules, and this one
NOT_OF_TYPES = "any_update or any_full_message or (test_longpoll and not settings) or missing_rule or the_guide"

pytestmark = pytest.mark.xdist_group("docs")  # most of these tests share processes that are started once

readme = pytest.mark.parametrize("text", [ENGLISH, RUSSIAN], ids=["en", "ru"])


def blocks(text: str, language: str = r"\w*") -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """Return what is not in code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of each table."""
    found = re.findall(r"(?:^\|.*\|\n)+", prose(text), re.MULTILINE)
    return [[re.split(r" *(?<!\\)\| *", line)[1:-1] for line in table.splitlines()] for table in found]


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the only table that has a row with this first cell."""
    (found,) = [rows for rows in tables(text) if first in [row[0] for row in rows]]
    return found[2:]


def quoted(text: str) -> list[str]:
    """Return everything that is in backquotes."""
    return re.findall("`([^`]*)`", text)


def code(cell: str) -> str:
    """Return what is in backquotes if the cell has nothing else, otherwise ""."""
    found = re.fullmatch("`([^`]*)`", cell)
    return found[1] if found else ""


def headings(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^(#+) (.+)$", prose(text), re.MULTILINE)


def links(text: str) -> set[str]:
    """Return the links to files of this project."""
    return {link for link in re.findall(r"\]\(([^)]+)\)", prose(text)) if "://" not in link}


def figures(text: str) -> set[float]:
    """Return the numbers in a text of either language."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)|(?<=\d)[ \u00a0\u202f](?=\d{3}\b)", "", text)
    return {float(number.replace(",", ".")) for number in re.findall(r"\d+(?:[.,]\d+)?", text)}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def published(server: Server) -> list[str]:
    """What the fetcher publishes for UPDATES."""
    person = {"first_name": "Руслан", "last_name": "Башинский", "domain": "oidaho"}
    with VK(group_id=GROUP) as vk:
        vk.people[PERSON], vk.chats[CHAT] = person, "FUNCKA | TOASTER | DEV | CHAT"
        with Fetcher(VK_URL=vk.url, TOKEN=vk.token, GROUPID=GROUP, REDIS_URL=server.url) as fetcher:
            client = server.client()
            wait_until(lambda: client.exists(f"{{events}}:ts:{GROUP}") or not fetcher.running, what="the first poll")
            vk.push(*UPDATES)
            wait_until(lambda: client.xlen("events") == len(UPDATES) or not fetcher.running, what="the events")
            return [entry["event"] for entry in entries(client)]


# Both READMEs have what the code has


@readme
def test_settings_and_their_defaults(text: str) -> None:
    """The table has every setting, and setting a documented default changes nothing."""
    needed = {"TOKEN": "token", "GROUPID": "1"}
    documented = {code(row[0]): code(row[1]) for row in table(text, "`BUS`")}
    assert documented.keys() == SETTINGS
    assert {name for name in documented if not documented[name]} == {*needed, "TOKEN_FILE", "METRICS_PORT"}
    usual = config.parse(needed)
    assert usual.metrics_port == 0
    for name, default in documented.items():
        if default:
            assert config.parse(needed | {name: default}) == usual, name
    for name in needed:
        with pytest.raises(ValueError, match=f"^{name} "):
            config.parse({other: value for other, value in needed.items() if other != name})


class Program(NamedTuple):
    options: set[str]
    exit_codes: set[int]


@pytest.fixture(scope="module")
def program() -> Program:
    """What the program says about itself, from a process of its own, because importing it takes over the signals."""
    show = (
        "import fetcher.__main__ as program; print([vars(program)[n] for n in vars(program) if n.startswith('EXIT_')])"
    )
    command = [sys.executable, "-c", show]
    codes = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
    with Fetcher("--help") as usage:
        assert usage.wait() == 0
        return Program(set(re.findall("--[a-z]+", usage.output)), {0, *json.loads(codes)})


@readme
def test_options(text: str, program: Program) -> None:
    """The table of commands has every option of the program, and no other one."""
    documented = " ".join(row[0] for row in table(text, "`--demo`"))
    assert set(re.findall("--[a-z]+", documented)) == program.options


@pytest.mark.parametrize("name", ["docs/operations.md", "docs/operations.ru.md"])
def test_exit_codes(name: str, program: Program) -> None:
    """The table has every exit code."""
    assert {int(row[0]) for row in table(TEXTS[name], "70")} == program.exit_codes


@readme
def test_exit_codes_of_the_readme(text: str, program: Program) -> None:
    """One sentence of the README has every exit code."""
    (sentence,) = re.findall("^(?:The exit code is|Код завершения).+", text, re.MULTILINE)
    assert figures(sentence) == program.exit_codes


@readme
def test_types(text: str) -> None:
    """The table has every type of event and the VK type that it is made of; a new type needs a row."""
    built = {
        (sample["event"]["event_type"], sample["update"]["type"]) for sample in SAMPLES.values() if "event" in sample
    }
    (rows,) = [rows[2:] for rows in tables(text) if rows[0][0] == "`event_type`"]
    assert {(code(row[0]), code(row[1])) for row in rows} == built
    assert {kind for _, kind in built} == BUILDERS.keys()


@pytest.mark.parametrize("name", ["docs/operations.md", "docs/operations.ru.md"])
def test_types_to_tick(name: str) -> None:
    """The page names every type that --setup ticks."""
    (line,) = re.findall("^ {4}(message_new.*)$", TEXTS[name], re.MULTILINE)
    assert line.split(", ") == [*BUILDERS]


def noun(hint: Any) -> Any:
    """Return the NamedTuple in an annotation, if there is one."""
    return next((kind for kind in (hint, *get_args(hint)) if hasattr(kind, "_fields")), None)


@readme
def test_attributes(text: str) -> None:
    """The table has every attribute of an event, and its row has the fields of the attribute."""
    rows = {name: row[2] for row in table(text, "`user`") for name in quoted(row[0])}
    assert rows.keys() - {"reply", "forward[]"} == set(Event._fields)
    hints = get_type_hints(Event)
    for name in Event._fields:
        if kind := noun(hints[name]):
            assert set(kind._fields) <= set(quoted(rows[name])), name
    assert set(noun(get_type_hints(noun(hints["message"]))["reply"])._fields) <= set(quoted(rows["reply"]))
    assert {'"geo"', '"reply"', '"forward"'} <= set(quoted(rows["message"]))


@readme
def test_names_of_the_bus(text: str) -> None:
    """The table has the names of channels and streams, and how many events are kept."""
    there = bus_at("redis://nowhere")
    rows = table(text, "channel" if text is ENGLISH else "канал")
    assert quoted(rows[0][1]) == [channel("events", "<event_type>")]
    assert [quoted(row[1])[0] for row in rows[1:]] == there.keys[2:]
    assert config.parse({"TOKEN": "token", "GROUPID": "1"}).stream_maxlen in figures(rows[1][2])


def test_limits() -> None:
    """The table in docs/guarantees.md has the limits of the code."""
    rows = table(TEXTS["docs/guarantees.md"], "event ids in *seen*")
    mebibyte = 2**20
    assert [figures(row[1]) for row in rows] == [
        {backlog.MAX_PENDING, backlog.MAX_PENDING_BYTES / mebibyte},
        {backlog.MAX_REPLAY, backlog.MAX_REPLAY_BYTES / mebibyte},
        {backlog.DEDUP_WINDOW},
        {bus.DEAD_LETTERS},
        {pieces.MAX_PIECE, pieces.MAX_PIECE_BYTES / mebibyte},
        {lookups.MAX_IDS_OF["users.get"], lookups.MAX_IDS},
        {20},
        {relay.NAMES_TIMEOUT},
    ]


# What the documentation shows is what the code gives


@readme
def test_json_is_what_is_published(text: str, published: list[str]) -> None:
    """The JSON in the READMEs is what the fetcher publishes for such an update, key by key."""
    shown = [json.dumps(json.loads(block)) for block in blocks(text, "json")]
    events = [json.loads(event) for event in published]
    assert shown == [json.dumps(event) for event in events if event["event_type"] == "command"]


@pytest.mark.parametrize("page", ["docs/consumers.md", "docs/consumers.ru.md"])
def test_json_of_the_other_types(page: str, published: list[str]) -> None:
    """The pages for consumers show events of types that the READMEs do not, as the fetcher publishes them."""
    (block,) = blocks(TEXTS[page], "json")
    shown = {event["event_type"]: json.dumps(event) for event in map(json.loads, block.split("\n\n"))}
    assert shown.keys() >= {"message", "button", "reaction"}
    events = {event["event_type"]: json.dumps(event) for event in map(json.loads, published)}
    assert shown == {kind: events[kind] for kind in shown}


@pytest.fixture(scope="module")
def demonstrated() -> list[str]:
    """The demo's first events, one of each type."""
    with Fetcher("--demo", constants={"fetcher.commands.demo:PORT": free_port()}) as fetcher:
        last = fetcher.wait_for("reaction ")
        return fetcher.lines[last - 3 : last + 1]


@readme
def test_the_lines_are_what_the_demo_prints(text: str, demonstrated: list[str]) -> None:
    """The READMEs show what the demo prints for one event of each type, except message numbers, which vary."""
    (shown,) = blocks(text, "text")
    documented, printed = (re.sub(r"(?<=message )\d+", "N", lines) for lines in (shown, "\n".join(demonstrated)))
    assert documented.splitlines() == printed.splitlines()


@pytest.mark.parametrize("name", ["subscribe", "consume"])
def test_consumers(name: str, server: Server, published: list[str], tmp_path: Path) -> None:
    """The README's consumer works as it is, with either call: it prints events, and ends quietly on Ctrl-C."""
    (program,) = blocks(ENGLISH, "python")
    (other,) = [call for call in quoted(ENGLISH) if call.startswith("consume(Redis()")]
    if name == "consume":
        program = program.replace("import subscribe", "import consume")
        program = program.replace("subscribe(Redis())", other)
    assert name in program
    (tmp_path / "consumer.py").write_text(program.replace("Redis()", f"Redis(port={server.port})"), encoding="utf-8")
    ended = threading.Event()

    def publish() -> None:
        client = server.client()
        while not ended.wait(0.02):
            for event in published:
                client.publish(channel("events", json.loads(event)["event_type"]), event)
                client.xadd("events", {"event": event})

    publisher = threading.Thread(target=publish)
    publisher.start()
    environment = uncovered() | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "consumer.py"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    try:
        with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
            assert process.stdout
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=80)
    finally:
        ended.set()
        publisher.join()
    place, _, text = line.rstrip().partition(": ")
    assert place == "Руслан Башинский in «FUNCKA | TOASTER | DEV | CHAT»"
    assert text in ("Hi!", "/command")
    assert (process.returncode, errors) == (0, "")


@readme
def test_the_two_commands(text: str) -> None:
    """The commands for the demo and for the tests are word for word in blocks of their own; CI runs the latter."""
    shown = blocks(text, "sh")
    assert (shown[1], shown[-1]) == (TRY, TEST)
    assert TEST.strip() in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


@readme
def test_the_first_command_clones(text: str, tmp_path: Path) -> None:
    """The first command can be copied as it is: it prompts for the repository's address."""
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", repository], check=True)
    command = blocks(text, "sh")[0].strip() + " && pwd"
    options: Any = {"cwd": tmp_path, "input": f"{repository}\n", "capture_output": True, "encoding": "utf-8"}
    done = subprocess.run(["sh", "-c", command], **options, check=True)
    assert done.stdout.endswith(f"{tmp_path / 'event-fetcher'}\n")
    assert (tmp_path / "event-fetcher" / ".git").is_dir()


def commands() -> Iterator[tuple[str, str]]:
    """Yield every `python -m module options` of the documentation."""
    for text in TEXTS.values():
        yield from re.findall(r"(?:python|python3) -m ((?!venv|pytest|pip|build)[\w.]+)([^`\n|&;]*)", text)


@pytest.mark.parametrize(("module", "options"), sorted(set(commands())))
def test_commands(module: str, options: str) -> None:
    """The module of every documented command exists, and has the options of that command."""
    place = ROOT / module.replace(".", "/")
    path = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    assert all(f'"{option}"' in source for option in re.findall("--[a-z-]+", options)), options


@readme
def test_files_of_the_commands(text: str) -> None:
    """Every file that the commands copy, build or install exists."""
    commands = " ".join(blocks(text, "sh"))
    assert all(name in commands for name in ("cp .env.example .env", "docker compose up -d", "pip install ."))
    assert all((ROOT / name).exists() for name in (".env.example", "compose.yaml", "setup.py", "requirements.txt"))
    extras = re.findall(r"'\.\[(\w+)\]'", text)
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert extras
    assert all(f'"{extra}": [' in setup for extra in extras)


# Figures


@readme
def test_the_readme_has_the_figures_of_the_pages(text: str) -> None:
    """The figures in the table of pages are also in the page that each row links to."""
    rows = table(text, "[Benchmark](docs/benchmark.md)" if text is ENGLISH else "[Скорость](docs/benchmark.md) (англ.)")
    count = 0
    for page, result in rows:
        (link,) = links(page)
        count += len(figures(result))
        assert figures(result) <= figures(TEXTS[link]), link
    assert count


@pytest.mark.parametrize("name", MARKERS)
def test_each_report_has_its_marks(name: str) -> None:
    """Each tool writes its report between two marks."""
    assert re.findall(r"^<!-- (/?\w+) -->$", TEXTS[name], re.MULTILINE) == [
        mark for place in MARKERS[name] for mark in (place, f"/{place}")
    ]


# The documents compared with each other


def without_comments(block: str) -> str:
    return re.sub(r"[ \t]+#[ \t].*$", "", block, flags=re.MULTILINE)


def shape(text: str) -> dict[str, Any]:
    """Return what must be the same in every language."""
    picture = {block: re.sub(r'"[^"]*"|(?<=-- )[^->\n]+(?= -->)', "…", block) for block in blocks(text, "mermaid")}
    return {
        "headings": [level for level, _ in headings(text)],
        "tables": [[len(row) for row in rows] for rows in tables(text)],
        "items": len(re.findall(r"^(?:-|\d+\.) ", prose(text), re.MULTILINE)),
        "code": [picture.get(block) or without_comments(block) for block in blocks(text)],
        "links": {re.sub(r"#.*", "", link).replace(".ru.md", ".md") for link in links(text)},
    }


@pytest.mark.parametrize("name", TRANSLATED)
def test_both_languages_have_the_same_structure(name: str) -> None:
    """Both have the same headings, tables, items, code and links, except for comments and the words in a picture."""
    assert shape(TEXTS[name]) == shape(TEXTS[name.replace(".md", ".ru.md")])


def test_both_readmes_have_the_same_names() -> None:
    """Both READMEs have the same words in backquotes."""
    assert set(quoted(prose(ENGLISH))) == set(quoted(prose(RUSSIAN)))


@readme
def test_the_picture_has_the_names_of_the_bus(text: str) -> None:
    """The picture shows where events go, and how consumers get them."""
    (picture,) = blocks(text, "mermaid")
    names = ["event fetcher", "events:message,", '<br>events"', "{events}:dead-letter", "subscribe()", "consume()"]
    assert all(name in picture for name in names)


@readme
def test_readmes_are_short(text: str) -> None:
    """A README has about 150 lines; the rest is on pages of its own."""
    assert len(text.splitlines()) <= 170


@pytest.mark.parametrize("name", TEXTS)
def test_links(name: str) -> None:
    """Every link leads to a file or a heading that exists."""
    for link in links(TEXTS[name]):
        path, _, anchor = link.partition("#")
        target = ROOT / name if not path else (ROOT / name).parent / path
        assert target.exists(), link
        if anchor:
            titles = [title.lower() for _, title in headings(target.read_text(encoding="utf-8"))]
            assert anchor in [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles], link


@pytest.mark.parametrize("name", TEXTS)
def test_no_page_is_half_merged(name: str) -> None:
    """No page has the markers that git leaves in a file with conflicts."""
    assert not re.search(r"^(?:<{7}|={7}|>{7})(?: |$)", TEXTS[name], re.MULTILINE)


def test_every_file_in_the_table_of_mutants_exists() -> None:
    """Every file in the table of mutants exists: one that has moved needs its new path there."""
    names = [code(row[0]) for row in table(TEXTS["docs/reliability.md"], "`core/backlog.py`")]
    assert [name for name in names if not (ROOT / "fetcher" / name).exists()] == []


def test_versions() -> None:
    """The changelog begins with the version of the code, and the comparison is with the vk_api that is installed."""
    newest = re.findall(r"^## \[(.+?)\] - (.+)$", TEXTS["CHANGELOG.md"], re.MULTILINE)[0]
    assert newest[0] == __version__
    assert f"vk_api {version('vk_api')} " in TEXTS["docs/comparison.md"]


def test_the_map_has_every_file() -> None:
    """Every file of the fetcher is in the map of the code."""
    paths = [path for path in (ROOT / "fetcher").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".typed")]
    packages = {path for path in paths if path.name == "__init__.py" and path.parent != ROOT / "fetcher"}
    files = {path.relative_to(ROOT / "fetcher").as_posix() for path in {*paths} - packages}
    documented = [code(row[0]) for row in table(GUIDE, "`main.py`")]
    assert {name.removeprefix("fetcher/") for name in documented if name.startswith("fetcher/")} == files
    assert all((ROOT / name).exists() for name in documented)


# Add an event type


def users(event: Any) -> list[User]:
    """List the users in an event, at any depth."""
    if isinstance(event, User):
        return [event]
    inner = event if isinstance(event, tuple | list) else ()
    return [user for item in inner for user in users(item)]


def built(name: str) -> Event:
    """Return the event of a sample."""
    update = SAMPLES[name]["update"]
    nobody: Any = None  # building an event needs no lookups
    event = EntryBuilder(nobody, nobody, update.get("group_id", GROUP), "/!", raw=False).event_of(update)
    assert event
    return event


every_sample = pytest.mark.parametrize("name", sorted(name for name, sample in SAMPLES.items() if "event" in sample))


@every_sample
def test_every_user_in_an_event_gets_a_name(name: str) -> None:
    """A new attribute with a user in it needs a line in `ids_to_resolve` and in `with_names` in entries.py."""
    event = built(name)._replace(peer=Peer(0, 0, ""))  # so that no name is needed for the peer
    ids = ids_to_resolve([event])
    assert {user.uuid for user in users(event) if -CHATS < user.uuid < CHATS and user.uuid} <= ids
    named = with_names(event, {id: Name(f"Name of {id}") for id in ids})
    for user in users(named):
        assert user.name == (f"Name of {user.uuid}" if user.uuid in ids else ""), user


@every_sample
def test_watch_describes_each_attribute(name: str) -> None:
    """--watch describes every attribute of an event: a new one needs its words in watch.py."""
    event = built(name)
    for attribute in set(Event._field_defaults) - {"raw"}:
        if getattr(event, attribute):
            parts = ("action", "payload") if attribute == "message" else ()  # these belong to the message
            without: dict[str, Any] = dict.fromkeys((attribute, *parts))
            assert describe(event) != describe(event._replace(**without)), attribute


def test_nouns_are_public() -> None:
    """A new NamedTuple in events.py is also exported by __init__.py."""
    nouns = {name for name, value in vars(events).items() if hasattr(value, "_fields")}
    assert nouns <= set(fetcher.__all__)
    assert all(getattr(fetcher, name) is getattr(events, name) for name in nouns)


@pytest.mark.parametrize("type", sorted(BUILDERS))
def test_the_demo_shows_each_type(type: str) -> None:
    """A new type needs an update of that type in demo.json."""
    assert any(update["type"] == type for update in RECORDED), f"no update of type {type} in demo.json"


def examples() -> dict[str, str]:
    """Return the text of each example in the guide, by the sample that it adds."""
    parts = re.split("^### ", GUIDE, flags=re.MULTILINE)[1:]
    return {re.findall(r"^\+\+\+ (tests/samples/.+)$", part, re.MULTILINE)[0]: part for part in parts}


def follow(example: str, root: Path) -> None:
    """Make the changes that the blocks of an example show.

    A block has `+++ file` before the changes to each file, and `@@` between two places in a file. Lines with `+` are
    added, and those with `-` are removed; all others show the place, which must occur exactly once. `…` at the end of
    a line stands for the rest of it.
    """
    diffs = "".join(blocks(example, "diff"))
    for name, hunks in re.findall(r"^\+\+\+ (.+)\n((?:(?!\+\+\+ ).*\n)*)", diffs, re.MULTILINE):
        path = root / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for hunk in hunks.split("@@\n"):
            marked = [(line[:1] or " ", line[1:]) for line in hunk.splitlines()]
            shown = [text for mark, text in marked if mark != "+"]
            places = [at for at in range(len(lines) - len(shown) + 1) if is_shown(lines[at:], shown)]
            assert len(places) == 1, f"{len(places)} such places in {name}:\n{hunk}"
            there = iter(lines[places[0] : places[0] + len(shown)])
            new = [(mark, text if mark == "+" else next(there)) for mark, text in marked]
            lines[places[0] : places[0] + len(shown)] = [text for mark, text in new if mark != "-"]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def is_shown(lines: list[str], shown: list[str]) -> bool:
    pairs = zip(lines, shown, strict=False)
    return all(line.startswith(text[:-1]) if text.endswith("…") else line == text for line, text in pairs)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("followed", "files"),
    [
        pytest.param(followed, files, id=name, marks=pytest.mark.xdist_group(f"the guide, {name}"))
        for name, followed, files in [("the first", 1, OF_TYPES), ("both", 2, OF_TYPES + WITH_SERVERS)]
    ],
)
def test_the_guide_works_to_the_letter(followed: int, files: tuple[str, ...], tmp_path: Path) -> None:
    """Following CONTRIBUTING adds two types of event, and all tests about types pass after each of them.

    An example that is already in this clone is not followed again.
    """
    copy = tmp_path / "event fetcher"  # paths may have spaces
    left_out = shutil.ignore_patterns(".git", ".venv", ".hypothesis", "node_modules", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=left_out)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "PYTEST"))}
    *_, sample = samples = list(examples())[:followed]
    if (copy / sample).exists():
        return
    for one in samples:
        if not (copy / one).exists():
            follow(examples()[one], copy)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-v", *(f"tests/test_{name}.py" for name in files)]
    command += ["-k", f"not ({NOT_OF_TYPES})"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"test_samples[{Path(sample).stem}] PASSED" in done.stdout
