"""Each folder imports only what it may, and no two modules need each other."""

import ast
import sys
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "fetcher").rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """Return the full names of the modules that this one imports, anywhere in it."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else source for name in names}
    return found


def libraries(module: str) -> set[str]:
    """Return the third-party packages that a module imports."""
    return {name.partition(".")[0] for name in imports(module)} - sys.stdlib_module_names - {"fetcher"}


def inside(*folders: str) -> list[str]:
    return [module for module in FILES if module.startswith(tuple(f"fetcher.{folder}." for folder in folders))]


def test_each_folder_has_modules() -> None:
    """Each folder of the design has modules; otherwise the tests below would test nothing."""
    for folder in ("core", "vk", "bus", "commands"):
        assert inside(folder)


@pytest.mark.parametrize("module", inside("core"))
def test_the_core_knows_no_outside_library(module: str) -> None:
    """The core imports only the standard library, events, errors and itself; JSON and metrics are passed to it."""
    assert libraries(module) == set()
    ours = {name for name in imports(module) if name.startswith("fetcher")}
    assert ours <= {"fetcher.events", "fetcher.errors", *inside("core")}


@pytest.mark.parametrize(
    ("module", "library"), [(one, "redis") for one in inside("vk")] + [(one, "vk_api") for one in inside("bus")]
)
def test_neither_side_knows_the_others_library(module: str, library: str) -> None:
    """VK's side imports neither redis nor anything of the bus, and the bus neither vk_api nor anything of VK's side."""
    assert library not in libraries(module)
    other = "fetcher.bus" if library == "redis" else "fetcher.vk"
    assert not [name for name in imports(module) if name == other or name.startswith(f"{other}.")]


@pytest.mark.parametrize("module", ["fetcher.events", "fetcher.errors", "fetcher.core.history"])
def test_nouns_import_nothing_of_ours(module: str) -> None:
    """Modules that only define nouns import nothing of ours, so that every other module can import them."""
    assert not [name for name in imports(module) if name.startswith("fetcher")]


def test_imports_form_no_cycle() -> None:
    """The imports form no cycle; CycleError would name the modules in one."""
    TopologicalSorter({module: imports(module) & FILES.keys() for module in FILES}).prepare()
