"""The same faults as a soak, mixed at random: python -m tests.faults --minutes 20 [--seed N]."""

import argparse
import random
import sys
import threading
import time
import traceback
from collections import Counter

from tests.faults.cases import CASES, Case
from tests.faults.play import play
from tests.faults.scene import Count, Scene

counting = threading.Lock()


def stage(kind: str, seed: int, until: float, table: dict[str, Count], times: Counter[str], broken: list[str]) -> None:
    """Play faults on one stage until the time is over; two at once now and then."""
    rng = random.Random(f"{seed} {kind}")
    with Scene(seed, clustered=kind == "cluster") as scene:
        if kind == "two fetchers":
            scene.second()
        fit = [
            case
            for case in CASES.values()
            if not (case.proxied and kind == "cluster") and not (case.single and kind == "two fetchers")
        ]
        deck: list[Case] = []
        while time.monotonic() < until:
            deck = deck or rng.sample(fit, len(fit))  # every fault comes, in an order of its own each time
            case = deck.pop()
            mixable = [
                other
                for other in fit
                if not (other.alone or other.quiet or other.name.split(":")[0] == case.name.split(":")[0])
            ]
            beside = rng.choice(mixable) if rng.random() < 0.4 and not (case.alone or case.quiet) else None
            played = [one.name for one in (case, beside) if one]
            try:
                count = play(case, scene, beside)
            except Exception:
                broken.append(f"{kind}: {' + '.join(played)}\n{traceback.format_exc()}")
                break
            with counting:
                for name in played:  # what came of two at the same time stands in both rows
                    times[name] += 1
                    table[name] = table.get(name, Count()).plus(count)
            if not count.clean:
                output = "\n".join(line for fetcher in scene.fetchers for line in fetcher.lines[-60:])
                print(f"{kind}: {' + '.join(played)}: {count}\n{output}", file=sys.stderr, flush=True)
        if scene.leaks():
            broken.append(f"{kind}: a secret was printed")


def main() -> int:
    """Soak, print the table and return 0 if nothing was lost, repeated or out of order."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print(f"{options.minutes:g} minutes, seed {options.seed}", flush=True)
    until = time.monotonic() + 60 * options.minutes
    table: dict[str, Count] = {}
    times: Counter[str] = Counter()
    broken: list[str] = []
    stages = [
        threading.Thread(target=stage, args=(kind, options.seed, until, table, times, broken))
        for kind in ("one fetcher", "two fetchers", "cluster")
    ]
    for thread in stages:
        thread.start()
    for thread in stages:
        thread.join()
    print("\n| fault | times | events | lost | repeated | out of order | on channels: repeated | out of order |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in [name for name in CASES if name in table]:
        print(f"| {name} | {times[name]} | " + " | ".join(map(str, table[name])) + " |")
    for trouble in broken:
        print(trouble, file=sys.stderr)
    missing = CASES.keys() - times.keys()
    if missing:
        print(f"Not injected in this time: {', '.join(sorted(missing))}")
    return 0 if table and not broken and all(count.clean for count in table.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
