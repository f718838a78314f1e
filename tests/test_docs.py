"""The documentation says what the code does: settings, options, exit codes, events, and all that can be run."""

import functools
import importlib.metadata
import json
import re
import shlex
import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import redis
from jsonschema import Draft202012Validator

import main
from fetcher import Event, __version__, builders, bus, config, demo, relay
from fetcher.builders import BUILDERS, build, command_pattern
from fetcher.bus import Bus, channel
from fetcher.names import Name
from fetcher.relay import Relay
from fetcher.vk import Batch
from tests.processes import ROOT
from tests.servers import Server
from tests.vk import button, message, reaction

DOCUMENTS = ["README.md", "README.ru.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/operations.md"]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
ENGLISH, RUSSIAN = TEXTS["README.md"], TEXTS["README.ru.md"]
SAMPLES = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "tests/samples").glob("*.json")]
SCHEMA = json.loads((ROOT / "fetcher/event.schema.json").read_text(encoding="utf-8"))
SETTINGS = set(re.findall(r'(?:get|number|matching)\("([A-Z_]+)"', Path(config.__file__).read_text(encoding="utf-8")))

GROUP, PERSON, CHAT = 218730916, 206295116, 2000000002
COMMAND = command_pattern(GROUP, "/!")
NAMES = {
    PERSON: Name("Руслан Башинский", "Руслан", "Башинский", "oidaho"),
    CHAT: Name("FUNCKA | TOASTER | DEV | CHAT"),
}
UPDATES = [  # what the events in the READMEs are made of
    next(sample["update"] for sample in SAMPLES if str(sample).count("d31e92e8ccde1fa2cde93eeaf9cbdf6d0cd0a936")),
    message("[club218730916|@toaster] /command", PERSON, CHAT, conversation_message_id=3895)
    | {"event_id": "b0d7020c0bd1ad36b76567054400abc8b279f960"},
    button({"action": "buy", "id": 7}, PERSON, CHAT, conversation_message_id=3896, event_id="5bba1af2abf1")
    | {"event_id": "ca299dda062c37501cbf6c24942896342b26ee4c"},
    reaction(4, PERSON, CHAT, cmid=3895) | {"event_id": "ea13b0c32f82215f30f828a4d93af67e70d5b6b8"},
]

readme = pytest.mark.parametrize("text", [ENGLISH, RUSSIAN], ids=["en", "ru"])


def blocks(text: str, language: str = r"\w*") -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def unmeasured(text: str) -> str:
    """Return the text without the figures of soak and benchmark."""
    return re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL)


def prose(text: str) -> str:
    """Return what is no code block."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of each table."""
    found = re.findall(r"(?:^\|.*\|\n)+", prose(text), re.MULTILINE)
    return [[re.split(r" *(?<!\\)\| *", line)[1:-1] for line in table.splitlines()] for table in found]


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the one table that has a row whose first cell is this one."""
    (found,) = [rows for rows in tables(text) if first in [row[0] for row in rows]]
    return found[2:]


def code(cell: str) -> str:
    """Return what stands in back-quotes, if that is all."""
    found = re.fullmatch("`([^`]*)`", cell)
    return found[1] if found else ""


class Stub:
    """A VK that knows one person and one chat."""

    def names(self, ids: Any) -> dict[int, Name]:
        return {id: NAMES[id] for id in ids}

    def whole(self, places: set[Any]) -> dict[Any, Any]:
        assert not places  # nothing is cropped
        return {}


@functools.cache
def published() -> list[str]:
    """Return the JSON that the loop makes of UPDATES."""
    entries = Relay(Stub(), None, COMMAND, 25).entries(Batch("0", "4", UPDATES), lambda ids: {})  # type: ignore[arg-type]
    return [text for _, _, text in entries.events]


# --- What the code has stands in both READMEs ----------------------------------------------------------------


@readme
def test_settings_and_their_defaults(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The table has every setting, and giving the default that it tells changes nothing."""
    monkeypatch.chdir(tmp_path)  # where no .env is
    needed = {"TOKEN": "token", "GROUPID": "1"}
    told = {code(row[0]): code(row[1]) for row in table(text, "`BUS`")}
    assert told.keys() == SETTINGS
    assert {name for name in told if not told[name]} == {*needed, "TOKEN_FILE"}
    usual = config.read(needed)
    for name, default in told.items():
        if default:
            assert config.read(needed | {name: default}) == usual, name
    for name in needed:
        with pytest.raises(ValueError, match=f"^{name} "):
            config.read({other: value for other, value in needed.items() if other != name})


@readme
def test_options(text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option stands there, and no other one of main.py's."""
    monkeypatch.setattr("sys.argv", ["main.py", "--help"])
    with pytest.raises(SystemExit):
        main.main()
    options = set(re.findall(r"--[a-z]+", capsys.readouterr().out))
    paragraph = next(part for part in text.split("\n\n") if part.startswith("`python main.py`"))
    assert set(re.findall(r"`(--[a-z]+)`", paragraph)) == options


@readme
def test_exit_codes(text: str) -> None:
    """The table has every exit code."""
    codes = {0} | {value for name, value in vars(main).items() if name.startswith("EXIT_")}
    assert {int(row[0]) for row in table(text, "70")} == codes


@readme
def test_types(text: str) -> None:
    """The table has every type of event and what of VK's it is made of, as the code and the schema have them."""
    events = [(sample["event"]["event_type"], sample["update"]["type"]) for sample in SAMPLES if "event" in sample]
    told = [(code(row[0]), code(row[1])) for row in table(text, "`message`")]
    assert sorted(told) == sorted(set(events))
    assert {kind for kind, _ in told} == set(SCHEMA["properties"]["event_type"]["enum"])
    assert {kind for _, kind in told} == BUILDERS.keys()


@readme
def test_names_and_numbers_of_the_bus(text: str) -> None:
    """The table has the names of channels and streams; the prose has how many updates are held and remembered."""
    there = Bus("redis://nowhere", "events", GROUP, 1, 1, 1)
    rows = " ".join(row[1] for row in table(text, "channel" if text is ENGLISH else "канал"))
    assert re.findall("`(.+?)`", rows)[:2] == [channel("events", "<event_type>"), there.bus]
    assert f"`{there.dead_letters}`" in rows
    assert len(re.findall(r"\b10[,\s]000\b", unmeasured(text))) == 2
    assert relay.MOST_HELD == bus.SEEN == 10_000


# --- What stands there is what the code gives ------------------------------------------------------------------


@readme
def test_json_is_what_is_published(text: str) -> None:
    """There is one event of each type, key by key as the loop makes it; the sample, tested below, is all other JSON."""
    told = [json.loads(block) for block in blocks(text, "json")]
    events = [json.dumps(data, ensure_ascii=False) for data in told if "event_type" in data]
    assert events == published()
    assert len(told) == len(events) + 1
    assert {json.loads(event)["event_type"] for event in events} == {"message", "command", "button", "reaction"}


@readme
def test_the_lines_are_what_the_demo_prints(text: str) -> None:
    """They tell of the events below them."""
    (shown,) = blocks(text, "text")
    assert shown.splitlines() == [demo.line(Event.from_dict(json.loads(event))) for event in published()]


CONSUMERS = [block for block in blocks(ENGLISH, "python") if "from fetcher" in block]


class Enough(Exception):
    """What ends a loop that has no end."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.mark.parametrize(
    ("block", "expected"),
    [*zip(CONSUMERS, ["(Message.*'/command'|Button.*'buy')", "(message|command|button|reaction)$"], strict=True)],
    ids=["subscribe", "consume"],
)
def test_consumers(block: str, expected: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs as it stands and prints the first event of a type that it wants."""
    printed: list[str] = []
    events = published()
    ended = threading.Event()

    def talk(client: redis.Redis) -> None:
        while not ended.wait(0.02):
            for event in events:
                client.publish(channel("events", json.loads(event)["event_type"]), event)
                client.xadd("events", {"event": event})

    def take(*words: object) -> None:
        printed.extend(map(str, words))
        raise Enough

    talking = threading.Thread(target=talk, args=(server.client(),), daemon=True)
    talking.start()
    monkeypatch.setattr("redis.Redis", functools.partial(redis.Redis, port=server.port))
    try:
        with pytest.raises(Enough):
            exec(compile(block, "README.md", "exec"), {"print": take})
    finally:
        ended.set()
        talking.join()
    assert "Руслан Башинский" in printed
    assert [word for word in printed if re.match(expected, word)]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Add the README's type of event to the builders, and return its sample."""
    (block,) = set(blocks(ENGLISH, "python")) - set(CONSUMERS)
    sample: dict[str, Any] = json.loads(blocks(ENGLISH, "json")[-1])
    kind = sample["update"]["type"]
    without = {name: builder for name, builder in BUILDERS.items() if name != kind}  # who tries the example adds it
    monkeypatch.setattr(builders, "BUILDERS", without)
    exec(compile(block, "README.md", "exec"), dict(vars(builders)))
    assert kind in without
    assert f"events:{sample['event']['event_type']}" in ENGLISH
    return sample


def test_the_added_type(example: dict[str, Any]) -> None:
    """It is one function and one line, and gives what its sample says; a malformed update is a dead letter."""
    event = build(example["update"], COMMAND)
    assert event
    assert json.dumps(event.as_dict()) == json.dumps(example["event"])
    assert Event.from_dict(example["event"]) == event
    with pytest.raises(ValueError, match="user_id is missing"):
        build(example["update"] | {"object": {}}, COMMAND)


def test_the_schema_of_the_added_type(example: dict[str, Any]) -> None:
    """The README's two changes of the schema let it in, and both are needed."""
    event = example["event"]
    branch = json.loads(re.findall(r'`(\{"properties".+?\})`', ENGLISH)[0])
    enum = {*SCHEMA["properties"]["event_type"]["enum"], event["event_type"]}
    others = [other for other in SCHEMA["oneOf"] if other != branch]

    def takes(event: Any, enum: set[str], branches: list[Any]) -> bool:
        schema = deepcopy(SCHEMA) | {"oneOf": branches}
        schema["properties"]["event_type"]["enum"] = sorted(enum)
        return Draft202012Validator(schema).is_valid(event)

    assert takes(event, enum, [*others, branch])
    assert not takes(event, enum, others)
    assert not takes(event, enum - {event["event_type"]}, [*others, branch])
    assert all(takes(json.loads(other), enum, [*others, branch]) for other in published())


TRY = [
    "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python main.py --demo",
    "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python -m pytest",
]


@readme
def test_the_two_commands(text: str) -> None:
    """They stand on the first screens, each in a block of its own, word for word; the CI runs the second one."""
    assert blocks(text, "sh")[:2] == [f"{command}\n" for command in TRY]
    assert text.index(TRY[1]) < text.index("\n## ")
    assert TRY[1] in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def test_the_other_commands(server: Server) -> None:
    """Redis understands its own, and the files are there."""
    lines = [line for block in blocks(ENGLISH, "sh") for line in block.splitlines() if line not in TRY]
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        if program == "redis-cli":
            connection = server.client(protocol=2).connection_pool.get_connection()
            connection.send_command(*words[1:])  # without --raw
            assert isinstance(connection.read_response(), list), line
            connection.disconnect()
        else:
            assert (program, words[0]) in {("cp", ".env.example"), ("docker", "compose")}, line
    assert (ROOT / ".env.example").exists()
    assert (ROOT / "compose.yaml").exists()


# --- The documents among each other -----------------------------------------------------------------------------


def headings(text: str) -> list[str]:
    return re.findall(r"^(#+) (.+)$", prose(text), re.MULTILINE)


def test_both_readmes_are_built_alike() -> None:
    """They have the same headings, tables, items, links and code, but for the words in the picture."""
    assert [level for level, _ in headings(ENGLISH)] == [level for level, _ in headings(RUSSIAN)]
    assert [[len(row) for row in rows] for rows in tables(ENGLISH)] == [
        [len(row) for row in rows] for rows in tables(RUSSIAN)
    ]
    assert len(re.findall("^- ", ENGLISH, re.MULTILINE)) == len(re.findall("^- ", RUSSIAN, re.MULTILINE))
    assert sorted(links(ENGLISH) - {"README.ru.md"}) == sorted(links(RUSSIAN) - {"README.md"})
    assert blocks(ENGLISH)[1:] == blocks(RUSSIAN)[1:]
    quoted = [re.findall("`[^`]+`", prose(text).replace("README.ru.md", "")) for text in (ENGLISH, RUSSIAN)]
    assert set(quoted[0]) == set(quoted[1]), "names in back-quotes"


def test_both_readmes_have_the_picture() -> None:
    """It is the same one, in words of their own, and shows the names of the bus."""
    pictures = [blocks(text)[0] for text in (ENGLISH, RUSSIAN)]
    assert pictures == [blocks(text, "mermaid")[0] for text in (ENGLISH, RUSSIAN)]
    shapes = [re.sub(r'"[^"]*"|(?<=-- )[^->\n]+(?= -->)', "…", picture) for picture in pictures]
    assert shapes[0] == shapes[1]
    names = ["event fetcher", "events:message,", '<br>events"', "{events}:dead-letter", "subscribe()", "consume()"]
    assert all(name in picture for name in names for picture in pictures)


@readme
def test_nobody_reads_longer_than_ten_minutes(text: str) -> None:
    """That is 2,000 words, but for code and the results of long runs."""
    words = unmeasured(prose(text))
    assert len(re.findall(r"[^\s|]*\w[^\s|]*", words)) <= 2000


def links(text: str) -> set[str]:
    """Return the links to files of this project."""
    return {link for link in re.findall(r"\]\(([^)]+)\)", prose(text)) if "://" not in link}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name: str) -> None:
    """Every link leads to a file or a heading that exists."""
    for link in links(TEXTS[name]):
        path, _, anchor = link.partition("#")
        target = ROOT / name if not path else (ROOT / name).parent / path
        assert target.exists(), link
        if anchor:
            titles = [title.lower() for _, title in headings(target.read_text(encoding="utf-8"))]
            assert anchor in [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles], link


def test_versions() -> None:
    """The changelog begins with the version of the code, and the comparison is with the vk_api that is installed."""
    newest = re.findall(r"^## \[(.+?)\] - (.+)$", TEXTS["CHANGELOG.md"], re.MULTILINE)[0]
    assert newest[0] == __version__
    for text in (ENGLISH, RUSSIAN):
        assert f"vk_api {importlib.metadata.version('vk_api')} " in text


def test_the_map_is_whole() -> None:
    """Every file of the fetcher stands in the map of the code."""
    files = {path.name for path in (ROOT / "fetcher").iterdir() if path.is_file()} - {"py.typed"}
    told = [code(row[0]) for row in table(TEXTS["CONTRIBUTING.md"], "`main.py`")]
    assert {name.removeprefix("fetcher/") for name in told if name.startswith("fetcher/")} == files
    assert all((ROOT / name).exists() for name in told)
