"""The world of a history: the clock, the scheduler, the fetchers' lives, and what must hold at any time."""

import contextlib
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, Never

from greenlet import GreenletExit, getcurrent, greenlet

from fetcher.bus import bus
from fetcher.bus.bus import Bus
from fetcher.core import backlog, backoff, names, relay
from fetcher.core.batch import Batch, Gap
from fetcher.core.entries import EntryBuilder
from fetcher.core.names import Directory
from fetcher.core.relay import Relay
from fetcher.errors import FatalError, RedisUnavailable, TransientError
from fetcher.vk import longpoll
from fetcher.vk.builders import command_pattern
from fetcher.vk.longpoll import LongPoll
from tests.vk import GROUP

from .client import Client
from .store import Copy, Store
from .vk import CHAT_PEERS, UNKNOWN, VK, Api, Habits, Lookups, Server, key_of, name_of, order_of

POLL_WAIT = 5  # seconds
LONG_REQUEST = 0.5  # seconds of one request that count as the fetcher's own time, not VK's or Redis's
MAX_SILENCE = 4.5  # seconds of the fetcher's own time without a poll: a step's pause, a second of commits, and some
MAX_NAMES_WAIT = 30.0 + 6.0  # seconds that a batch waits for names: the limit and one step that fails
COPIES = 12  # states that a failover may go back
LEFT_OUT = "came so late that they may be on the bus already"
SETTLE = 600.0  # seconds in which everything has to come to an end after the last fault

# The limits of the core in small, in the same proportions: so few updates reach them.
LIMITS: dict[Any, dict[str, Any]] = {
    backlog: {
        "MAX_PENDING": 60, "MAX_PENDING_BYTES": 2**17, "MAX_RECENT": 30, "MAX_RECENT_BYTES": 2**15,
        "DEDUP_WINDOW": 180, "MAX_UNBUILT": 15, "MAX_PIECE": 10, "MAX_PIECE_BYTES": 2**12, "FIRST_PIECE_BYTES": 2**11,
    },
    bus: {"DEDUP_WINDOW": 180, "SLOWEST_LINK": 2**11},
    relay: {"MAX_UNBUILT": 15, "BURST": 5},
    longpoll: {"UNREADABLE_TIMEOUT": 20.0, "RETRY_INTERVAL": 5.0},
}  # fmt: skip

MOST_HELD = 60 + 30 + 2 * 30  # updates: the limit, those that were committed lately, and two answers of VK's


class Plan:
    """What the scheduler decides: here, that nothing goes wrong."""

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
        """Return how Redis refuses a request for now."""
        return "LOADING Redis is loading the dataset in memory"

    def breaks_loudly(self) -> bool:
        """Tell whether a closed connection is an error, or replaced in silence."""
        return True

    def takes_effect_late(self) -> bool:
        """Tell whether a request that has timed out is done all the same, later."""
        return False

    def next(self, world: "World") -> "Process":
        """Return who goes on now."""
        return min(world.processes, key=lambda process: process.wake)

    def before_turn(self, world: "World") -> None:
        """Let something go wrong between two requests."""


class Stop(Exception):
    """The history is over: an invariant is broken."""


class Process:
    """One life of a fetcher: the real loop with everything of it, in a greenlet."""

    def __init__(self, world: "World", starts_at: float) -> None:
        self.world = world
        self.number = world.lives = world.lives + 1
        self.wake = starts_at
        self.waits_for_update = False
        self.request = ""  # to Redis, that is on its way
        self.link_down_until = self.vk_down_until = 0.0
        self.bandwidth = 1e9  # bytes per second
        self.had: set[str] = set()  # keys of updates that it has ever had in memory
        self.polled_at: float | None = None
        self.excused = 0.0  # seconds since the last poll that VK and Redis took for themselves
        self.offered = self.offered_bytes = 0  # what it has committed, in updates and bytes
        self.parts = self.parts_bytes = 0  # of a batch that is not complete
        self.relay: Relay | None = None
        self.clients: list[Client] = []
        self.answered_at = 0.0  # when Redis has answered last
        self.greenlet = greenlet(self.run, world.hub)

    def run(self) -> None:
        world, api, lookups = self.world, Api(self), Lookups(self)
        try:
            store = Bus("redis://", "events", GROUP, 10**6, 600, 55)
            entries = Entries(self, lookups, Directory(store, lookups))
            poll: Any = Poll(self, api)
            self.relay = Relay(poll, entries, store, POLL_WAIT)
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
            world.error = error
            world.broken(f"a fetcher crashed: {error!r}", stop=False)

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
        """Be killed in the middle of a request; another life begins at once."""
        self.world.note(self, "is killed")
        self.world.processes.remove(self)
        self.world.start()
        raise GreenletExit

    def request_vk(self, request: str) -> None:
        """Ask VK's API; raise TransientError or FatalError if it does not answer."""
        fault = self.world.plan.vk_fault(self, request) if request != "names" else ""
        self.world.note(self, f"asks VK: {request}{fault and ', '}{fault}")
        self.wait(self.world.plan.latency(request))
        if request == "key" and self.polled_at is not None:
            self.polled()  # it is asked in place of a poll
        if fault == "refused":
            raise FatalError("VK refuses the token")
        if fault == "unavailable" or self.world.now < self.vk_down_until:
            raise TransientError("VK's API is unavailable")

    def polls(self) -> None:
        """A poll begins: the last one may not be too long ago."""
        self.world.note(self, "polls")
        if self.relay and self.relay.backlog.count > MOST_HELD:
            self.world.broken("more is held than there is room for")
        if self.polled_at is None:
            return
        silence = self.world.now - self.polled_at - self.excused
        if silence > MAX_SILENCE:
            self.world.broken(f"no poll for {silence:.1f} s")

    def polled(self) -> None:
        self.polled_at, self.excused = self.world.now, 0.0

    def no_room(self) -> None:
        """Note that memory is full: then there is no poll."""
        if self.polled_at is not None and self.relay and self.relay.backlog.is_full:
            self.polled()

    @property
    def is_idle(self) -> bool:
        """Whether everything that it has is on the bus, as far as it knows."""
        relay = self.relay
        idle = bool(relay and not relay.backlog.pending and not relay.bus.reconnected and relay.backlog.start_ts)
        return idle and self.answered_at > self.world.calm_since


class Poll(LongPoll):
    """The real long poll; what it hands to the loop is noted."""

    def __init__(self, process: Process, api: Any) -> None:
        super().__init__(api, GROUP, 50.0, ())
        self.process = process

    def poll(self, ts: str, wait: int) -> Batch | Gap:
        answer = super().poll(ts, wait)
        if isinstance(answer, Batch):
            self.process.had.update(map(key_of, answer.updates))
        if self.process.world.trace is not None:
            kind = type(answer).__name__
            self.process.world.note(self.process, f"polled at {ts}: {kind} {answer.until} {keys_of(answer)}")
        return answer


class Entries(EntryBuilder):
    """The real builder; a batch that waits too long for names is noted."""

    def __init__(self, process: Process, lookups: Any, directory: Directory) -> None:
        super().__init__(lookups, directory, command_pattern(GROUP, "/"), raw=False)
        self.process = process

    def build(self, batches: Any, give_up: bool, use_cache: bool) -> None:
        try:
            super().build(batches, give_up, use_cache)
        except RedisUnavailable:
            raise
        except (TransientError, FatalError):
            held_since = min(one.held_since for one in batches)
            too_long = self.process.world.now - held_since > MAX_NAMES_WAIT
            if too_long and not give_up:  # else it is Redis that refuses to tell names
                self.process.world.broken("a batch waits too long for names")
            raise


class World:
    """One history."""

    def __init__(self, plan: Plan, habits: Habits, fetchers: int, trace: bool = False) -> None:
        self.plan, self.now = plan, 0.0
        self.hub = getcurrent()
        self.vk, self.store = VK(plan.rng, habits), Store()
        self.excused: set[str] = set()  # keys that were left out, as too late, and told
        self.store.on_move, self.store.on_left_out = self.moved, self.leave_out
        self.trace: list[str] | None = [] if trace else None
        self.faults: Counter[str] = Counter()
        self.violation = ""
        self.error: Exception | None = None
        self.server = 1  # of Redis: each failover makes another one
        self.refused_until = 0.0  # Redis refuses the password
        self.names_fail = ""
        self.nameless: set[int] = set()
        self.cache_entries: dict[str, tuple[str, float]] = {}
        self.effects: list[tuple[float, int, Callable[[], Any]]] = []  # that come later
        self.acknowledged: set[str] = set()  # keys that were on a bus that was emptied
        self.told_before: list[tuple[int, int]] = []  # gaps on such a bus
        self.lost: set[str] = set()  # keys that were on the bus before a failover: not all of them are
        self.emptied = False
        self.start_order: int | None = None  # from here on nothing may be missing
        self.fetchers = fetchers
        self.processes: list[Process] = []
        self.calm_since = 0.0  # from here on there are no faults
        self.copies: list[tuple[Copy, dict[Process, tuple[int, int]]]] = []
        self.current: Process | None = None
        self.turns = self.lives = 0

    # What happens

    def start(self, at: float = 0.0) -> Process:
        process = Process(self, self.now + at)
        self.processes.append(process)
        return process

    def kill(self, process: Process) -> None:
        """End a fetcher in the middle of whatever it does."""
        self.note(process, "is killed")
        self.processes.remove(process)
        self.switch(process, GreenletExit)

    def exited(self, process: Process) -> None:
        """Start anew what has ended by itself."""
        self.note(process, "ended")
        self.processes.remove(process)
        new = self.start(self.plan.latency("restart"))
        new.link_down_until, new.vk_down_until = process.link_down_until, process.vk_down_until

    def later(self, seconds: float, effect: Callable[[], Any]) -> None:
        """Let something take effect in some seconds, if the server is there then."""
        self.effects.append((self.now + seconds, self.server, effect))

    def commit(self, process: Process, arguments: list[Any]) -> str:
        """Run the script."""
        before = self.store.checkpoint
        answer = self.store.commit(arguments)
        if arguments[0] == "gap" and before != answer == arguments[2]:
            self.check_gap(process, arguments[1], arguments[2])
        process.parts += max(1, arguments[7] + arguments[8 + 3 * arguments[7]])
        process.parts_bytes += sum(len(one) for one in arguments if isinstance(one, bytes))
        if arguments[3]:  # not a part of a batch: what is remembered is whole batches
            process.offered += process.parts
            process.offered_bytes += process.parts_bytes
            process.parts = process.parts_bytes = 0
        self.remember()
        if self.trace is not None:
            ids = [str(one, "utf-8")[:20] for one in arguments[8:] if isinstance(one, bytes) and len(one) < 90]
            self.note(process, f"commits {arguments[:4]} {ids}: {before} -> {self.store.checkpoint}")
        return answer

    def remember(self) -> None:
        """Keep the state for a failover."""
        offered = {process: (process.offered, process.offered_bytes) for process in self.processes}
        self.copies.append((self.store.copy(), offered))
        del self.copies[:-COPIES]

    def fail_over(self, back: int, behind_proxy: bool) -> bool:
        """Go back to an older copy; not further than fetchers remember.

        Behind a proxy the connections hold: each has one request refused, and then another server.
        """
        if not self.copies:
            return False
        limits = LIMITS[backlog]
        for copy, offered in self.copies[-1 - back :]:
            old = [process for process in self.processes if process in offered]
            lost = [(p.offered - offered[p][0], p.offered_bytes - offered[p][1]) for p in old]
            fresh = [process for process in self.processes if process not in offered]
            fits = all(n <= limits["MAX_RECENT"] // 2 and size <= limits["MAX_RECENT_BYTES"] // 2 for n, size in lost)
            if fits and copy.checkpoint and all(p.offered <= limits["MAX_RECENT"] // 2 for p in fresh):
                break
        else:
            return False
        self.note(None, f"failover: {self.store.checkpoint} -> {copy.checkpoint}")
        self.lost |= self.on_the_bus()
        self.store.restore(copy)
        self.server += 1
        for process in self.processes if behind_proxy else ():
            for client in process.clients:
                client.server = self.server if client.server == self.server - 1 else 0
                client.refusals = 1
        self.copies = [(copy, {p: (p.offered, p.offered_bytes) for p in self.processes})]
        return True

    def empty(self) -> None:
        """Let Redis come back empty."""
        self.note(None, "Redis is emptied")
        self.acknowledged |= self.on_the_bus()
        self.told_before += self.gaps()
        self.emptied = True
        self.store.empty()
        self.cache_entries.clear()
        self.server += 1
        self.copies = []

    def cached(self, key: str) -> str | None:
        text, until = self.cache_entries.get(key, ("", 0.0))
        return text if self.now < until else None

    def cache(self, values: list[tuple[str, str, int]]) -> None:
        for key, text, ttl in values:
            if not any(json.loads(text)) and not key.endswith(f":{UNKNOWN}"):
                self.broken(f"a name that VK has not told is cached: {key}")
            self.cache_entries[key] = text, self.now + ttl

    def push(self) -> None:
        self.vk.push()
        for process in self.processes:
            if process.waits_for_update:
                process.wake = self.now

    # The scheduler

    def turn(self) -> None:
        """Let one fetcher go on until its next request or sleep."""
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
        if self.violation:
            raise Stop

    def settle(self, until: float) -> None:
        """Go on without faults until nothing is left to do."""
        self.calm_since = self.now
        while self.now < until:
            for _ in range(5):
                self.turn()
            if self.is_settled:
                return
        self.broken(self.unsettled(), stop=False)
        raise Stop

    @property
    def is_settled(self) -> bool:
        if self.effects or self.store.checkpoint != str(self.vk.ts):
            return False
        return all(process.is_idle for process in self.processes)

    def unsettled(self) -> str:
        relays = [process.relay for process in self.processes if process.relay]
        pending = [[(one.kind, one.since, one.until) for one in relay.backlog.pending][:3] for relay in relays]
        return f"never settles: checkpoint {self.store.checkpoint}, VK's ts {self.vk.ts}, pending {pending}"

    def close(self) -> None:
        """End all fetchers."""
        for process in self.processes:
            if process.greenlet:
                process.greenlet.throw(GreenletExit)

    # What must hold

    def broken(self, what: str, stop: bool = True) -> None:
        """Note that an invariant is broken, and stop."""
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
        raws = (letter.get("update") for letter in self.store.dead)
        return keys | {self.vk.keys.get(raw, raw) for raw in raws if raw is not None}

    def leave_out(self, ids: list[str]) -> None:
        """Note what was left out as too late; a dead letter's id may end in the hash of its text."""
        keys = {self.vk.keys.get(id.rpartition(":")[2], id) for id in ids}
        # When VK has begun anew twice, ts no longer tell which of the times the checkpoint of a copy is of.
        if self.fetchers == 1 and self.faults["VK begins anew"] < 2 and keys - self.on_the_bus():
            self.broken("left out as too late, though no other fetcher can have committed it")
        self.excused |= keys

    def gaps(self) -> list[tuple[int, int]]:
        """Return the gaps that are recorded, in the order of all eras."""
        letters = [letter for letter in self.store.dead if not str(letter.get("error")).endswith(LEFT_OUT)]
        told = [(letter.get("since"), letter.get("until")) for letter in letters]
        return [(order_of(since), order_of(until)) for since, until in told if since and until]

    def moved(self, old: str, new: str) -> None:
        """The checkpoint moves: everything up to it is on the bus, told as a gap, or passed over."""
        if not old and (not self.store.dead or self.store.dead[-1].get("until") != new):
            self.broken("the checkpoint was restored without a record")
        if not old:
            return
        after, until = order_of(old), order_of(new)
        if found := self.nowhere(after, until):
            self.broken(f"the checkpoint passed {found[:5]}")

    def check_gap(self, process: Process, since: str, until: str) -> None:
        """A fetcher that tells a gap holds nothing inside of it that it has not committed yet."""
        after, last = order_of(since), order_of(until)
        inside = [one.key for one in self.vk.history if after < one.order <= last and not one.passed_over]
        known = self.on_the_bus() | self.excused | self.acknowledged | self.lost
        if hidden := process.had.intersection(inside) - known:
            self.broken(f"a gap hides what is held: {sorted(hidden)[:5]}")

    def nowhere(self, after: int, until: int) -> list[str]:
        """Return the updates in a part of VK's history that are neither on the bus, nor told, nor passed over."""
        part = []
        for one in reversed(self.vk.history):
            if one.order <= after:
                break
            if one.order <= until and not one.passed_over:
                part.append(one)
        if not part:
            return []
        events = self.on_the_bus() | self.excused | self.acknowledged
        gaps = self.told_before + self.gaps()
        return [one.key for one in part if one.key not in events and not any(a < one.order <= b for a, b in gaps)]

    def verify(self) -> None:
        """Check at the end of a history what must hold then."""
        if wrong := self.wrong_at_the_end() or self.wrong_name():
            self.broken(wrong)

    def wrong_at_the_end(self) -> str:
        """Return what is lost, repeated or out of order, if anything is."""
        store, events = self.store, self.on_the_bus()
        ids = [event_id for event_id, _ in store.stream]
        if len(set(ids)) < len(ids):
            return f"repeated: {[id for id, n in Counter(ids).items() if n > 1][:5]}"
        # A copy from before VK began anew takes what is of the new time at once: its ts are lower.
        out_of_time = self.faults["failover"] and self.faults["VK begins anew"]
        raws = [raw for letter in store.dead if (raw := letter.get("update")) is not None]
        # What several fetchers have of the time before is late, and does not tell where a nameless dead letter was.
        late = self.faults["VK begins anew"] and self.fetchers > 1
        if len(set(raws)) < len(raws) and not out_of_time and not late:
            return f"a dead letter repeated: {[id for id, n in Counter(raws).items() if n > 1][:5]}"
        if [text for _, text in store.stream] != [text for _, text in store.published]:
            return "channels and stream differ"
        passed = {one.key for one in self.vk.history if one.passed_over}
        for process in self.processes:
            if lost := process.had - events - self.acknowledged - self.excused - passed:
                return f"in memory, and lost: {sorted(lost)[:5]}"
        if not self.emptied:
            if lost_in_silence := self.nowhere(self.start_order or 0, 10**12):
                return f"lost in silence: {lost_in_silence[:5]}"
            gaps = Counter(gap for gap in self.gaps() if gap[0] != gap[1])
            if twice := [gap for gap, n in gaps.items() if n > 1]:
                return f"a gap told twice: {twice[:3]}"
            if self.fetchers == 1 and not out_of_time:
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


def keys_of(answer: Batch | Gap) -> list[str] | str:
    """Return what is in an answer, for the trace."""
    return [key_of(update)[:20] for update in answer.updates] if isinstance(answer, Batch) else answer.error


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
        """`random.uniform`, of the history's own dice."""
        return self.world.plan.rng.uniform(low, high)


clock = Clock()


def connect(url: str, on_connect: Callable[[], None], socket_timeout: float, **options: Any) -> Client:
    """Stand in for `fetcher.bus.connection.connect`."""
    assert clock.world.current
    return Client(clock.world.current, on_connect, socket_timeout)


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Put the clock, VK's server and Redis's client into the fetcher's modules."""
    # The real function with our dice, and for the loop alone: consumers in other threads have a back-off, too.
    dice = vars(backoff) | {"random": clock}
    seams: dict[Any, dict[str, Any]] = {
        bus: {"time": clock, "connect": connect},
        longpoll: {"time": clock, "LongPollServer": Server},
        names: {"time": clock},
        relay: {"time": clock, "backoff": FunctionType(backoff.backoff.__code__, dice)},
    }
    saved = []
    for table in (seams, LIMITS):
        for module, values in table.items():
            for name, value in values.items():
                saved.append((module, name, getattr(module, name)))
                setattr(module, name, value)
    level = logging.getLogger("fetcher").level
    logging.getLogger("fetcher").setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logging.getLogger("fetcher").setLevel(level)
        for module, name, value in reversed(saved):
            setattr(module, name, value)
