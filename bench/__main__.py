"""Compare the fetcher with what people would write: one table and one plot, from one run on one machine."""

import argparse
import datetime
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench import measures
from bench.plot import plot
from bench.stage import BATCH, LATENCY, RPS
from tests.servers import Server

HERE = Path(__file__).parent
OURS, FLOOR, USUAL, VKBOTTLE = "this fetcher", "floor", "usual design", "vkbottle relay"
MODULES = {OURS: "tests.run", FLOOR: "bench.floor", USUAL: "bench.usual", VKBOTTLE: "bench.vkbottle_relay"}


class Measure(NamedTuple):
    key: str
    name: str
    digits: int


TABLE = [
    Measure("cold", "cold storm, events/s", 1),
    Measure("asked", "API requests per 1,000 events of it", 1),
    Measure("warm", "warm storm, events/s", 0),
    Measure("cpu", "CPU per event, names warm, in a storm, µs", 0),
    Measure("single", "CPU per event, names warm, one at a time, µs", 0),
    Measure("delay", "delay from push to subscriber, median, ms", 2),
    Measure("delay99", "the same, 99th percentile, ms", 2),
    Measure("memory", "resident memory after the storm, MiB", 1),
    Measure("start", "process start to first poll, ms", 0),
]

# What a measure of ours may be of another's: at least (>) or at most (<).
TARGETS = [
    ("cold", VKBOTTLE, ">", 32), ("cold", USUAL, ">", 850), ("cpu", FLOOR, "<", 0.8), ("delay", FLOOR, "<", 1.1),
    ("delay99", FLOOR, "<", 1.2), ("memory", FLOOR, "<", 1.0), ("start", FLOOR, "<", 1.15),
]  # fmt: skip

Rounds = dict[str, dict[str, list[float]]]  # by contender and measure


def main() -> None:
    """Run the rounds, print the table and write it and the plot."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of all contenders, one after the other (%(default)s)")
    parser.add_argument("--events", type=int, default=10_000, help="of a storm (%(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="of the delay, in each round (%(default)s)")
    parser.add_argument("--starts", type=int, default=7, help="in each round (%(default)s)")
    parser.add_argument("--grow", type=int, default=1_000_000, help="events of the longest run; 0: none (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small round: whether it works, not how well")
    parser.add_argument("--only", nargs="+", choices=MODULES, default=list(MODULES), metavar="CONTENDER")
    parser.add_argument("--out", type=Path, default=HERE, help="directory of results.md and results.svg")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.events, options.samples, options.starts, options.grow = 1, 1000, 100, 1, 0

    begun = time.monotonic()
    rounds: Rounds = {name: {} for name in options.only}
    delays: dict[str, list[float]] = {name: [] for name in options.only}
    for name in options.only:
        measures.start(MODULES[name])  # compiles what is imported, and fills the page cache
    for number in range(options.rounds):
        shift = number % len(options.only)
        for name in options.only[shift:] + options.only[:shift]:
            say(f"round {number + 1} of {options.rounds}: {name}")
            once(name, options, number, rounds[name], delays[name])
    growth = {}
    for name in options.only:
        if name != USUAL and options.grow:
            most = options.grow if name in (OURS, FLOOR) else min(options.grow, 100_000)
            say(f"growth to {most} events: {name}")
            growth[name] = measures.growth(MODULES[name], [size for size in powers(options.grow) if size <= most], 99)

    text = report(rounds, growth, options, time.monotonic() - begun)
    print(text)
    options.out.mkdir(exist_ok=True)
    (options.out / "results.md").write_text(text)
    plot(rounds, delays, growth, options.out / "results.svg")


def once(
    name: str, options: argparse.Namespace, number: int, values: dict[str, list[float]], delays: list[float]
) -> None:
    """Measure one contender once, with the same updates as all others of this round."""
    module, seed = MODULES[name], 10 * number + 1
    events, samples = options.events, options.samples
    if name == USUAL:
        events, samples = part(events), max(10, samples // 100)
    more, each = measures.delay(module, samples, name != USUAL, seed)
    delays += each
    for key, value in (measures.storm(module, events, seed) | more).items():
        values.setdefault(key, []).append(value)
    for _ in range(options.starts):
        values.setdefault("start", []).append(measures.start(module)["start"] * 1000)


def part(events: int) -> int:
    """Return how many events the usual design gets: it asks VK about every one, so a part tells its rate."""
    return max(3, events // 300)


def powers(most: int) -> list[int]:
    """Return 1,000, 10,000 and so on up to `most`."""
    return [10**power for power in range(3, 10) if 10**power <= most]


def report(rounds: Rounds, growth: dict[str, list], options: argparse.Namespace, seconds: float) -> str:
    """Return the tables in Markdown."""
    head = f"| median (least–most), rounds: {options.rounds} | " + " | ".join(rounds) + " |"
    lines = [head, "| --- |" + " ---: |" * len(rounds)]
    for measure in TABLE:
        cells = [spread(rounds[name][measure.key], measure.digits) for name in rounds]
        lines.append(f"| {measure.name} | " + " | ".join(cells) + " |")
    lines += ["", "| ratio, in the same run | target | reached |", "| --- | ---: | ---: |"]
    names = {measure.key: measure.name for measure in TABLE}
    for key, other, sign, target in TARGETS:
        if OURS in rounds and other in rounds:
            ratio = median(rounds[OURS][key]) / median(rounds[other][key])
            met = ratio >= target if sign == ">" else ratio <= target
            wanted = f"{'at least' if sign == '>' else 'at most'} {target:g}"
            digits = 0 if ratio >= 10 else 2
            lines.append(f"| {names[key]}: to {other} | {wanted} | {ratio:.{digits}f}{'' if met else ' (missed)'} |")
    if growth:
        sizes = powers(options.grow)
        lines += ["", "| one process, after so many events | " + " | ".join(f"{size:,}" for size in sizes) + " |"]
        lines.append("| --- |" + " ---: |" * len(sizes))
        for key, unit, digits in (("memory", "resident memory, MiB", 1), ("cpu", "CPU per event, µs", 0)):
            for name, points in growth.items():
                cells = [f"{values[key]:.{digits}f}" for _, values in points]
                lines.append(f"| {name}: {unit} | " + " | ".join(cells + [""] * (len(sizes) - len(cells))) + " |")
    return "\n".join([*lines, "", notes(options, seconds), ""])


def spread(values: list[float], digits: int) -> str:
    """Return the median, and from where to where it went."""
    least, most = min(values), max(values)
    digits = 0 if least >= 1000 else digits
    return f"{median(values):,.{digits}f} ({least:,.{digits}f}–{most:,.{digits}f})"


def notes(options: argparse.Namespace, seconds: float) -> str:
    """Say on what, with what and when this was measured."""
    with Server() as server, server.client() as client:
        info = client.info("server")
    redis = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    packages = ", ".join(f"{name} {version(name)}" for name in ("vk_api", "redis", "requests", "vkbottle", "aiohttp"))
    return f"""\
Measured on {datetime.date.today()} in {seconds / 60:.0f} minutes: {processor()}, {os.cpu_count()} cores,
{platform.system()} {platform.release()}, Python {platform.python_version()}, {redis}, {packages}.
VK is simulated on loopback: an API answer takes {LATENCY * 1000:.0f} ms, {RPS} requests a second are allowed, and one
answer of the poll holds up to {BATCH} updates. A storm is {options.events:,} updates of {measures.PEOPLE:,} people in
{measures.CHATS} chats, pushed at once; the usual design asks VK three times about each and gets {part(options.events)}.
All reach this VK by the same means: vk_api's requests are sent to it by their adapter, vkbottle's by its HTTP client.
The relay asks as little as it can: about each person once, about each chat once. Memory and CPU, user and system, are
those of the contender's process alone."""


def processor() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def say(sentence: str) -> None:
    """Tell how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
