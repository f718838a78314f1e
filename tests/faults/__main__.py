"""The faults on real servers, two at once, mixed at random: python -m tests.faults --minutes 20 [--seed N].

With --beside REVISION the program and that revision's take turns on the same bus. With --links nothing is mixed: it
measures how both fare on links that are far, slow, short-lived or silent.
"""

import argparse
import contextlib
import random
import sys
import time

from tests.faults.ending import end_on_signals
from tests.faults.figures import print_figures
from tests.faults.links import CASES
from tests.faults.recording import THIS, version_of
from tests.faults.soak import KINDS, Report, fits_versions, reports_of

COLUMNS = (
    "fault", "injected", "events", "forgotten by VK, and recorded", "lost", "silent", "repeated", "out of order",
    "on channels: repeated", "out of order",
)  # fmt: skip


def main() -> int:
    """Soak, print the table and return 0 if every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", choices=KINDS, action="append", help="in this environment, not in all")
    parser.add_argument("--each", type=int, default=1, help="environments of each kind (default: 1)")
    parser.add_argument("--beside", metavar="REVISION", help="a second version of the program, from git")
    parser.add_argument("--links", metavar="WORD", nargs="?", const="", help="measure links, or those with this word")
    options = parser.parse_args()
    end_on_signals()
    with contextlib.ExitStack() as stack:
        versions = [THIS]
        if options.beside:
            versions.insert(0, stack.enter_context(version_of(options.beside)))
        if options.links is not None:
            print_figures(versions, options.links)
            return 0
        kinds = options.each * (options.only or list(KINDS))
        print(
            f"{options.minutes:g} minutes, seed {options.seed}: {', '.join(one.name for one in versions)}", flush=True
        )
        begun, total = time.monotonic(), Report()
        for report in reports_of(kinds, options.seed, 60 * options.minutes, versions):
            total.merge(report)
    print(f"\n| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 1)}")
    rows = [(name, total.injections[name], total.table[name]) for name in CASES if name in total.table]
    for name, times, count in [*rows, ("**all**", total.injections.total(), total.total)]:
        print(f"| {name} | {times:,} | " + " | ".join(f"{number:,}" for number in count) + " |")
    print(f"\n{total.answers.total():,} faulty VK answers; {(time.monotonic() - begun) / 60:.1f} minutes")
    print("Starts of fetchers:", ", ".join(f"{times:,} of {name}" for name, times in sorted(total.starts.items())))
    possible = [case for case in CASES.values() if fits_versions(case, versions)]
    if missing := [case.name for case in possible if case.name not in total.table]:
        print(f"Not injected in this time: {', '.join(missing)}")
    for broken in total.broken:
        print(f"A round without an account: {broken.splitlines()[0]}")
    return 0 if total.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
