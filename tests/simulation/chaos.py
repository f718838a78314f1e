"""Random histories: what kind of world each has, what goes wrong in it, and when."""

import random
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

from fetcher.bus import bus

from .vk import KINDS, PEOPLE, Habits
from .world import FAST, FOREVER, LIMITS, SETTLE, Link, Plan, Process, Stop, World, clock

REDIS_FAULTS = ("lost request", "lost reply", "timeout", "refused")
POLL_FAULTS = ("unavailable", "malformed", "failed 2", "silence")
LOSING_FAULTS = ("failed 1", "failed 3")
REFUSALS = (
    "LOADING Redis is loading the dataset in memory",
    "READONLY You can't write against a read only replica.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "NOPERM User has no permissions",
)
LINKS = {
    "connections live 1 to 3 s": Link(life=(1.0, 3.0), bandwidth=2500.0),
    "one connect in five is refused": Link(refuses=0.2, life=(5.0, 50.0)),
    "answers after 0.8 to 1.5 s": Link(latency=(0.8, 1.5)),
    "a whole piece takes too long": Link(bandwidth=1200.0),
}


class Result(NamedTuple):
    """How a history ended; `violation` is "" if every invariant held."""

    seed: int
    violation: str
    faults: Counter[str]
    trace: list[str]
    error: BaseException | None
    turns: int
    seconds: float


class Chaos(Plan):
    """Faults at random; each history has its own mix of them."""

    def __init__(self, rng: random.Random, worlds: list[World]) -> None:
        super().__init__(rng)
        self.habits = habits(rng)
        self.calm = False
        self.worlds = worlds
        pick = rng.choice
        self.request_faults = pick([0.0, 0.05, 0.15, 0.3])  # the share of requests to Redis that fail
        self.poll_faults = pick([0.0, 0.05, 0.15, 0.3])
        self.lookup_faults = pick([0.0, 0.1, 0.3])
        self.jumps = pick([0.0, 0.0, 0.2])  # the share of VK's faults that lose updates
        self.slowness = pick([0.003, 0.01, 0.05])  # seconds
        self.loud, self.late = pick([0.0, 0.5, 1.0]), pick([0.0, 0.5, 1.0])
        self.delays = pick([0.0, 0.1])
        self.pace = pick([0.05, 0.2, 0.8])  # seconds between two updates
        self.bursts = pick([1, 1, 4, 12])
        self.next_push = 0.0
        rate = pick([0.3, 1.0, 2.0])
        self.rates = {
            self.kill: pick([0, 0.003, 0.01]) * rate,
            self.cut: pick([0, 0.003, 0.01]) * rate,
            self.fail_over: pick([0, 0.003, 0.01]) * rate,
            self.lose_vk: pick([0, 0.002]) * rate,
            self.lose_names: pick([0, 0.002, 0.01]) * rate,
            self.change_password: pick([0, 0, 0.003]) * rate,
            self.slow_down: pick([0, 0, 0.005]) * rate,
            self.forget: pick([0, 0, 0.004]) * rate,
            self.restart_vk: pick([0, 0, 0, 0.004]) * rate,
            self.spoil: pick([0, 0, 0, 0.003]) * rate,
            self.empty: pick([0, 0, 0, 0, 0.002]) * rate,
        }
        self.max_fetchers, self.last_era = 3, 6
        themes = ["failovers", "parts", "restarts", "restart", "outage", "apart", "links", "start"]
        theme = pick(["", "", "", "", "failovers", *themes, "links"])  # what happens often, while little else does
        if theme:
            self.request_faults, self.poll_faults, self.lookup_faults = pick([0.0, 0.05]), pick([0.0, 0.05]), 0.0
            self.loud, self.rates[self.fail_over] = pick([0.0, 1.0]), 0.02
            self.rates[self.forget] = pick([0, 0.01])
        if theme == "parts":
            self.loud, self.pace, self.rates[self.kill] = 0.0, 0.05, 0.01
            self.habits = replace(self.habits, batch=30, text=1500, memory=30)
        if theme == "restarts":
            self.rates[self.restart_vk] = self.rates[self.cut] = 0.01
        if theme == "restart":  # one fetcher; when VK restarts, once, `seen` has forgotten some ids
            self.max_fetchers, self.last_era, self.pace, self.bursts = 1, 8, 0.03, 1
            self.rates[self.restart_vk], self.rates[self.cut] = 0.003, 0.01
            self.habits = replace(self.habits, memory=10**6, answers_newest=False)
        if theme == "apart":  # VK's servers are a few numbers apart, and VK loses nothing
            self.habits = replace(self.habits, apart=5, memory=10**6, beyond=pick(["failed 1", "silence"]))
            self.jumps = self.rates[self.forget] = self.rates[self.restart_vk] = self.rates[self.spoil] = 0.0
        self.outages = [100.0, 300.0] if theme == "outage" else [0.0, 0.5, 5.0, 20.0]  # seconds, at most
        if theme == "outage":
            self.rates[self.cut] = 0.01
        self.links, self.remembered = [Link()], 0
        if theme == "links":
            self.links = list(LINKS.values())
            self.habits = replace(self.habits, text=1500, batch=30)
        if theme == "start":  # Redis is down, and VK may restart its numbering meanwhile
            self.links = [Link(down_until=pick([5.0, 20.0, 60.0]) * rng.random()) for _ in range(3)]
            self.rates[self.restart_vk], self.rates[self.kill], self.rates[self.cut] = 0.005, pick([0, 0.005]), 0.01
            self.remembered = LIMITS[bus]["DEDUP_WINDOW"]  # ids of earlier events in `seen`
        self.max_updates = 300
        self.total_rate = sum(self.rates.values())
        self.names_stay_lost = rng.random() < 0.1
        self.link_stays_slow = rng.random() < 0.3

    @property
    def world(self) -> World:
        return self.worlds[0]

    # How long it takes

    def latency(self, request: str) -> float:
        base = 1.0 if request == "restart" else self.slowness
        return base * self.rng.random()

    def delay(self) -> float:
        return self.rng.random() * 0.1 if self.delays and self.rng.random() < self.delays else 0.0

    # What fails

    def count(self, fault: str) -> str:
        self.world.faults[fault] += 1
        return fault

    def redis_fault(self, process: Process, request: str) -> str:
        if self.calm or self.rng.random() >= self.request_faults:
            return ""
        return self.count(self.rng.choice(REDIS_FAULTS))

    def vk_fault(self, process: Process, request: str) -> str:
        if self.calm:
            return ""
        if request == "names":
            if self.rng.random() >= self.lookup_faults:
                return ""
            return self.count(self.rng.choice(("unavailable", "partly")))
        if self.rng.random() >= self.poll_faults:
            return ""
        if request != "poll":
            return self.count("refused" if self.rng.random() < 0.05 else "unavailable")
        losing = self.rng.random() < self.jumps
        return self.count(self.rng.choice(LOSING_FAULTS if losing else POLL_FAULTS))

    def refusal(self) -> str:
        return self.rng.choice(REFUSALS)

    def allows_script(self) -> bool:
        """Return whether the server grants the permissions that a script checks before its first write."""
        if self.calm or self.rng.random() >= self.request_faults / 20:
            return True
        self.count("refused in the script")
        return False

    def closes_with_error(self) -> bool:
        return self.rng.random() < self.loud

    def takes_effect_late(self) -> bool:
        return self.rng.random() < self.late

    # What happens between two requests

    def before_turn(self, world: World) -> None:
        if self.calm:
            return
        wake = min(process.wake for process in world.processes)
        while self.next_push <= wake and len(world.vk.history) < self.max_updates:
            world.now = max(world.now, self.next_push)
            for _ in range(self.rng.randint(1, self.bursts)):
                world.push()
            self.next_push = world.now + self.rng.expovariate(1 / (self.pace * self.bursts))
            wake = min(process.wake for process in world.processes)
        if self.total_rate and self.rng.random() < self.total_rate:
            (cause,) = self.rng.choices(list(self.rates), list(self.rates.values()))
            cause()

    def any_process(self) -> Process:
        return self.rng.choice(self.world.processes)

    def kill(self) -> None:
        self.count("kill")
        process = self.any_process()
        self.world.kill(process)
        self.world.start(self.latency("restart"), process.link)

    def cut(self) -> None:
        self.count("cut")
        process = self.any_process()
        process.link.down_until = self.world.now + self.rng.choice(self.outages) * self.rng.random()
        self.world.note(process, f"cut off until {process.link.down_until:.3f}")
        if process.client:
            process.client.server = 0

    def fail_over(self) -> None:
        if self.world.fail_over(self.rng.randrange(12), self.rng.choice([None] * 8 + [False, True])):
            self.count("failover")

    def empty(self) -> None:
        self.count("emptied")
        self.world.empty(in_place=self.rng.random() < 0.5)

    def lose_vk(self) -> None:
        self.count("VK is away")
        self.any_process().link.vk_down_until = self.world.now + self.rng.random() * 10

    def lose_names(self) -> None:
        self.count("lookups fail")
        world = self.world
        mode = self.rng.choice(["all", "one", "", ""])
        world.names_fail = mode if mode == "all" else ""
        world.nameless = {self.rng.choice(PEOPLE)} if mode == "one" else set()

    def change_password(self) -> None:
        self.count("password refused")
        self.world.refused_until = self.world.now + self.rng.random() * 5
        self.world.server += 1

    def slow_down(self) -> None:
        self.count("slow link")
        self.any_process().link.bandwidth = self.rng.choice([2**11, 2**11, 2**12, FAST])

    def forget(self) -> None:
        self.count("VK forgets")
        self.world.vk.forget()

    def restart_vk(self) -> None:
        if self.world.vk.era > self.last_era:
            self.count("VK restarts its numbering")
            self.world.note(None, "VK restarts its numbering")
            self.world.vk.restart()

    def spoil(self) -> None:
        self.count("unreadable place")
        vk = self.world.vk
        vk.unreadable_ts, vk.unreadable_until = vk.ts + 1, self.world.now + self.rng.choice([10, 40])
        vk.healing_key = self.rng.choice([0, 0, vk.key + 1])

    def stop_faults(self) -> None:
        """Let nothing go wrong from now on."""
        self.calm = True
        world = self.world
        world.refused_until = 0.0
        if not self.names_stay_lost:
            world.names_fail, world.nameless = "", set()
        world.vk.unreadable_until = 0.0
        for process in world.processes:
            process.link.down_until = process.link.vk_down_until = 0.0
            if not self.link_stays_slow and process.link.life == FOREVER:
                process.link.bandwidth = FAST


def habits(rng: random.Random) -> Habits:
    """Return the habits of a random VK."""
    pick = rng.choice
    kinds = pick([("message",), KINDS, ("message", "message", *KINDS)])
    return Habits(
        memory=pick([8, 30, 100, 10**6]),
        answers_newest=pick([True, False]),
        steps=pick([(1,), (1,), (2,), (1, 2, 3), (0, 1)]),
        batch=pick([2, 5, 10, 30]),
        beyond=pick(["failed 3", "failed 1", "silence", "updates", "no answer"]),
        kinds=kinds,
        text=pick([20, 20, 200, 1500]),
    )


def run(seed: int, turns: int = 500, trace: bool = False) -> Result:
    """Run one history, inside simulated()."""
    rng = random.Random(seed)
    worlds: list[World] = []
    plan = Chaos(rng, worlds)
    fetchers = min(rng.choice([1, 1, 2, 2, 3]), plan.max_fetchers)
    if fetchers > 1 and plan.rates[plan.restart_vk]:
        # After a restart, a late update's ts does not show its age, so `seen` has to cover all that others published.
        plan.max_updates = 150
    world = World(plan, plan.habits, fetchers, trace)
    worlds.append(world)
    clock.world = world
    world.store.allows = plan.allows_script
    try:
        for _ in range(rng.randrange(3)):
            world.vk.push()
        world.store.set_if_missing(str(world.vk.ts))
        world.store.seen = {f"before {number}": number for number in range(1, plan.remembered + 1)}
        world.start_order = world.vk.history[-1].order if world.vk.history else None
        world.remember()
        for i in range(fetchers):
            world.start(0.0 if i == 0 else rng.choice([0.0, 0.0, rng.random() * 20]), replace(rng.choice(plan.links)))
        while world.turns < turns:
            world.turn()
        plan.stop_faults()
        world.push()
        # While VK returns no full messages, each batch with a cropped one waits, and those of a gap wait one by one.
        world.settle(world.now + (4 if plan.names_stay_lost else 1) * SETTLE)
        world.verify()
    except Stop:
        pass
    finally:
        world.close()
    return Result(seed, world.violation, world.faults, world.trace or [], world.error, world.turns, world.now)
