"""Every history of a small world: two fetchers, a few updates, and up to a number of faults, at every place.

A history is a sequence of choices: which fetcher continues, and what goes wrong. Each history is run from the
beginning with the choices of an earlier one, of which the last is changed, until no choice is left. Choices are made
only at requests that read or change what both fetchers share: the checkpoint and the commit. What a fetcher does
between them does not depend on the other one, and its order changes nothing: polls of VK, which answers all fetchers
alike, lookups and sleeps.
"""

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from .vk import Habits
from .world import Plan, Process, Stop, World, clock, simulated

SHARED = ("commit", "read")  # requests to Redis that the other fetcher can notice
FAULTS = ("", "lost request", "lost reply", "kill", "kill after", "failover", "older failover", "silent failover")
MAX_TURNS = 1000  # turns after which a history counts as endless


class Bounds(NamedTuple):
    """The size of the small world. A switch makes a fetcher wait that could continue."""

    updates: int = 3
    faults: int = 2
    switches: int = 1


SMALL, LARGE = Bounds(updates=3, faults=1, switches=1), Bounds(updates=4, faults=2, switches=1)


class Choices(Plan):
    """Follows the list of choices, then chooses the first option each time; records how many options there were."""

    def __init__(self, choices: Sequence[int], bounds: Bounds) -> None:
        super().__init__(random.Random(0))
        self.choices, self.options = list(choices), list[int]()
        self.updates, self.faults, self.switches = bounds
        self.loud = True
        self.calm = False
        self.current: Process | None = None

    def choose(self, options: int) -> int:
        place = len(self.options)
        self.options.append(options)
        if place == len(self.choices):
            self.choices.append(0)
        return self.choices[place]

    def latency(self, request: str) -> float:
        return 0.001

    def closes_with_error(self) -> bool:
        return self.loud

    def next(self, world: World) -> Process:
        """Choose which fetcher continues."""
        ready = [one for one in world.processes if not one.waits_for_update or one.wake <= world.now]
        if not ready or self.calm:
            return super().next(world)
        current = self.current if self.current in ready else None
        if current and current.request not in SHARED:
            return current
        if current and self.switches and len(ready) > 1:
            ready.sort(key=lambda one: one is not current)
            number = self.choose(len(ready))
            self.switches -= number > 0
            self.current = ready[number]
        elif not current:
            self.current = ready[self.choose(len(ready))] if len(ready) > 1 else ready[0]
        assert self.current
        return self.current

    def redis_fault(self, process: Process, request: str) -> str:
        if self.calm or not self.faults or request not in SHARED:
            return ""
        fault = FAULTS[self.choose(len(FAULTS))]
        self.faults -= bool(fault)
        world = process.world
        if fault == "kill":
            process.die()
        if fault.endswith("failover"):
            self.loud = fault != "silent failover"
            world.fail_over(1 if fault == "failover" else 3)
        return "" if fault.endswith("failover") else fault

    def vk_fault(self, process: Process, request: str) -> str:
        if request == "poll" and not self.calm and self.faults and process.world.vk.oldest < process.world.vk.ts:
            number = self.choose(2)
            self.faults -= number
            if number:
                process.world.vk.forget()
        return ""

    def before_turn(self, world: World) -> None:
        """Let VK get an update when no fetcher has anything to do."""
        idle = all(one.waits_for_update and one.wake > world.now for one in world.processes)
        if idle and self.updates:
            self.updates -= 1
            world.push()
        elif idle:
            self.calm = True


class Outcome(NamedTuple):
    """One history: its choices, the number of options for each, and the broken invariant."""

    choices: list[int]
    options: list[int]
    violation: str
    trace: list[str]


def run(choices: Sequence[int], bounds: Bounds, trace: bool = False) -> Outcome:
    """Run one history, inside simulated()."""
    plan = Choices(choices, bounds)
    world = World(plan, Habits(batch=2), 2, trace)
    clock.world = world
    try:
        world.store.set_if_missing(str(world.vk.ts))
        world.remember()
        for _ in range(2):
            world.push()
            world.start()
        plan.updates -= 2
        while not plan.calm:
            world.turn()
            if world.turns > MAX_TURNS:
                world.broken(world.unsettled(), stop=False)
                raise Stop
        world.settle(world.now + 100)
        world.verify()
    except Stop:
        pass
    finally:
        world.close()
    return Outcome(plan.choices, plan.options, world.violation, world.trace or [])


def branches(outcome: Outcome, after: int) -> Iterator[list[int]]:
    """Yield the beginnings of the histories that differ from this one first in a choice that was not prescribed."""
    for place in range(after, len(outcome.options)):
        for choice in range(1, outcome.options[place]):
            yield [*outcome.choices[:place], choice]


def explore(choices: list[int], bounds: Bounds) -> tuple[int, list[Outcome]]:
    """Run all histories that begin with these choices; return their number, and those that broke an invariant."""
    count, broken, stack = 0, list[Outcome](), [choices]
    with simulated():
        while stack:
            begin = stack.pop()
            outcome = run(begin, bounds)
            count += 1
            if outcome.violation:
                broken.append(outcome)
                if len(broken) >= 10:
                    break
            stack += branches(outcome, len(begin))
    return count, broken


def explore_all(bounds: Bounds, workers: int = 2) -> tuple[int, float, list[Outcome]]:
    """Run every history; return their number, the seconds that this took, and those that broke an invariant."""
    begun, broken = time.monotonic(), list[Outcome]()
    with simulated():
        first = run([], bounds)
        second = [(begin, run(begin, bounds)) for begin in branches(first, 0)]
    count = 1 + len(second)
    broken += [outcome for outcome in (first, *(outcome for _, outcome in second)) if outcome.violation]
    beginnings = [third for begin, outcome in second for third in branches(outcome, len(begin))]
    with ProcessPoolExecutor(workers) as pool:
        for number, found in pool.map(explore, beginnings, [bounds] * len(beginnings), chunksize=4):
            count += number
            broken += found
    return count, time.monotonic() - begun, broken
