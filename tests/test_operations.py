"""docs/operations.md explains every sentence that the program logs, and no others."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest

from fetcher.bus import connection
from fetcher.core import reports
from fetcher.vk import api
from tests.processes import ROOT

PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("operations.md", "operations.ru.md")}
FETCHER = ROOT / "fetcher"
# These commands print to a person at a terminal, and each line contains the remedy.
LEFT_OUT = {FETCHER / "commands/demo.py", FETCHER / "commands/setup.py"}
LEVELS = {"info", "warning", "critical"}
ERRORS = {
    "FatalError", "MalformedResponse", "RedisFatalError", "RedisTimeout", "RedisUnavailable", "RequestRejected",
    "SettingsError", "TransientError", "kind",
}  # fmt: skip
# Modules in which a ValueError is the reason of a dead letter or of a wrong setting, and the text that precedes it.
REASONS = {"vk/builders.py": "", "vk/fields.py": "", "vk/entries.py": "", "fastjson.py": ""}
REASONS |= {"config.py": "… ", "bus/connection.py": "REDIS_URL "}
READING = "nested too deep"  # raised while reading VK's answers, where only the exception's class is logged
# Tables from which the code picks its sentences.
TABLES: list[dict[Any, str]] = [api.FATAL, api.FATAL_AT_START, connection.FATAL, reports.DEAD_LETTER]

page = pytest.mark.parametrize("name", PAGES)


def sentences() -> set[str]:
    """Return the sentences that the code logs or raises for operators, with "…" for each value."""
    found = {text for table in TABLES for text in table.values()}
    for path in {*FETCHER.rglob("*.py")} - LEFT_OUT:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned = {
            node.targets[0].id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            reason = REASONS.get(path.relative_to(FETCHER).as_posix())
            for before, argument in spoken(call, reason):
                found |= {before + text for text in texts(argument, assigned)}
    plain = {re.sub(r"%(\(\w+\))?[sdr]", "…", text) for text in found}
    return {text for text in plain if re.search("[A-Za-z]{2}", text)} - {READING}


def spoken(call: ast.Call, reason: str | None) -> list[tuple[str, ast.expr]]:
    """Return the sentence for the operator among a call's arguments, with the text that precedes it, or []."""
    function: Any = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = getattr(getattr(function, "value", None), "id", "")
    if name == "_remind":
        return [("", call.args[2])]
    if (owner == "log" and name in LEVELS) or name in ERRORS or (owner, name) == ("wrong", "append"):
        return [("", argument) for argument in call.args[:1]]
    if name == "ValueError" and reason is not None:
        return [(reason, call.args[0])]
    return []


def texts(node: ast.expr, assigned: dict[str, ast.expr]) -> Iterator[str]:
    """Yield the texts that an expression can be, with "…" for each value in them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        values = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
        yield "".join(map(str, values))
    elif isinstance(node, ast.IfExp):
        yield from (*texts(node.body, assigned), *texts(node.orelse, assigned))
    elif isinstance(node, ast.Name) and node.id in assigned:
        yield from texts(assigned[node.id], {})


def quotes(text: str) -> list[str]:
    """Return the sentences in the log tables: the quotes in their first cells."""
    (part,) = re.findall(r"^## (?:Log|Лог|Журнал)\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`.+?`) \|", part, re.MULTILINE)
    return [quote for cell in cells for quote in re.findall("`([^`]+)`", cell)]


def is_explained(sentence: str, quote: str) -> bool:
    """Return whether the quote is this sentence, whole or up to the remedy."""
    pattern = re.escape(quote).replace("…", ".+")
    return bool(re.fullmatch(rf"{pattern}(?:[:;,] .+| \(.+)?", sentence))


@page
def test_every_sentence_is_explained(name: str) -> None:
    """Every sentence is in a table of the page."""
    explained = quotes(PAGES[name])
    assert not [one for one in sorted(sentences()) if not any(is_explained(one, quote) for quote in explained)]


@page
def test_every_explained_sentence_exists(name: str) -> None:
    """The page quotes only what the code says."""
    logged = sentences()
    assert not [quote for quote in quotes(PAGES[name]) if not any(is_explained(one, quote) for one in logged)]


@page
def test_every_reason_is_explained(name: str) -> None:
    """The page quotes every reason for which the code calls Redis unavailable in its own words."""
    assert [text for text in connection.REASONS.values() if f"`{text}`" not in PAGES[name]] == []


def test_a_changed_sentence_is_noticed() -> None:
    """A sentence that was changed no longer counts as explained, which the first two tests rely on."""
    assert is_explained("METRICS_PORT: port … cannot be opened (…): …", "METRICS_PORT: port … cannot be opened (…)")
    assert not is_explained("METRICS_PORT: port … cannot be used (…): …", "METRICS_PORT: port … cannot be opened (…)")
    assert not is_explained("Recovered from it", "Recovered")
    assert len(sentences()) > 60
