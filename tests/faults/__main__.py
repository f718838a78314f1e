"""The same faults as a soak, two at once, mixed at random: python -m tests.faults --minutes 20 [--seed N]."""

import argparse
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.faults.pairs import CASES
from tests.faults.soak import KINDS, Report, soak


def main() -> int:
    """Soak, print the table and return 0 if every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", choices=KINDS, action="append", help="in this environment, not in all")
    parser.add_argument("--each", type=int, default=1, help="so many environments of each kind (default: 1)")
    options = parser.parse_args()
    print(f"{options.minutes:g} minutes, seed {options.seed}", flush=True)
    begun, whole = time.monotonic(), Report()
    kinds = options.each * (options.only or list(KINDS))
    with ProcessPoolExecutor(len(kinds), mp_context=get_context("spawn")) as pool:
        seeds = [f"{options.seed} {number} {kind}" for number, kind in enumerate(kinds)]
        reports = [pool.submit(soak, kind, seed, 60 * options.minutes) for kind, seed in zip(kinds, seeds, strict=True)]
        for report in reports:
            whole.merge(report.result())
    columns = "fault", "injected", "events", "forgotten by VK, and told", "lost", "silent", "repeated", "out of order"
    print(f"\n| {' | '.join(columns)} | on channels: repeated | out of order |")
    print(f"| --- |{' ---: |' * (len(columns) + 1)}")
    rows = [(name, whole.injections[name], whole.table[name]) for name in CASES if name in whole.table]
    for name, times, count in [*rows, ("**all**", whole.injections.total(), whole.total)]:
        print(f"| {name} | {times} | " + " | ".join(map(str, count)) + " |")
    print(f"\n{whole.answers.total()} faulty answers of VK's; {(time.monotonic() - begun) / 60:.1f} minutes")
    if missing := [name for name in CASES if name not in whole.table]:
        print(f"Not injected in this time: {', '.join(missing)}")
    return 0 if whole.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
