"""The world of a history: the clock, the scheduler, the fetchers' lives, and the invariants."""

import contextlib
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Never, Self

from greenlet import GreenletExit, getcurrent, greenlet

from fetcher import config
from fetcher.bus import bus, connection
from fetcher.bus.bus import Bus
from fetcher.core import backlog, backoff, pieces, relay, reports
from fetcher.core.backlog import Backlog, Pending
from fetcher.core.history import Answer, Outcome, Position
from fetcher.core.relay import Relay
from fetcher.errors import (
    Failure,
    FatalError,
    RedisFatalError,
    RedisUnavailable,
    TransientError,
)
from fetcher.vk import entries, longpoll
from fetcher.vk.entries import EntryBuilder
from fetcher.vk.longpoll import LongPoll
from tests.net import OwnLookups
from tests.vk import GROUP

from .client import Client
from .store import Copy, Store
from .vk import CHAT_PEERS, UNKNOWN, VK, Api, Habits, Lookups, Server, key_of, name_of

POLL_WAIT = 5  # seconds
LONG_REQUEST = 0.5  # seconds of a request that count as the fetcher's own time; the rest is VK's or Redis's
MAX_SILENCE = 4.5  # seconds of the fetcher's own time without a poll: a step's pause, a second of commits, and some
MAX_NAMES_WAIT = 30.0 + 6.0  # seconds that a batch waits for names: the limit, and one step that fails
STALL_SLACK = 25.0  # seconds that a log line about a stall may be late: a step in which every request times out
COPIES = 12  # how many states a failover may go back
LEFT_OUT = "came so late that they may be on the bus already"
SETTLE = 400.0  # seconds within which everything has to settle after the last fault…
MAX_TURNS = 3000  # …and requests of each fetcher…
MAX_EXTRA, MAX_EXTRA_BYTES = 8, 60_000  # …and bytes that are sent: this many times what is missing, and some
FAST = 1e9  # bytes per second
FOREVER = (1e9, 1e9)  # seconds that a connection lives

# The core's limits, scaled down in the same proportions, so that a few updates reach them.
LIMITS: dict[Any, dict[str, Any]] = {
    backlog: {
        "MAX_PENDING": 60, "MAX_PENDING_BYTES": 2**17, "MAX_REPLAY": 30, "MAX_REPLAY_BYTES": 2**15,
        "DEDUP_WINDOW": 180, "MAX_UNBUILT": 15,
    },
    pieces: {"MAX_PIECE": 10, "MAX_PIECE_BYTES": 2**13},
    bus: {"DEDUP_WINDOW": 180},
    relay: {"MAX_UNBUILT": 15},
    longpoll: {"UNREADABLE_TIMEOUT": 20.0, "RETRY_INTERVAL": 1.0},
}  # fmt: skip

SETTINGS = config.parse({"GROUPID": str(GROUP), "STREAM_MAXLEN": str(10**6)}, ())
MAX_HELD = 60 + 30 + 2 * 30  # updates: the limit, the replay buffer, and two answers of VK


@dataclass
class Link:
    """What is between a fetcher and VK and Redis; a restart of the fetcher does not change it."""

    down_until: float = 0.0  # Redis cannot be reached until then
    vk_down_until: float = 0.0
    bandwidth: float = FAST
    life: tuple[float, float] = FOREVER  # seconds that a connection to Redis lives, at least and at most
    refuses: float = 0.0  # the share of connections that Redis refuses
    latency: tuple[float, float] = (0.0, 0.0)  # additional seconds for each answer of Redis, at least and at most

    def delay(self, rng: random.Random) -> float:
        """Return how long an answer of Redis takes to arrive."""
        return rng.uniform(*self.latency)


class Plan:
    """Decides for the scheduler; in this base class, nothing goes wrong."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def latency(self, request: str) -> float:
        """Return how many seconds a request takes."""
        return 0.01

    def delay(self) -> float:
        """Return how many seconds an answer takes after its effect."""
        return 0.0

    def redis_fault(self, process: "Process", request: str) -> str:
        return ""

    def vk_fault(self, process: "Process", request: str) -> str:
        return ""

    def refusal(self) -> str:
        """Return the error with which Redis refuses requests for now."""
        return "LOADING Redis is loading the dataset in memory"

    def closes_with_error(self) -> bool:
        """Return whether a closed connection raises an error; otherwise it is replaced silently."""
        return True

    def takes_effect_late(self) -> bool:
        """Return whether a request that has timed out takes effect later."""
        return False

    def next(self, world: "World") -> "Process":
        """Return the fetcher that continues now."""
        return min(world.processes, key=lambda process: process.wake)

    def before_turn(self, world: "World") -> None:
        """Let something go wrong between two requests."""


class Stop(BaseException):
    """Ends a history when an invariant is broken."""


class Process:
    """One life of a fetcher: the real loop with everything that belongs to it, in a greenlet."""

    def __init__(self, world: "World", starts_at: float, link: Link) -> None:
        self.world, self.link = world, link
        self.number = world.lives = world.lives + 1
        self.wake = starts_at
        self.waits_for_update = False
        self.request = ""  # the request to Redis that is on its way
        self.had: set[str] = set()  # keys of all updates that it has ever had in memory
        self.polled_at: float | None = None
        self.excused = 0.0  # seconds since the last poll that VK and Redis took for themselves
        self.offered = 0  # what it has committed, as the replay buffer counts
        self.sent_bytes = self.polled_times = 0
        self.recorded = Counter[str]()  # what the script has recorded, as far as the fetcher knows
        self.metrics = Metrics()
        self.progress_at = starts_at  # when an update last reached the bus, or none was held
        self.stall_logged_at, self.is_stalled = -60.0, False
        self.relay: Relay | None = None
        self.client: Client | None = None
        self.answered_at = 0.0  # when Redis last answered
        self.greenlet = greenlet(self.run, world.hub)

    def run(self) -> None:
        world, api, lookups = self.world, Api(self), Lookups(self)
        try:
            store = RealBus(self)
            self.relay = Relay(Poll(self, api), Entries(self, lookups, store).build, store, POLL_WAIT, self.metrics)
            note_held(self, self.relay.backlog)
            self.relay.run()
        except FatalError as error:
            if self.relay and self.relay.backlog.pending:
                world.broken(f"ended with updates in memory: {error}")
            world.exited(self)
        except GreenletExit:
            pass
        except Stop:
            pass
        except Exception as error:
            world.crashed(error)

    def wait(self, seconds: float) -> None:
        """Let others go on while a request takes its time."""
        begun = self.world.now
        self.sleep(seconds)
        self.excused += max(0.0, self.world.now - begun - LONG_REQUEST)

    def sleep(self, seconds: float) -> None:
        if self.polled_at is not None and self.world.now > self.polled_at + 1:
            self.no_room()
        self.wake = self.world.now + seconds
        self.world.hub.switch()

    def wait_for_update(self, deadline: float) -> None:
        """Wait until there is an update, or until the deadline."""
        self.waits_for_update = True
        self.sleep(deadline - self.world.now)
        self.waits_for_update = False

    def die(self) -> Never:
        """Die in the middle of a request; another life begins at once."""
        self.world.note(self, "is killed")
        self.world.processes.remove(self)
        self.world.start(0.0, self.link)
        raise GreenletExit

    def request_vk(self, request: str) -> None:
        """Send a request to VK's API; raise TransientError or FatalError if VK does not answer it."""
        fault = self.world.plan.vk_fault(self, request) if request != "names" else ""
        self.world.note(self, f"asks VK: {request}{fault and ', '}{fault}")
        self.wait(self.world.plan.latency(request))
        if request == "key" and self.polled_at is not None:
            self.polled()  # a new key takes the place of a poll
        if fault == "refused":
            raise FatalError("VK refuses the token")
        if fault == "unavailable" or self.world.now < self.link.vk_down_until:
            raise TransientError("VK's API is unavailable")

    def polls(self) -> None:
        """Check, when a poll begins, that the last one was not too long ago."""
        self.world.note(self, "polls")
        if self.relay and self.relay.backlog.count > MAX_HELD:
            self.world.broken("more is held than there is room for")
        self.polled_times += 1
        if self.polled_at is None:
            return
        silence = self.world.now - self.polled_at - self.excused
        if silence > MAX_SILENCE:
            self.world.broken(f"no poll for {silence:.1f} s")

    def polled(self) -> None:
        self.polled_at, self.excused = self.world.now, 0.0

    def no_room(self) -> None:
        """If memory is full, let this moment count as a poll, because there are no polls then."""
        if self.polled_at is not None and self.relay and self.relay.backlog.is_full:
            self.polled()

    def check_log(self) -> None:
        """Check that the log reports a stall once a minute, and its end: updates are held, and none reaches the bus."""
        now = self.world.now
        if not self.relay or not self.relay.backlog.pending:
            self.progress_at = now
        if now > max(self.progress_at + 30, self.stall_logged_at + 60) + STALL_SLACK:
            self.world.broken("updates are held for long, and the log does not say so", stop=False)
        if self.is_stalled and now > self.progress_at + STALL_SLACK > self.stall_logged_at + STALL_SLACK:
            self.world.broken("updates reach the bus again, and the log does not say so", stop=False)

    def held_bytes(self, where: str) -> int:
        """Return the bytes of what is pending, or in the replay buffer."""
        return sum(one.size for one in getattr(self.relay.backlog, where)) if self.relay else 0

    @property
    def is_idle(self) -> bool:
        """Whether everything that it holds is on the bus, as far as it knows."""
        relay = self.relay
        has_begun = relay and relay.backlog.checkpoint_from and relay.bus.is_connected
        if not relay or not has_begun or relay.backlog.pending:
            return False
        return self.answered_at > self.world.calm_since


class Metrics:
    """Counts what the loop counts."""

    def __init__(self) -> None:
        self.counts = Counter[str]()

    def __getattr__(self, name: str) -> "Metric":
        return Metric(self.counts, name)


class Metric:
    def __init__(self, counts: Counter[str], name: str) -> None:
        self.counts, self.name = counts, name

    def labels(self, **labels: str) -> Self:
        return self

    def inc(self, amount: int = 1) -> None:
        self.counts[self.name] += amount

    def set(self, value: float) -> None:
        pass

    def observe(self, value: float) -> None:
        pass


class RealBus(Bus):
    """The real bus, which records what is committed."""

    def __init__(self, process: Process) -> None:
        super().__init__(SETTINGS)
        self.process = process

    def commit(self, commit: Pending) -> Outcome:
        process = self.process
        process.offered += commit.weight
        outcome = super().commit(commit)
        if outcome.checkpoint and commit.since <= outcome.checkpoint:
            process.progress_at = process.world.now
        return outcome


def note_held(process: Process, backlog: Backlog) -> None:
    """Record the ts at which a backlog begins, and the keys of all updates that it ever holds."""

    def start(latest_ts: int) -> None:
        process.world.answered.add(latest_ts)
        type(backlog).start(backlog, latest_ts)

    def add(answer: Answer) -> None:
        process.had.update(key_of(update) for update in answer.updates)
        type(backlog).add(backlog, answer)

    def fill(answer: Answer) -> None:
        type(backlog).fill(backlog, answer)
        process.had.update(key_of(update) for one in backlog.pending for update in one.updates)

    vars(backlog).update(start=start, add=add, fill=fill)


class Poll(LongPoll):
    """The real long poll on a server in memory, with a trace."""

    def __init__(self, process: Process, api: Any) -> None:
        super().__init__(api, GROUP, 50.0)
        self.process = process

    def poll(self, ts: int, wait: int) -> Answer:
        answer = super().poll(ts, wait)
        if self.process.world.trace is not None:
            self.process.world.note(self.process, f"polled at {ts}: {describe(answer)}")
        return answer

    def request(self, ts: int, wait: int) -> tuple[int, Answer]:
        polled: tuple[int, Answer] = self.server.poll(ts, wait)
        return polled


class Entries(EntryBuilder):
    """The real builder, which reports a batch that waits too long for names."""

    def __init__(self, process: Process, lookups: Any, bus: Bus) -> None:
        super().__init__(lookups, bus, GROUP, "/", raw=False)
        self.process = process
        self.tried_at: dict[Pending, float] = {}  # when each batch that waits was tried first
        self.is_overdue = False  # whether the latest try was too late, so that the next one has to give up

    def build(self, batches: Any, give_up: bool) -> Failure:
        if self.is_overdue and not give_up:
            self.process.world.broken("a batch waits too long for names")
        self.is_overdue, now = False, self.process.world.now
        self.tried_at = {one: self.tried_at.get(one, now) for one in batches}
        try:
            return super().build(batches, give_up)
        except (RedisUnavailable, RedisFatalError):
            raise
        except (TransientError, FatalError):
            waited = self.process.world.now - min(self.tried_at.values())
            self.is_overdue = not give_up and waited > MAX_NAMES_WAIT
            raise


class World:
    """One history."""

    def __init__(self, plan: Plan, habits: Habits, fetchers: int, trace: bool = False) -> None:
        self.plan, self.now = plan, 0.0
        self.hub = getcurrent()
        self.vk, self.store = VK(plan.rng, habits), Store()
        self.excused: set[str] = set()  # keys that were left out as too late, and recorded as such
        self.trace: list[str] | None = [] if trace else None
        self.faults: Counter[str] = Counter()
        self.violation = ""
        self.error: BaseException | None = None
        self.server = 1  # the number of the Redis server; connections to earlier ones are broken
        self.refused_until = 0.0  # until then, Redis refuses the password
        self.names_fail = ""
        self.nameless: set[int] = set()
        self.answered: set[int] = set()  # ts that VK has answered a poll at, or led to, or at which fetchers began
        self.cache_entries: dict[str, tuple[str, float]] = {}
        self.effects: list[tuple[float, int, Callable[[], Any]]] = []  # effects that come later
        self.acknowledged: set[str] = set()  # keys that were on the bus when it was emptied
        self.gaps_before: list[tuple[int, int]] = []  # gaps that were recorded on the bus when it was emptied
        self.lost: set[str] = set()  # keys that were on the bus before a failover, which may have lost some
        self.emptied = False
        self.start_order: int | None = None  # after this, nothing may be missing
        self.fetchers = fetchers
        self.processes: list[Process] = []
        self.calm_since = 0.0  # after this, there are no faults
        self.copies: list[tuple[Copy, dict[Process, int]]] = []
        self.current: Process | None = None
        self.turns = self.lives = 0

    # What happens

    def start(self, at: float = 0.0, link: Link | None = None) -> Process:
        process = Process(self, self.now + at, link or Link())
        self.processes.append(process)
        return process

    def kill(self, process: Process) -> None:
        """End a fetcher in the middle of whatever it does."""
        self.note(process, "is killed")
        self.processes.remove(process)
        self.switch(process, GreenletExit)

    def exited(self, process: Process) -> None:
        """Restart a fetcher that has ended by itself."""
        self.note(process, "ended")
        self.processes.remove(process)
        self.start(self.plan.latency("restart"), process.link)

    def crashed(self, error: BaseException) -> None:
        """Note that the fetcher has a bug."""
        self.error = self.error or error
        self.broken(f"a bug: {error!r}", stop=False)

    def later(self, seconds: float, effect: Callable[[], Any]) -> None:
        """Let something take effect in some seconds, unless the server has been replaced by then."""
        self.effects.append((self.now + seconds, self.server, effect))

    def commit(self, process: Process, script: str, keys: list[str], arguments: list[Any]) -> tuple[Any, Counter[str]]:
        """Run the script; return its answer, and what it has recorded."""
        store = self.store
        kind, since, until = arguments[:3]
        before, events, dead = store.checkpoint, len(store.stream), len(store.dead)
        new = {id for id in ids_in(arguments) if id not in store.seen}
        answer = store.run(script, keys, arguments)
        growth = Counter(events=len(store.stream) - events, dead_letters=len(store.dead) - dead)
        if kind == "gap":
            growth["gaps"] = growth["dead_letters"]
        if answer[2]:
            self.leave_out(new)
        if before != store.checkpoint:
            if kind == "gap":
                self.check_gap(process, since, until)
            self.moved(before, store.checkpoint)
        self.remember()
        if self.trace is not None:
            found = [id for id, _ in store.stream[events:]] + [
                one.get("update") or "record" for one in store.dead[dead:]
            ]
            self.note(process, f"commits {kind} {since} {until}: {before} -> {store.checkpoint}, new are {found}")
        return answer, growth

    def remember(self) -> None:
        """Keep a copy of the state for a failover."""
        offered = {process: process.offered for process in self.processes}
        self.copies.append((self.store.copy(), offered))
        del self.copies[:-COPIES]

    def fail_over(self, back: int, refused: bool | None = None) -> bool:
        """Go back to an older copy, but not further than fetchers remember.

        Behind a proxy, connections survive: each leads to another server or, with `refused`, to the old one, which is
        now a replica. The fetcher promises nothing about a failover that it cannot notice; but a single fetcher that
        sees a lower checkpoint has what is missing.
        """
        if not self.copies:
            return False
        limits = LIMITS[backlog]
        for copy, offered in self.copies[-1 - back :]:
            old = [process for process in self.processes if process in offered]
            lost = [process.offered - offered[process] for process in old]
            fresh = [process for process in self.processes if process not in offered]
            fits = all(weight <= limits["MAX_REPLAY"] // 2 for weight in lost)
            if fits and copy.checkpoint and all(p.offered <= limits["MAX_REPLAY"] // 2 for p in fresh):
                break
        else:
            return False
        self.note(None, f"failover: {self.store.checkpoint} -> {copy.checkpoint}")
        self.lost |= self.on_the_bus()
        self.store.restore(copy)
        self.server += 1
        restarted = self.faults["VK restarts its numbering"] > 0
        must_notice = self.fetchers > 1 or restarted or self.emptied
        for process in self.processes if refused is not None else ():
            if client := process.client:
                client.server = self.server if client.server == self.server - 1 else 0
                client.is_refused = refused or must_notice
        self.copies = [(copy, {process: process.offered for process in self.processes})]
        return True

    def empty(self, in_place: bool = False) -> None:
        """Let Redis come back empty, or empty it while its connections stay open."""
        self.note(None, "Redis is emptied")
        self.acknowledged |= self.on_the_bus()
        self.gaps_before += self.gaps()
        self.emptied = True
        self.store.empty()
        self.cache_entries.clear()
        self.server += not in_place
        self.copies = []

    def cached(self, key: str) -> str | None:
        text, until = self.cache_entries.get(key, ("", 0.0))
        return text if self.now < until else None

    def cache(self, key: str, text: str | bytes, ttl: int) -> None:
        if not any(json.loads(text)) and not key.endswith(f":{UNKNOWN}"):
            self.broken(f"a name that VK has not answered is cached: {key}")
        self.cache_entries[key] = str(text, "utf-8") if isinstance(text, bytes) else text, self.now + ttl

    def push(self) -> None:
        self.vk.push()
        for process in self.processes:
            if process.waits_for_update:
                process.wake = self.now

    # The scheduler

    def turn(self) -> None:
        """Let one fetcher run until its next request or sleep."""
        self.turns += 1
        self.plan.before_turn(self)
        process = self.plan.next(self)
        self.now = max(self.now, process.wake)
        if self.effects:
            self.take_effects()
        self.switch(process)

    def take_effects(self) -> None:
        for one in sorted(self.effects, key=lambda one: one[0]):
            due, server, effect = one
            if due <= self.now or server != self.server:
                self.effects.remove(one)
                if server == self.server:
                    with contextlib.suppress(Exception):
                        effect()

    def switch(self, process: Process, *error: type[BaseException]) -> None:
        self.current, self.hub = process, getcurrent()
        if error:
            process.greenlet.throw(*error)
        else:
            process.greenlet.switch()
            process.check_log()
            if process.metrics.counts != process.recorded:
                self.broken(f"counted {process.metrics.counts}, though {process.recorded} were recorded", stop=False)
        if self.violation:
            raise Stop

    def settle(self, until: float) -> None:
        """Go on without faults until nothing is left to do."""
        self.calm_since, last_turn = self.now, self.turns + MAX_TURNS * self.fetchers
        begin = self.vk.place(self.store.checkpoint) if self.store.checkpoint else 0
        missing = sum(one.size for one in self.vk.history if one.order > begin)
        before = {process: (process.sent_bytes, process.held_bytes("pending")) for process in self.processes}
        while not self.is_settled:
            if self.now >= until or self.turns >= last_turn:
                self.broken(self.unsettled(), stop=False)
                raise Stop
            for _ in range(5):
                self.turn()
        for process in self.processes:
            sent, pending = before.get(process, (0, 0))
            due = missing + pending + process.held_bytes("replay")
            if process.sent_bytes - sent > MAX_EXTRA * due + MAX_EXTRA_BYTES:
                self.broken(f"{process.sent_bytes - sent} bytes were sent for {due}")

    @property
    def is_settled(self) -> bool:
        if self.effects or not self.store.checkpoint:
            return False
        if Position.parse(self.store.checkpoint)[1:] != (self.vk.ts, 0):
            return False
        return all(process.is_idle for process in self.processes)

    def unsettled(self) -> str:
        relays = [process.relay for process in self.processes if process.relay]
        pending = [[(one.kind, f"{one.since}-{one.until}") for one in relay.backlog.pending][:3] for relay in relays]
        return f"never settles: checkpoint {self.store.checkpoint}, VK's ts {self.vk.ts}, pending {pending}"

    def close(self) -> None:
        """End all fetchers."""
        for process in self.processes:
            if process.greenlet:
                process.greenlet.throw(GreenletExit)

    # What must hold

    def broken(self, what: str, stop: bool = True) -> None:
        """Record that an invariant is broken, and stop the history."""
        self.violation = self.violation or what
        self.note(self.current, f"BROKEN: {what}")
        if stop and getcurrent() is not self.hub:
            raise Stop

    def note(self, process: Process | None, what: str) -> None:
        if self.trace is not None:
            number = process.number if process else 0
            self.trace.append(f"{self.now:9.3f} {number or '-':>4} {what}")

    def on_the_bus(self) -> set[str]:
        """Return the keys of all updates that are in the stream or in the dead letters."""
        keys = {event_id for event_id, _ in self.store.stream}
        raws = (record.get("update") for record in self.store.dead)
        return keys | {self.vk.keys.get(raw, raw) for raw in raws if raw is not None}

    @property
    def epochs_differ(self) -> bool:
        """Whether fetchers may count epochs differently.

        A fetcher that misses a restart takes the next one for it, and on an emptied Redis the first fetcher counts from
        0.
        """
        return self.fetchers > 1 and self.faults["VK restarts its numbering"] > (0 if self.emptied else 1)

    def leave_out(self, ids: Iterable[str]) -> None:
        """Record what was left out as too late; a dead letter's id may end in the hash of its text.

        A fetcher that starts without Redis between two restarts of VK's numbering cannot know of the first one, so it
        may leave something out even if it is the only fetcher.
        """
        if self.fetchers == 1 and self.faults["VK restarts its numbering"] < 2:
            self.broken("left out as too late, though no other fetcher can have committed it")
        self.excused |= {self.vk.keys.get(id.rpartition(":")[2], id) for id in ids}

    def gaps(self) -> list[tuple[int, int]]:
        """Return the recorded gaps, as places in the order of all eras."""
        records = [record for record in self.store.dead if not str(record.get("error")).endswith(LEFT_OUT)]
        places = [(record.get("since"), record.get("until")) for record in records]
        return [(self.vk.place(since), self.vk.place(until)) for since, until in places if since and until]

    def moved(self, old: str, new: str) -> None:
        """Check, when the checkpoint moves, that everything up to it is on the bus, in a recorded gap, or skipped."""
        if not old and (not self.store.dead or self.store.dead[-1].get("until") != new):
            self.broken("the checkpoint was restored without a record")
        if not old:
            return
        if Position.parse(new) < Position.parse(old):
            self.broken(f"the checkpoint moves back from {old} to {new}")
        if found := self.nowhere(self.vk.place(old), self.vk.place(new)):
            self.broken(f"the checkpoint passed {found[:5]}")

    def check_gap(self, process: Process, since: str, until: str) -> None:
        """Check that a fetcher that records a gap holds nothing inside it that it has not committed yet."""
        if not self.vk.has_lost:
            self.broken("a gap is recorded, though VK has everything")
        assert process.relay
        filled = [one.kind for one in process.relay.backlog.pending][:2] == ["gap", "gap"]  # up to what is pending
        if Position.parse(until).ts not in self.answered and not filled:
            self.broken("a gap is recorded, though VK has not answered the place where it ends")
        after, last = self.vk.place(since), self.vk.place(until)
        inside = [one.key for one in self.vk.history if after < one.order <= last and not one.passed_over]
        known = self.on_the_bus() | self.excused | self.acknowledged | self.lost
        if self.epochs_differ:
            return
        if hidden := process.had.intersection(inside) - known:
            self.broken(f"a gap hides what is held: {sorted(hidden)[:5]}")

    def nowhere(self, after: int, until: int) -> list[str]:
        """Return the updates in a part of VK's history that are neither on the bus, in a recorded gap, nor skipped."""
        part = []
        for one in reversed(self.vk.history):
            if one.order <= after:
                break
            if one.order <= until and not one.passed_over:
                part.append(one)
        if not part:
            return []
        events = self.on_the_bus() | self.excused | self.acknowledged
        gaps = self.gaps_before + self.gaps()
        return [one.key for one in part if one.key not in events and not any(a < one.order <= b for a, b in gaps)]

    def verify(self) -> None:
        """Check what must hold at the end of a history."""
        if wrong := self.wrong_at_the_end() or self.wrong_name():
            self.broken(wrong)

    def wrong_at_the_end(self) -> str:
        """Return what is lost, repeated or out of order, if anything is."""
        store, events = self.store, self.on_the_bus()
        ids = [event_id for event_id, _ in store.stream]
        if len(set(ids)) < len(ids):
            return f"repeated: {[id for id, n in Counter(ids).items() if n > 1][:5]}"
        raws = [raw for record in store.dead if (raw := record.get("update")) is not None]
        if len(set(raws)) < len(raws):
            return f"a dead letter repeated: {[raw for raw, n in Counter(raws).items() if n > 1][:5]}"
        if [text for _, text in store.stream] != [text for _, text in store.published]:
            return "channels and stream differ"
        passed = {one.key for one in self.vk.history if one.passed_over}
        gaps = self.gaps()
        excused = self.acknowledged | self.excused | passed
        for process in self.processes:
            if lost := process.had - events - excused:
                return f"in memory, and lost: {sorted(lost)[:5]}"
        if not self.emptied:
            if lost_in_silence := self.nowhere(self.start_order or 0, 10**12):
                return f"lost in silence: {lost_in_silence[:5]}"
            counts = Counter(gap for gap in gaps if gap[0] != gap[1])
            if not self.epochs_differ and (twice := [gap for gap, n in counts.items() if n > 1]):
                return f"a gap recorded twice: {twice[:3]}"
            if self.fetchers == 1:
                orders = {one.key: one.order for one in self.vk.history}
                places = [orders[id] for id in ids]
                if places != sorted(places):
                    where = next(i for i in range(len(places)) if places[i] > places[i + 1])
                    return f"out of order: {ids[where : where + 2]}"
        return ""

    def wrong_name(self) -> str:
        """Return a name that is neither right nor empty, if there is one."""
        titles = {chat: {"", *self.vk.titles[chat]} for chat in CHAT_PEERS}
        for event_id, text in self.store.stream:
            if not text:
                return f"{event_id}: an event without its text"
            event = json.loads(text)
            user, peer = event["user"], event["peer"]
            names = ("", name_of(user["uuid"]).name)
            if user["name"] not in names:
                return f"{event_id}: wrong name {user['name']}"
            if peer["name"] not in titles.get(peer["bpid"], ("", name_of(peer["bpid"]).name)):
                return f"{event_id}: wrong name {peer['name']}"
        return ""


def ids_in(arguments: list[Any]) -> Iterator[str]:
    """Yield the ids of the entries in the arguments of the script."""
    at = 8
    while at < len(arguments):
        yield str(arguments[at], "utf-8")
        at += 3 + arguments[at + 2]


def describe(answer: Answer) -> str:
    """Return what is in an answer, for the trace."""
    gap = f"gap to {answer.since}, {answer.gap}; " if answer.gap else ""
    return f"{gap}batch to {answer.until} {[key_of(update)[:20] for update in answer.updates]}"


class Log(logging.Handler):
    """Checks what the fetchers log."""

    def emit(self, record: logging.LogRecord) -> None:
        world = clock.world
        process, text = world.current, record.getMessage()
        world.note(process, f"logs {record.levelname}: {text}")
        assert process
        if record.exc_info and (error := record.exc_info[1]):
            world.crashed(error)
        if "none has reached the bus for" in text:
            if process.progress_at + 30 - STALL_SLACK > world.now:
                world.broken(f"the log is wrong: {text}", stop=False)
            process.stall_logged_at, process.is_stalled = world.now, True
        elif text == "Updates reach the bus again":
            process.is_stalled = False


class Clock:
    """`time`, as the fetcher uses it."""

    world: World

    def monotonic(self) -> float:
        return self.world.now

    def time(self) -> float:
        return self.world.now

    def sleep(self, seconds: float) -> None:
        assert self.world.current
        self.world.current.sleep(seconds)

    def uniform(self, low: float, high: float) -> float:
        """`random.uniform`, with the history's own random numbers."""
        return self.world.plan.rng.uniform(low, high)


clock = Clock()


def connect(url: str, on_connect: Callable[[], None]) -> Client:
    """Stand in for `fetcher.bus.connection.connect`."""
    assert clock.world.current
    return Client(clock.world.current, on_connect, connection.TIMEOUT)


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Put the clock, VK's server and Redis's client into the fetcher's modules."""
    # The real function with our random numbers, for the loop alone, because consumers in other threads use it, too.
    dice = vars(backoff) | {"random": clock}
    seams: dict[Any, dict[str, Any]] = {
        bus: {"time": clock, "connect": connect},
        longpoll: {"time": clock, "VkBotLongPoll": Server},
        entries: {"time": clock, "lookups": OwnLookups},
        relay: {"time": clock, "backoff": FunctionType(backoff.backoff.__code__, dice)},
        reports: {"time": clock},
    }
    saved = []
    for table in (seams, LIMITS):
        for module, values in table.items():
            for name, value in values.items():
                saved.append((module, name, getattr(module, name)))
                setattr(module, name, value)
    log = logging.getLogger("fetcher")
    handlers, level, propagate = log.handlers, log.level, log.propagate
    log.handlers, log.propagate = [Log()], False
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
        for module, name, value in reversed(saved):
            setattr(module, name, value)
