"""Change a module in many small ways, one at a time, and list the changes that nothing notices.

    python -m tests.mutants fetcher/core/backlog.py --tests tests/test_backlog.py --histories 300
    python -m tests.mutants fetcher/vk/builders.py --tests tests/test_builders.py
    python -m tests.mutants fetcher/bus/commit.lua --tests tests/test_bus.py --histories 300

Each mutant runs in a process of its own, forked from one that has imported everything but the project. The tests run
first, beginning with the quickest, and then the histories of the simulation. Tests that start another interpreter do
not see the mutant there. Module-level constants, strings and annotations are not changed. The exit code is 0 if the
score is at least `--goal`.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

HEAVY = (
    "redis", "redis.cluster", "redis.sentinel", "requests", "vk_api", "pytest", "hypothesis", "lupa.lua51", "greenlet",
)  # fmt: skip
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
}  # fmt: skip
LUA_SWAPPED = {
    "<=": "<", ">=": ">", " < ": " <= ", " > ": " >= ", "==": "~=", "~=": "==", " and ": " or ", " or ": " and ",
    " + 1": " + 2", " - 1": " - 2", "not ": "", " 0": " 1",
}  # fmt: skip
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_MEMORY = 2**32  # bytes that a mutant may use
CPU_FACTOR, CPU_EXTRA = 3, 10  # seconds of CPU that a mutant may use: this many times the original's, and some
WAIT_FACTOR, WAIT_EXTRA = 6, 60  # the same for elapsed seconds


class Mutant(NamedTuple):
    """A change to the module; `apply` makes it, in the process that tries it."""

    line: int
    change: str
    apply: Callable[[], None]


class Durations:
    """A pytest plug-in that runs the quickest tests first, and records in a file how long each takes."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        self.new = Counter[str]()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: self.known.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.new[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        if not self.known:
            self.path.write_text(json.dumps(self.new))


class Trial(NamedTuple):
    """What is run with each mutant."""

    tests: list[str]
    histories: int
    durations: pathlib.Path

    def run(self) -> None:
        """Run the tests and histories, and end the process: with 0 if nothing was noticed."""
        import pytest

        if self.tests:
            options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly"]
            if pytest.main([*options, *self.tests], plugins=[Durations(self.durations)]):
                os._exit(1)
        if self.histories:
            from tests.simulation import chaos, world

            with world.simulated():
                for seed in range(self.histories):
                    if chaos.run(seed).violation:
                        os._exit(2)
        os._exit(0)


HOW = {1: "tests", 2: "histories", 3: "import"}


# Mutants of Python


def python_mutants(tree: ast.Module) -> Iterator[Mutant]:
    """Yield the mutants of the code in functions; `apply` changes the tree."""
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    seen: set[int] = set()
    for function in functions:
        for node in [inner for statement in function.body for inner in ast.walk(statement)]:
            if id(node) not in seen:
                seen.add(id(node))
                yield from mutants_of(node)
        yield from dropped(function)


def mutants_of(node: ast.AST) -> Iterator[Mutant]:
    """Yield the mutants of one node, without those of the nodes inside it."""
    if not isinstance(node, FUNCTIONS):
        yield from dropped(node)
    match node:
        case ast.If() | ast.While() | ast.IfExp():
            yield replaced(node, "test", ast.UnaryOp(ast.Not(), node.test), f"negated: {text(node.test)}")
        case ast.comprehension(ifs=[first, *_]):
            negated = ast.UnaryOp(ast.Not(), first)
            yield replaced(node, "ifs", [negated, *node.ifs[1:]], f"negated: {text(first)}", first.lineno)
        case ast.Compare(ops=[operator]) if type(operator) in SWAPPED:
            yield replaced(node, "ops", [SWAPPED[type(operator)]()], f"swapped the operator: {text(node)}")
        case ast.BoolOp() | ast.BinOp() | ast.AugAssign() if type(node.op) in SWAPPED:
            if not (isinstance(node, ast.BinOp) and is_text(node)):
                yield replaced(node, "op", SWAPPED[type(node.op)](), f"swapped the operator: {text(node)}")
        case ast.UnaryOp(op=ast.Not()):
            yield replaced(node, "op", ast.UAdd(), f"not dropped: {text(node)}")
        case ast.Constant(value=bool() as value):
            yield replaced(node, "value", not value, f"{value} is {not value}")
        case ast.Constant(value=int() | float() as value):
            yield replaced(node, "value", value + 1, f"{value} is {value + 1}")
            yield replaced(node, "value", value - 1, f"{value} is {value - 1}")
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield replaced(node, "value", ast.Constant(None), f"returns None: {text(node)}")
        case ast.Call(func=ast.Name(id="min" | "max" as name) as function):
            other = {"min": "max", "max": "min"}[name]
            yield replaced(function, "id", other, f"{other}: {text(node)}")


def dropped(node: ast.AST) -> Iterator[Mutant]:
    """Yield mutants that each lack one of the node's statements."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        for place, statement in enumerate(block if isinstance(block, list) else []):
            is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            is_import = isinstance(statement, (ast.Import, ast.ImportFrom, ast.Pass, *FUNCTIONS))
            if not is_docstring and not is_import and not isinstance(statement, ast.Return):
                apply = partial(block.__setitem__, slice(place, place + 1), [ast.Pass()])  # type: ignore[index]
                yield Mutant(statement.lineno, f"dropped: {text(statement)}", apply)


def replaced(node: Any, field: str, value: Any, change: str, line: int = 0) -> Mutant:
    """Return the mutant that has another value in a field of the node."""
    return Mutant(line or node.lineno, change, lambda: setattr(node, field, value))


def is_text(node: ast.BinOp) -> bool:
    """Return whether it joins strings or lists, for which `-` would only raise an error."""
    return any(isinstance(one, ast.JoinedStr | ast.List | ast.ListComp) for one in (node.left, node.right))


def text(node: ast.AST) -> str:
    """Return the beginning of the node's source."""
    return ast.unparse(node).partition("\n")[0][:80]


class Importer(importlib.abc.MetaPathFinder):
    """Imports the mutant instead of the module."""

    def __init__(self, name: str, path: pathlib.Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        loader = importlib.machinery.SourceFileLoader(name, str(self.path))
        code = compile(ast.fix_missing_locations(self.tree), str(self.path), "exec")
        loader.get_code = lambda fullname: code  # type: ignore[method-assign]
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


# Mutants of Lua


def lua_mutants(path: pathlib.Path) -> Iterator[Mutant]:
    """Yield the mutants of a script that compile; `apply` makes every reader of the file read the mutant."""
    from lupa.lua51 import LuaError, LuaRuntime

    compiles, lines = LuaRuntime().compile, path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        code, *_ = line.partition(" --")
        if not code.strip() or line.startswith("--"):
            continue
        changes = [("dropped", "")]
        for old, new in LUA_SWAPPED.items():
            places = [found.start() for found in re.finditer(re.escape(old), code)]
            places = [at for at in places if code[:at].count("'") % 2 == 0]  # not inside a string
            changes += [(f"{old!r} is {new!r}", code[:at] + new + code[at + len(old) :]) for at in places]
        for change, changed in changes:
            mutant = "\n".join([*lines[:number], changed, *lines[number + 1 :]])
            try:
                compiles(mutant)
            except LuaError:
                continue
            yield Mutant(number + 1, f"{change}: {code.strip()}", partial(read_instead, path, mutant))


def read_instead(path: pathlib.Path, text: str) -> None:
    """Make `path.read_text` return this text."""
    right = pathlib.Path.read_text

    def read_text(self: pathlib.Path, *arguments: Any, **options: Any) -> str:
        return text if self.resolve() == path.resolve() else right(self, *arguments, **options)

    pathlib.Path.read_text = read_text  # type: ignore[method-assign]


# Trying them


class Attempt:
    """A process that tries a mutant; None stands for the original."""

    def __init__(self, mutant: Mutant | None, trial: Trial, importer: Importer | None, cpu: float) -> None:
        self.mutant, self.begun, self.directory = mutant, time.monotonic(), tempfile.mkdtemp(prefix="mutant-")
        self.pid = os.fork()
        if not self.pid:
            try:
                self.run(trial, importer, cpu)
            except BaseException:
                os._exit(3)

    def run(self, trial: Trial, importer: Importer | None, cpu: float) -> None:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        tempfile.tempdir = self.directory
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu), int(cpu) + 1))
        sys.dont_write_bytecode = True
        if self.mutant:
            self.mutant.apply()
        if importer:
            sys.meta_path.insert(0, importer)
            importlib.import_module(importer.name)
        trial.run()

    def poll(self, seconds: float) -> tuple[str, float] | None:
        """Return what noticed it ("" if nothing did) and its CPU time in seconds, or None while it runs."""
        pid, status, used = os.wait4(self.pid, os.WNOHANG)
        late = time.monotonic() - self.begun > seconds
        if not pid and not late:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # and everything that it has started
        if not pid:
            os.waitpid(self.pid, 0)
        shutil.rmtree(self.directory, ignore_errors=True)
        code = os.waitstatus_to_exitcode(status)
        how = "" if pid and not code else "timeout" if late else HOW.get(code, "timeout")
        return how, used.ru_utime + used.ru_stime


def try_one(mutant: Mutant | None, trial: Trial, importer: Importer | None) -> tuple[str, float, float]:
    """Try one and wait for it; return what noticed it, and its seconds of CPU and of elapsed time."""
    attempt = Attempt(mutant, trial, importer, cpu=3600)
    while (result := attempt.poll(seconds=3600)) is None:
        time.sleep(0.01)
    return *result, time.monotonic() - attempt.begun


def try_all(mutants: list[Mutant], trial: Trial, importer: Importer | None, jobs: int) -> list[Mutant]:
    """Return the mutants that nothing noticed, and print them."""
    how, cpu, took = try_one(None, trial, importer)
    if how:
        raise SystemExit(f"the module as it is fails: {how}")
    print(f"{len(mutants)} mutants; the module as it is takes {took:.1f} s", flush=True)
    waiting, running, survivors = mutants[::-1], list[Attempt](), list[Mutant]()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(Attempt(waiting.pop(), trial, importer, CPU_FACTOR * cpu + CPU_EXTRA))
        for attempt in running[:]:
            result = attempt.poll(WAIT_FACTOR * took + WAIT_EXTRA)
            if result is not None:
                running.remove(attempt)
                assert attempt.mutant
                if not result[0]:
                    survivors.append(attempt.mutant)
                    print(f"  line {attempt.mutant.line}: {attempt.mutant.change}", flush=True)
        time.sleep(0.005)
    return survivors


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Change a module in many small ways.")
    parser.add_argument("module", type=pathlib.Path, help="the file")
    parser.add_argument("--tests", nargs="*", default=[], metavar="FILE", help="run these tests with each mutant")
    parser.add_argument("--histories", type=int, default=0, help="histories of the simulation to run with each")
    parser.add_argument("--lines", default="1-100000", metavar="FROM-TO", help="mutants of these lines alone")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (default: 1)")
    parser.add_argument("--goal", type=float, default=0.0, help="per cent that have to be noticed")
    options = parser.parse_args()
    if not options.tests and not options.histories:
        parser.error("nothing would look at the mutants: name --tests, --histories or both")
    for name in HEAVY:
        importlib.import_module(name)
    if options.module.suffix == ".lua":
        importer, mutants = None, list(lua_mutants(options.module))
    else:
        tree = ast.parse(options.module.read_text(encoding="utf-8"))
        name = ".".join(options.module.with_suffix("").parts)
        importer, mutants = Importer(name, options.module, tree), list(python_mutants(tree))
    first, last = map(int, options.lines.split("-"))
    mutants = sorted((one for one in mutants if first <= one.line <= last), key=lambda one: one.line)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        trial = Trial(options.tests, options.histories, pathlib.Path(directory, "durations.json"))
        survivors = try_all(mutants, trial, importer, options.jobs)
    score = 100 * (1 - len(survivors) / max(1, len(mutants)))
    print(f"{options.module}: {score:.1f} % of {len(mutants)} noticed, in {time.monotonic() - begun:.0f} s")
    return int(score < options.goal)


if __name__ == "__main__":
    sys.exit(main())
