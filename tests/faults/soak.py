"""Faults in one environment after the other, two at once, mixed at random, and their results."""

import random
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from tests.faults.cases import Case
from tests.faults.ending import end_on_signals, end_with_parent
from tests.faults.environment import Count, Environment
from tests.faults.links import CASES
from tests.faults.recording import Version
from tests.faults.run import run

KINDS: dict[str, dict[str, Any]] = {
    "one fetcher": {},
    "two fetchers": {"fetchers": 2},
    "a cluster": {"clustered": True},
    "a cluster, two fetchers": {"clustered": True, "fetchers": 2},
}
KEPT = 2000  # updates that VK keeps: bursts fit
BURST = 200  # updates at once
MIXED = 0.75  # the share of rounds with two faults


@dataclass
class Report:
    """The results of the soak in one environment, or in all."""

    table: dict[str, Count] = field(default_factory=dict)
    injections: Counter[str] = field(default_factory=Counter)
    total: Count = field(default_factory=Count)
    answers: Counter[str] = field(default_factory=Counter)  # VK's faulty ones
    starts: Counter[str] = field(default_factory=Counter)  # of fetchers, by version
    broken: list[str] = field(default_factory=list)

    def add(self, names: list[str], count: Count) -> None:
        """Add a round; the result of two simultaneous faults is in both rows."""
        self.total = self.total.plus(count)
        self.injections.update(names)
        for name in names:
            self.table[name] = self.table.get(name, Count()).plus(count)

    def merge(self, other: "Report") -> None:
        """Add the results of another environment."""
        for name, count in other.table.items():
            self.table[name] = self.table.get(name, Count()).plus(count)
        self.total = self.total.plus(other.total)
        self.injections += other.injections
        self.answers += other.answers
        self.starts += other.starts
        self.broken += other.broken

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept, and nothing else went wrong."""
        return bool(self.table) and self.total.is_clean and not self.broken


def reports_of(kinds: list[str], seed: int, seconds: float, versions: list[Version]) -> Iterator[Report]:
    """Soak each kind of environment in a process of its own, and yield the reports; no process outlives this one."""
    context = get_context("spawn")
    workers = []
    try:
        for number, kind in enumerate(kinds):
            report, send = context.Pipe(duplex=False)
            arguments = send, kind, f"{seed} {number} {kind}", seconds, versions
            workers.append((kind, report, context.Process(target=work, args=arguments)))
            workers[-1][2].start()
            send.close()
        for kind, report, _ in workers:
            try:
                yield report.recv()
            except EOFError:
                yield Report(broken=[f"{kind}: the process has ended"])
    finally:
        for _, _, process in workers:
            process.terminate()
        for _, _, process in workers:
            process.join()


def work(send: Any, kind: str, seed: str, seconds: float, versions: list[Version]) -> None:
    """Soak in this process, and send the report."""
    end_on_signals()
    end_with_parent()
    send.send(soak(kind, seed, seconds, versions))


def fits_versions(case: Case, versions: list[Version]) -> bool:
    """Whether all these versions can stand the fault on one bus."""
    return len(versions) == 1 or not (case.restarts or case.splits)


def fits(case: Case, env: Environment) -> bool:
    """Whether the fault can happen here."""
    return (
        fits_versions(case, list(env.versions))
        and not (case.linked and env.nodes)
        and not (case.clustered and not env.nodes)
        and case.fetchers <= len(env.fetchers) <= (1 if case.single else 2)
    )


def soak(kind: str, seed: str, seconds: float, versions: list[Version]) -> Report:
    """Inject faults in one environment until the time is over, and in a new one whenever something is broken.

    With several versions, each start of a fetcher uses the next one, and every second fault comes with such a start.
    """
    report, rng, until = Report(), random.Random(seed), time.monotonic() + seconds
    deck: list[Case] = []
    rounds: deque[str] = deque(maxlen=10)
    while time.monotonic() < until:
        names: list[str] = []
        env = None
        try:
            with Environment(rng.randrange(10**6), versions=versions, kept=KEPT, **KINDS[kind]) as env:
                print(f"{kind}: {len(env.fetchers)} started", flush=True)
                cases = [case for case in CASES.values() if fits(case, env)]
                while time.monotonic() < until:
                    deck = deck or rng.sample(cases, len(cases))  # every fault has its turn, in a new order each time
                    case = deck.pop()
                    others = [other for other in cases if other is not case]
                    beside = rng.choice(others) if rng.random() < MIXED else None
                    if len(versions) > 1 and rng.random() < 0.5:
                        beside = rng.choice([other for other in others if other.kills])
                    names = [one.name for one in (case, beside) if one]
                    env.vk.newest_on_failed_1 = rng.random() < 0.5
                    count = run(case, env, beside, BURST)
                    report.add(names, count)
                    rounds.append(f"{' + '.join(names)}: {count}")
                    if not count.is_clean:
                        print(f"{kind}:", *rounds, env.output, sep="\n", file=sys.stderr, flush=True)
                if env.leaks():
                    report.broken.append(f"{kind}: a secret was printed")
                report.answers += env.vk.injected
                report.starts += sum((fetcher.starts for fetcher in env.fetchers), Counter())
        except Exception:
            report.broken.append(f"{kind}: {' + '.join(names)}\n{traceback.format_exc()}")
            print(report.broken[-1], env and env.output, file=sys.stderr, flush=True)
    return report
