"""Run the simulation: `python -m tests.simulation --help`."""

import argparse
import json
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import chaos, exhaustive, sabotage
from .world import simulated

WORKERS = 2
SEEDS = Path(__file__).with_name("seeds.json")  # for each sabotage, the seed of a history that notices it
AT_ONCE = 50  # histories that a worker runs before it reports


class Sum(NamedTuple):
    """The totals of some histories."""

    histories: int
    faults: Counter[str]
    hours: float  # of simulated time
    broken: list[tuple[int, str]]  # seed and violation


def run_some(first_seed: int) -> Sum:
    """Run some histories, and return their totals."""
    with simulated():
        results = [chaos.run(first_seed + i) for i in range(AT_ONCE)]
    faults = sum((result.faults for result in results), Counter[str]())
    broken = [(result.seed, result.violation) for result in results if result.violation]
    return Sum(len(results), faults, sum(result.seconds for result in results) / 3600, broken)


def run_for(minutes: float, max_faults: int, first_seed: int) -> int:
    """Run random histories for some time, or until there were this many faults, and print the totals."""
    begun, faults, histories, hours = time.monotonic(), Counter[str](), 0, 0.0
    broken: list[tuple[int, str]] = []
    deadline = begun + 60 * minutes
    print(f"Histories from seed {first_seed} on")
    with ProcessPoolExecutor(WORKERS) as pool:
        while time.monotonic() < deadline and faults.total() < (max_faults or sys.maxsize) and not broken:
            seeds = range(first_seed + histories, first_seed + histories + 4 * WORKERS * AT_ONCE, AT_ONCE)
            for one in pool.map(run_some, seeds):
                histories, faults, hours = histories + one.histories, faults + one.faults, hours + one.hours
                broken += one.broken
    took = time.monotonic() - begun
    for fault, count in faults.most_common():
        print(f"{count:10,} {fault}")
    print(f"{faults.total():10,} faults in {histories:,} histories of {hours:,.0f} hours together, in {took:.0f} s")
    for seed, what in broken:
        print(f"BROKEN, seed {seed}: {what}")
    return len(broken)


def run_one(seed: int) -> int:
    """Run one history and print what happened in it."""
    with simulated():
        result = chaos.run(seed, trace=True)
    print("\n".join(result.trace))
    print(f"Seed {seed}: {result.violation or 'every invariant held'}; {result.faults.total()} faults")
    return int(bool(result.violation))


def run_all() -> int:
    """Run every history of a small world, and print the totals."""
    bounds = exhaustive.LARGE
    count, took, broken = exhaustive.explore_all(bounds, WORKERS)
    print(
        f"{count:,} histories: 2 fetchers, {bounds.updates} updates, up to {bounds.faults} faults "
        f"and {bounds.switches} switch, in {took:.0f} s"
    )
    for outcome in broken:
        print(f"BROKEN, choices {outcome.choices}: {outcome.violation}")
    return len(broken)


def notice(way: str) -> tuple[str, int, str]:
    """Return the sabotage, how many histories it took to notice it, and the violation."""
    with simulated():
        return way, *sabotage.histories_until_noticed(way, 0)


def try_sabotages(ways: list[str]) -> int:
    """Break the core in each of these ways, and print when that was noticed; if these are all ways, store the seeds."""
    unnoticed, seeds = 0, {}
    with ProcessPoolExecutor(WORKERS) as pool:
        for way, histories, violation in pool.map(notice, ways):
            unnoticed += not histories
            seeds[way] = histories - 1
            print(f"{way:45} {histories or 'NEVER':>5}  {violation[:60]}", flush=True)
    if len(ways) == len(sabotage.WAYS) and not unnoticed:
        SEEDS.write_text(json.dumps(seeds, indent=0) + "\n")
    print(f"{len(ways) - unnoticed} of {len(ways)} ways to break it were noticed, after this many histories")
    return unnoticed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Run histories of the fetcher.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--faults", type=int, default=0, help="end after this many faults")
    parser.add_argument("--seed", type=int, help="run this one history and print it")
    parser.add_argument("--exhaustive", action="store_true", help="run every history of a small world")
    parser.add_argument("--sabotage", nargs="?", const="", metavar="NAME", help="break the core first")
    options = parser.parse_args()
    if options.seed is not None:
        return run_one(options.seed)
    if options.exhaustive:
        return run_all()
    if options.sabotage is not None:
        if options.sabotage and options.sabotage not in sabotage.WAYS:
            parser.error(f"no such sabotage; there are: {', '.join(sabotage.WAYS)}")
        return try_sabotages([options.sabotage] if options.sabotage else list(sabotage.WAYS))
    return run_for(options.minutes, options.faults, random.SystemRandom().randrange(10**9))


if __name__ == "__main__":
    sys.exit(min(main(), 1))
