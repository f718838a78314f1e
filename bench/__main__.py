"""Compare the fetcher with what people would write: one report and one plot, from one run on one machine."""

import argparse
import datetime
import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench import consumers, measures
from bench.environment import BATCH, LATENCY, RPS
from tests.servers import Server

HERE = Path(__file__).parent
PAGE, PLOT = HERE.parent / "docs" / "benchmark.md", HERE / "results.svg"
OURS, FLOOR, USUAL, VKBOTTLE = "this fetcher", "floor", "usual design", "vkbottle relay"
MODULES = {OURS: "tests.run", FLOOR: "bench.floor", USUAL: "bench.usual", VKBOTTLE: "bench.vkbottle_relay"}
LINKS = {"loopback": 0.0, "a link of 50 ms": 0.025}  # seconds in each direction
FETCHERS = (1, 2, 4)  # side by side


class Measure(NamedTuple):
    key: str
    name: str
    digits: int


TABLE = [
    Measure("cold", "cold storm, events/s", 1),
    Measure("requests", "API requests per 1,000 events of the cold storm", 1),
    Measure("limit", "API requests/s in the cold storm, share of VK's limit, %", 0),
    Measure("warm", "warm storm, events/s", 0),
    Measure("cpu", "CPU per event, names warm, in a storm, µs", 1),
    Measure("single", "CPU per event, names warm, one at a time, µs", 0),
    Measure("delay", "delay from push to subscriber, median, ms", 2),
    Measure("delay99", "delay from push to subscriber, 99th percentile, ms", 2),
    Measure("at_rest", "resident memory before the storm, MiB", 1),
    Measure("memory", "resident memory after the storm, MiB", 1),
    Measure("start", "process start to first poll, ms", 0),
]


class Goal(NamedTuple):
    """The least (>) or the most (<) that a measure of ours may be, as it is or as a ratio to another's.

    `reason` is printed if the goal is missed, with the figures of the run in it.
    """

    key: str
    other: str | None
    sign: str
    value: float
    reason: str


GOALS = [
    Goal("cold", VKBOTTLE, ">", 45, "the relay is held back by VK alone, the fetcher by its own CPU as well"),
    Goal("limit", None, ">", 90,
         "one thread sends requests to VK, then builds and commits. VK's answer takes {latency:.0f} of the "
         "{each:.0f} ms from one request to the next"),
    Goal("cpu", FLOOR, "<", 0.75,
         "{extra:.1f} µs for each event go into work that the floor does not do: {build:.1f} to build it, {names:.1f} "
         "for names, {write:.1f} for the JSON of the contract. The floor writes the update as it is"),
    Goal("delay", FLOOR, "<", 1.15,
         "the commit of one event takes {commit:.0f} µs, from the call to the answer, and the floor's PUBLISH "
         "{publish:.0f}"),
    Goal("delay99", FLOOR, "<", 1.15,
         "a commit takes longer than the floor's PUBLISH, and every ten seconds a heartbeat precedes it"),
    Goal("memory", FLOOR, "<", 1.06,
         "{code:.1f} MiB of this is the fetcher's code, loaded before the storm. The rest is up to 1,000 updates that "
         "are built at once, and the replay buffer: the latest 1,000 events, in case a failover loses them"),
    Goal("start", FLOOR, "<", 1.05,
         "the fetcher's own modules, and the checkpoint, which is read before the first poll"),
]  # fmt: skip

Rounds = dict[str, dict[str, list[float]]]  # by contender and measure


def main() -> None:
    """Run the rounds, print the report, and put it and the plot in their places."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of all contenders, one after the other (%(default)s)")
    parser.add_argument("--events", type=int, default=10_000, help="of a storm (%(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="of the delay, in each round (%(default)s)")
    parser.add_argument("--starts", type=int, default=5, help="in each round (%(default)s)")
    parser.add_argument("--grow", type=int, default=1_000_000, help="events of the longest run; 0: none (%(default)s)")
    parser.add_argument("--held", type=int, default=9_999, help="while Redis is down, less than 10,000 (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small round that is printed only: whether it works")
    parser.add_argument("--only", nargs="+", choices=MODULES, default=list(MODULES), metavar="CONTENDER")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.events, options.samples, options.starts, options.grow = 1, 1000, 100, 1, 0
        options.held = 1000

    begun = time.monotonic()
    rounds: Rounds = {name: {} for name in options.only}
    delays: dict[str, list[float]] = {name: [] for name in options.only}
    for name in options.only:
        measures.start(MODULES[name])  # compiles the modules, and fills the page cache
    for number in range(options.rounds):
        shift = number % len(options.only)
        for name in options.only[shift:] + options.only[:shift]:
            report_progress(f"round {number + 1} of {options.rounds}: {name}")
            measure_once(name, options, number, rounds[name], delays[name])
    growth = {}
    for name in (OURS, FLOOR):
        if name in options.only and options.grow:
            report_progress(f"growth to {options.grow} events: {name}")
            growth[name] = measures.growth(MODULES[name], powers(options.grow), 99)
    held, fetchers = {}, {}
    for link, delay in LINKS.items():
        report_progress(f"{options.held} updates are held and drained: {link}")
        held[link] = measures.drain(MODULES[OURS], options.held, delay, 77)
    for count in FETCHERS:
        report_progress(f"fetchers side by side: {count}")
        fetchers[count] = measures.side_by_side(MODULES[OURS], count, options.events, 88)
    report_progress("consumers")
    rates = consumers.measure(2 * options.events, options.rounds)
    parts = measures.parts()

    tables = [
        contenders_table(rounds, options), goals_table(rounds, parts), growth_table(growth, options.grow),
        held_table(held, options.held), fetchers_table(fetchers), consumers.report(rates),
        f"![Distributions and growth](../bench/{PLOT.name})", notes(options, time.monotonic() - begun),
    ]  # fmt: skip
    text = "\n\n".join(filter(None, tables)) + "\n"
    print(text)
    if not options.quick:
        from bench.plot import plot  # imported here, because only this needs matplotlib

        plot(rounds, delays, growth, PLOT)
        page = PAGE.read_text(encoding="utf-8")
        marked = re.compile("(?<=<!-- bench -->\n).*(?=<!-- /bench -->)", re.DOTALL)
        PAGE.write_text(marked.sub(lambda _: text, page), encoding="utf-8")


def measure_once(
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
    """Return how many events the usual design gets: it queries VK for each one, so a few show its rate."""
    return max(3, events // 300)


def powers(end: int) -> list[int]:
    """Return 1,000, 10,000 and so on up to `end`."""
    return [10**power for power in range(3, 10) if 10**power <= end]


def contenders_table(rounds: Rounds, options: argparse.Namespace) -> str:
    """Return each measure of each contender."""
    rows = [
        [measure.name, *(spread(values[measure.key], measure.digits) for values in rounds.values())]
        for measure in TABLE
    ]  # fmt: skip
    return table([f"median (least–most), rounds: {options.rounds}", *rounds], rows)


def goals_table(rounds: Rounds, parts: measures.Values) -> str:
    """Return the goals, what was reached, and why some were missed."""
    names = {measure.key: measure.name for measure in TABLE}
    rows, missed = [], []
    for goal in GOALS:
        if not {OURS, goal.other or OURS} <= rounds.keys():
            continue
        reached = median(rounds[OURS][goal.key])
        if goal.other:
            reached /= median(rounds[goal.other][goal.key])
        name = names[goal.key] + (f", ratio to {goal.other}" if goal.other else "")
        met = reached >= goal.value if goal.sign == ">" else reached <= goal.value
        wanted = f"{'at least' if goal.sign == '>' else 'at most'} {goal.value:g}"
        rows.append([name, wanted, f"{reached:.{0 if reached >= 10 else 2}f}{'' if met else ' (missed)'}"])
        if not met:
            missed.append(f"- {name}: {goal.reason.format(**reasons(rounds, parts))}.")
    summary = "Missed, and why:\n\n" + "\n".join(missed) if missed else "All goals are reached."
    return table(["goal, in the same run", "goal", "reached"], rows) + f"\n\n{summary}"


def reasons(rounds: Rounds, parts: measures.Values) -> dict[str, float]:
    """Return the figures that explain what was missed."""
    medians = {key: median(values) for key, values in rounds[OURS].items()}
    floor = median(rounds[FLOOR]["at_rest"]) if FLOOR in rounds else medians["at_rest"]
    return parts | {
        "extra": parts["build"] + parts["names"] + parts["write"], "code": medians["at_rest"] - floor,
        "each": 1e5 / (RPS * medians["limit"]) if medians["limit"] else 0.0, "latency": 1000 * LATENCY,
    }  # fmt: skip


def growth_table(growth: dict[str, Any], end: int) -> str:
    """Return the memory and CPU of one process as it handles more and more events."""
    rows = [
        [f"{name}: {unit}", *(f"{values[key]:.{digits}f}" for _, values in points)]
        for key, unit, digits in (("memory", "resident memory, MiB", 1), ("cpu", "CPU per event, µs", 0))
        for name, points in growth.items()
    ]
    return table(["one process, after this many events", *(f"{size:,}" for size in powers(end))], rows) if rows else ""


def held_table(held: dict[str, measures.Values], count: int) -> str:
    """Return what it costs to hold updates while Redis is down, and how long they take when it is back."""
    rows = [
        [link, f"{values['drain']:.1f}", f"{count / values['drain']:,.0f}", f"{values['held']:.1f}"]
        for link, values in held.items()
    ]
    head = [f"{count:,} updates are held while Redis is down", "time to drain, s", "events/s", "resident memory, MiB"]
    return table(head, rows)


def fetchers_table(fetchers: dict[int, measures.Values]) -> str:
    """Return how the cost grows with the number of fetchers."""
    rows = [
        [name, *(f"{values[key]:.1f}" for values in fetchers.values())]
        for key, name in (("cpu", "CPU per event, all fetchers together, µs"), ("redis", "CPU of Redis per event, µs"))
    ]
    return table(["fetchers of one community side by side, names warm", *map(str, fetchers)], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(values: list[float], digits: int) -> str:
    """Return the median and the range as text."""
    least, most = min(values), max(values)
    digits = 0 if least >= 1000 else digits
    return f"{median(values):,.{digits}f} ({least:,.{digits}f}–{most:,.{digits}f})"


def notes(options: argparse.Namespace, seconds: float) -> str:
    """Describe the machine, the versions, the date and the conditions of the measurement."""
    with Server() as server, server.client() as client:
        info = client.info("server")
    redis = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    libraries = ("vk_api", "redis", "hiredis", "requests", "vkbottle", "aiohttp")
    packages = ", ".join(f"{name} {version(name)}" for name in libraries)
    return f"""\
Measured on {datetime.date.today()} in {seconds / 60:.0f} minutes: {processor()}, {os.cpu_count()} cores,
{platform.system()} {platform.release()}, Python {platform.python_version()}, {redis}, {packages}.
All contenders use the same redis-py, with hiredis.
VK is simulated on loopback: an API answer takes {LATENCY * 1000:.0f} ms, {RPS} requests a second are allowed, and one
answer of the poll holds up to {BATCH} updates. A storm is {options.events:,} updates of {measures.PEOPLE:,} people in
{measures.CHATS} chats, pushed at once; the usual design sends VK three requests for each, so it
gets only {part(options.events)} updates.
All reach this VK by the same means: vk_api's requests are sent to it by their adapter, vkbottle's by its HTTP client.
The vkbottle relay requests as little as it can: each person once, each chat once. API requests/s in the cold storm
are those that this VK counted from the push to the last event: at 100 % only VK's limit of {RPS} a second holds the
storm back. The time to drain is that from the first event on the bus to the last; on the link of 50 ms an answer comes
50 ms after its command."""


def processor() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def report_progress(sentence: str) -> None:
    """Report the progress."""
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
