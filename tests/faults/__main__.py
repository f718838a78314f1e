"""The same faults as a soak, two at once, mixed at random: python -m tests.faults --minutes 20 [--seed N]."""

import argparse
import contextlib
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.faults.figures import print_figures
from tests.faults.links import CASES
from tests.faults.recording import THIS, version_of
from tests.faults.soak import KINDS, Report, soak


def main() -> int:
    """Soak, print the table and return 0 if every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", choices=KINDS, action="append", help="in this environment, not in all")
    parser.add_argument("--each", type=int, default=1, help="so many environments of each kind (default: 1)")
    parser.add_argument("--beside", metavar="REVISION", help="swap the program with that of a git revision all the time")
    parser.add_argument("--links", metavar="WORD", nargs="?", const="", help="measure links, or those with this word")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        versions = [THIS]
        if options.beside:
            versions.insert(0, stack.enter_context(version_of(options.beside)))
        if options.links is not None:
            print_figures(versions, options.links)
            return 0
        return 0


if __name__ == "__main__":
    sys.exit(main())
