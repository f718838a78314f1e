"""Where faults happen: VK, Redis, fetchers with a link each, traffic, and the account of what came through."""

import contextlib
import random
import re
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fetcher.core.history import Position
from tests.faults.ending import require_not_ending
from tests.faults.recording import THIS, Process, RecordingVK, Version, number_of
from tests.servers import Proxy, Server, cluster, wait_until
from tests.vk import CHAT, PERSON, button, message, reaction

PASSWORD = "s3cret/of Redis@home"  # of the fetchers' user
OWNER = "owner"  # the environment's own user, whose password nobody changes
KEY_HEAD = "eyJhbGciOiJFZERTQSIs"  # every VK key begins like this
EVENT_ID = re.compile(r'"event_id": ?"([0-9a-f]{40})"')  # the first match in an event's JSON is its own id
MAX_COUNT = 255  # the most that a byte can count
# What fetchers surely remember of the bus, in updates and bytes: the replay buffer holds twice as much, but small and
# large updates share it.
REMEMBERED, REMEMBERED_BYTES = 500, 8 * 2**20
USUAL_SIZE = 700  # bytes of an update


class Count(NamedTuple):
    """What became of the events of one fault, on the surviving stream and on the channels.

    `lost`: a living fetcher had them. `gone`: no fetcher had them, VK forgot them, and the bus records that. `silent`:
    nothing says that they are missing.
    """

    events: int = 0
    gone: int = 0
    lost: int = 0
    silent: int = 0
    repeated: int = 0
    disordered: int = 0
    channel_repeated: int = 0
    channel_disordered: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not any(self[2:])

    def plus(self, other: "Count") -> "Count":
        """Return the sum of this account and another one."""
        return Count(*map(sum, zip(self, other, strict=True)))


class Listener(threading.Thread):
    """Collects what the channels bring, except what is published while it is not connected."""

    def __init__(self, server: Server, heard: list[int]) -> None:
        super().__init__(daemon=True)
        # No retries by redis-py itself.
        self.client: Any = server.client(username=OWNER, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        self.heard = heard
        self.connections = 0
        self.ended = False
        self.start()

    def run(self) -> None:
        """Listen until the end, and again after every broken connection."""
        while not self.ended:
            with contextlib.suppress(redis.RedisError, OSError), self.client.pubsub() as live:
                live.psubscribe("events:*")
                self.connections += 1
                while not self.ended:
                    if (got := live.get_message(timeout=0.2)) and got["type"] == "pmessage":
                        self.heard.append(event_number(got["data"]))
            time.sleep(0.02)

    def end(self) -> None:
        """Stop listening."""
        self.ended = True
        self.join()


def event_number(text: str) -> int:
    """Return the number of the update that became this JSON."""
    match = EVENT_ID.search(text)
    assert match, text[:200]
    return number_of(match[1])


class Environment:
    """One VK, one Redis or a cluster, fetchers with a link each to it, and traffic on demand.

    Cases call its methods at the same time, and each method may be called while another fault lasts. With several
    versions of the program, fetchers use them in turn, and so does each fetcher when it is restarted.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        fetchers: int = 1,
        clustered: bool = False,
        versions: Sequence[Version] = (THIS,),
        link_to_vk: Callable[[int], str] | None = None,
        polls_as_usual: bool = False,
        **vk_options: Any,
    ) -> None:
        """Start everything.

        `link_to_vk` returns the address of a link to VK's port, and `vk_options` are options of VK. Polls are short, to
        save time, unless the environment `polls_as_usual`.
        """
        self.random = random.Random(seed)
        self.polls_as_usual = polls_as_usual
        self.versions = deque(versions)
        self.options: dict[str, Any] = {
            "password": PASSWORD,
            "aof": True,
            "acl": [f"user {OWNER} on nopass ~* &* +@all"],
        }
        self.server_lock = threading.RLock()  # held by the thread that ends the server, until it is up again
        self.is_strict = True  # no other fault happens, so what a case waits for must come

        # The account. An update's number is its place in VK's order, and its event_id.
        self.ts = array("q")  # by number: the ts after it
        self.on_stream, self.on_channels = bytearray(), bytearray()  # by number: how often
        self.sizes = array("l")  # by number, in bytes
        self.unpromised: set[int] = set()  # lost by the bus, and too old for a fetcher to remember
        self.found: list[int] = []  # what has reached the stream since the last account, in its order
        self.gaps: list[tuple[Position, Position]] = []  # recorded since the last account
        self.last_entry = self.last_letter = ""  # the newest ones that have been read
        self.first = 0  # number of the first update since the last account
        # What VK forgot before any fetcher had it; None accepts whatever is recorded.
        self.forgotten: set[int] | None = set()
        self.replayed: set[int] = set()
        # The number of the first update after each restart of VK's numbering since the last account.
        self.restarts: list[int] = []
        self.is_rewound = False  # acknowledged writes were lost, so channels may repeat events
        self.is_emptied = False  # the checkpoint was lost, too, so a fetcher that starts begins at VK's latest ts
        self.people = 0
        self.reading, self.pushing, self.stop = threading.RLock(), threading.RLock(), threading.Event()
        self.nodes: list[Server] = []
        self.links: list[Proxy] = []
        self.fetchers: list[Process] = []

        with contextlib.ExitStack() as self.stack:
            self.vk = self.stack.enter_context(RecordingVK(**{"ts": 10**9, **vk_options}))
            self.vk.max_wait = 90 if polls_as_usual else 0.3
            self.vk_url = link_to_vk(self.vk.port) if link_to_vk else self.vk.url
            self.server = self.start_servers(clustered)
            self.listener = Listener(self.server, [])
            for _ in range(fetchers):
                self.add_fetcher()
            checkpoint = f"{{events}}:ts:{self.vk.group_id}"
            wait_until(lambda: self.server.client().exists(checkpoint), 60, "the first start")
            self.push(5)
            self.account()
            self.stack = self.stack.pop_all()

    def start_servers(self, clustered: bool) -> Server:
        """Start Redis, or a cluster, and return the server that has the bus."""
        if not clustered:
            return self.stack.enter_context(Server(**self.options))
        self.nodes = self.stack.enter_context(cluster(**self.options))
        with self.nodes[0].client() as first:
            slot: Any = first.execute_command("CLUSTER KEYSLOT", "events")
        return self.nodes[int(slot) * len(self.nodes) // 16384]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing behind."""
        self.stop.set()
        self.listener.end()
        self.stack.close()

    # Fetchers

    def add_fetcher(self) -> Process:
        """Start one more fetcher of the community, with a link of its own to Redis."""
        url = self.server.url if self.nodes else self.add_link().url
        settings = {"REDIS_URL": url, "VK_URL": self.vk_url, "LOG_LEVEL": "DEBUG", "STREAM_MAXLEN": 20_000}
        settings |= (
            {"POLL_WAIT": 25, "RENEW_AFTER": 3600} if self.polls_as_usual else {"POLL_WAIT": 1, "RENEW_AFTER": 1}
        )
        self.fetchers.append(self.stack.enter_context(Process(self.vk, list(self.versions), **settings)))
        self.versions.rotate(-1)
        return self.fetchers[-1]

    def add_link(self) -> Proxy:
        """Return a new link to Redis."""
        self.links.append(self.stack.enter_context(Proxy(self.server.port, PASSWORD)))
        return self.links[-1]

    def any_fetcher(self) -> Process:
        """Return one of the fetchers, chosen at random."""
        return self.random.choice(self.fetchers)

    def any_links(self) -> list[Proxy]:
        """Return all links, or one chosen at random."""
        return self.random.choice([self.links, [self.random.choice(self.links)]])

    @property
    def output(self) -> str:
        """The last lines of every fetcher."""
        return "\n\n".join("\n".join(fetcher.lines[-80:]) for fetcher in self.fetchers)

    def leaks(self) -> list[str]:
        """Return the secrets that a fetcher has printed."""
        printed = "\n".join(fetcher.output for fetcher in self.fetchers)
        secrets = [self.vk.token, KEY_HEAD, PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD)]
        return [secret for secret in secrets if secret in printed]

    # Waiting

    def expect(self, condition: Callable[[], Any], what: str = "it") -> None:
        """Wait until the condition holds, but not for long if another fault may prevent it."""

        def holds_or_ending() -> Any:
            require_not_ending()
            return condition()

        try:
            wait_until(holds_or_ending, 60 if self.is_strict else 5, what)
        except AssertionError:
            if self.is_strict:
                raise

    def has_polled(self, fetcher: Process, ts: int) -> bool:
        """Whether the fetcher has polled VK at this ts."""
        return self.vk.polled_at.get(fetcher.token, 0) >= ts

    def wait_for_polls(self, *fetchers: Process) -> None:
        """Wait until these fetchers, or all, hold everything that has been pushed."""
        ts = self.vk.ts
        for fetcher in fetchers or self.fetchers:
            self.expect(partial(self.has_polled, fetcher, ts), what=f"a poll at {ts}")

    def wait_for_line(self, text: str, *fetchers: Process) -> Callable[[], None]:
        """Return a function that waits until these fetchers, or all, print a new line with this text."""
        positions = [(fetcher, len(fetcher.lines)) for fetcher in fetchers or self.fetchers]

        def wait() -> None:
            for fetcher, position in positions:
                self.expect(partial(has_line, fetcher, text, position), what=text)

        return wait

    # Redis

    def client(self, **options: Any) -> Any:
        """Return a client of the server that is the primary now."""
        return self.server.client(**{"socket_timeout": 5, "username": OWNER, **options})

    def command(self, *commands: Callable[[Any], Any]) -> Any:
        """Run commands on the server, each until it succeeds, and return the last answer."""
        answer: Any = None

        def run(command: Callable[[Any], Any]) -> bool:
            nonlocal answer
            require_not_ending()
            with self.client() as client:
                answer = command(client)
            return True

        for command in commands:
            wait_until(partial(run, command), 60, "the server's answer")
        return answer

    def down(self) -> None:
        """Refuse connections to Redis, on all links."""
        for link in self.links:
            link.down()

    def up(self) -> None:
        """Accept connections to Redis again, on all links."""
        for link in self.links:
            link.up()

    def detached_replica(self) -> Server:
        """Return a replica that has everything written so far, and lacks what is written from now on."""
        replica = self.stack.enter_context(Server(**self.options))
        with self.server_lock, contextlib.suppress(AssertionError):
            replica.replica_of(self.server, 60 if self.is_strict else 10)
            time.sleep(0.1)  # for what was written while it copied
        replica.replica_of(None)
        return replica

    def fail_over(self, replica: Server) -> None:
        """End the primary and put the replica in its place."""
        with self.server_lock, self.reading:
            self.note_lost_writes()
            self.server.close()
            self.server = replica
            for link in self.links:
                link.target_port = replica.port
                link.cut()
            self.listener.end()
            self.listener = Listener(self.server, self.listener.heard)
            self.read_again()

    def note_lost_writes(self) -> None:
        """Note that the bus loses writes now, and that fetchers remember only the latest of what was on it."""
        with contextlib.suppress(redis.RedisError, OSError):
            self.read()
        begin, size = len(self.ts), 0
        while begin > self.first and len(self.ts) - begin < REMEMBERED and size < REMEMBERED_BYTES:
            begin -= 1
            size += self.sizes[begin]
        self.unpromised.update(number for number in range(self.first, begin) if self.on_stream[number])

    def empty(self) -> None:
        """Let Redis forget everything."""
        self.note_lost_writes()
        self.command(lambda client: client.flushall())
        with self.reading:
            self.read_again()
            self.is_emptied = True

    def read_again(self) -> None:
        """Count the stream again from its beginning, because it was replaced or emptied and may be filled again."""
        with self.reading:
            self.on_stream, self.on_channels = bytearray(len(self.on_stream)), bytearray(len(self.on_channels))
            self.found, self.gaps, self.last_entry, self.last_letter = [], [], "", ""
            self.listener.heard = []
            self.is_rewound = True

    # Traffic

    def push(self, count: int = 1, make: Callable[[], dict[str, Any]] | None = None) -> range:
        """Push this many updates and return their numbers; about one in four comes from a new person.

        New people have no name yet, so their names are looked up.
        """
        with self.pushing:
            begin = len(self.ts)
            updates = [(make or self.any_update)() for _ in range(count)]
            for number, update in enumerate(updates, begin):
                update["event_id"] = f"{number:040x}"
            self.on_stream.extend(bytes(count))
            self.on_channels.extend(bytes(count))
            self.sizes.extend(len(str(update)) if make else USUAL_SIZE for update in updates)
            self.ts.extend(range(self.vk.ts + 1, self.vk.ts + 1 + count))
            self.vk.push(*updates)
            return range(begin, begin + count)

    def any_update(self) -> dict[str, Any]:
        """Return an update of any kind."""
        new = self.random.random() < 0.25
        self.people += new
        user = PERSON + (self.people if new else self.random.randrange(20))
        peer = CHAT + 1 + (self.people if new else self.random.randrange(5))
        return self.random.choice((message, message, button, reaction))(user=user, peer=peer)

    @contextlib.contextmanager
    def traffic(self, rate: float = 40, burst: int = 0) -> Iterator[None]:
        """Push about this many updates a second, one to three at a time, and up to `burst` at once each second."""
        self.stop.clear()

        def push() -> None:
            next_burst = time.monotonic() + self.random.random()
            while not self.stop.is_set():
                self.push(self.random.choice((1, 1, 1, 3)))
                if burst and time.monotonic() >= next_burst:
                    self.push(self.random.randint(burst // 4, burst))
                    next_burst = time.monotonic() + 1
                time.sleep(self.random.expovariate(rate / 1.5))

        thread = threading.Thread(target=push)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()

    def replay(self, count: int) -> None:
        """Let VK send its latest updates once more."""
        with self.pushing:
            self.replayed.update(range(max(0, len(self.ts) - count - 1), len(self.ts)))
            self.vk.replay(count)

    def next_chats(self, count: int) -> range:
        """Return the chats that will appear next."""
        return range(CHAT + 2 + self.people, CHAT + 2 + self.people + count)

    def forget(self, numbers: range) -> None:
        """Note that VK forgets these updates before any fetcher has them."""
        if self.forgotten is not None:
            self.forgotten.update(numbers)

    def restart_numbering(self, back: int = 10**6) -> None:
        """Let VK restart its numbering with a ts that is lower by this much."""
        with self.pushing:
            self.restarts.append(len(self.ts))
            self.vk.restart(self.vk.ts - back)

    # What came through

    def read(self) -> None:
        """Read what has reached the stream and the dead letters."""
        with self.reading, self.client(socket_timeout=10) as client:
            entries: Any = client.xrange("events", f"({self.last_entry}" if self.last_entry else "-")
            for self.last_entry, fields in entries:
                number = event_number(fields["event"])
                self.on_stream[number] = min(MAX_COUNT, self.on_stream[number] + 1)
                self.found.append(number)
            letters: Any = client.xrange("{events}:dead-letter", f"({self.last_letter}" if self.last_letter else "-")
            for self.last_letter, fields in letters:
                if "since" in fields:
                    self.gaps.append((Position.parse(fields["since"]), Position.parse(fields["until"])))

    def missing(self) -> list[int]:
        """Return which updates since the last account are missing from the stream."""
        self.read()
        with self.reading:
            return [number for number in range(self.first, len(self.ts)) if not self.on_stream[number]]

    def is_recorded(self, number: int) -> bool:
        """Whether the bus records that this update is gone."""
        ts, times = self.ts[number], sum(number >= begin for begin in self.restarts)
        for since, until in self.gaps:
            if not is_restart(since, until):
                is_inside = place_of(since) < ts <= place_of(until)
            elif times == len(self.restarts):  # VK restarted before this update, and not after it
                is_inside = ts <= place_of(until)
            else:
                is_inside = times > 0 or ts > place_of(since)
            if is_inside:
                return True
        return False

    def has_gap(self, ts: int) -> bool:
        """Return whether a recorded gap contains the update after this ts."""
        self.read()
        return any(
            place_of(since) <= ts and (ts < place_of(until) or is_restart(since, until)) for since, until in self.gaps
        )

    def letters(self, text: str) -> int:
        """Return how many dead letters have an error with this text."""
        letters = self.command(lambda client: client.xrange("{events}:dead-letter"))
        return sum(text in fields["error"] for _, fields in letters)

    def wait_for_commits(self) -> None:
        """Wait until no fetcher has anything left to commit, even after a pause, or to commit again."""

        def is_quiet() -> bool:
            counts: list[int] = []
            for pause in (1.5, 0):
                stats = self.command(lambda client: client.info("commandstats"))
                counts.append(stats.get("cmdstat_evalsha", {}).get("calls", 0))
                time.sleep(pause)
            return counts[0] == counts[1]

        self.expect(is_quiet, what="the last commit")

    def had(self) -> set[int]:
        """Return the updates that living fetchers have had since the last account."""
        living = {fetcher.token for fetcher in self.fetchers if fetcher.running}
        return self.vk.had_by(living) - self.unpromised

    def has_arrived(self) -> bool:
        """Whether everything that can be expected is on the bus."""
        missing = set(self.missing())
        if not all(self.has_polled(fetcher, self.vk.ts) for fetcher in self.fetchers):
            return False
        return not missing or ((self.is_emptied or all(map(self.is_recorded, missing))) and not missing & self.had())

    def account(self, timeout: float = 60) -> Count:
        """Wait until everything that was pushed has arrived, and count what became of it since the last account."""
        with contextlib.suppress(AssertionError):
            wait_until(self.has_arrived, timeout)
        time.sleep(0.1)  # time for repetitions
        missing, had = self.missing(), self.had()
        heard, self.listener.heard = self.listener.heard, []
        again = sum(self.on_channels[number] > 0 for number in heard) + len(heard) - len(set(heard))
        for number in heard:
            self.on_channels[number] = 1
        gone = {number for number in missing if number not in had and (self.is_emptied or self.is_recorded(number))}
        if self.forgotten is not None:
            gone &= self.forgotten | self.unpromised  # a gap without a cause is a loss
        lost = [number for number in missing if number not in gone and (number in had or self.is_recorded(number))]
        count = Count(
            events=len(self.ts) - self.first,
            gone=len(gone),
            lost=len(lost),
            silent=len(missing) - len(gone) - len(lost),
            repeated=sum(self.on_stream[number] > 1 for number in set(self.found)),
            disordered=self.disorder(self.found),
            channel_repeated=0 if self.is_rewound else again,
            channel_disordered=0 if self.is_rewound else self.disorder(heard),
        )
        if not count.is_clean:
            print(self.explain(missing, had), flush=True)
        self.first, self.found, self.gaps, self.restarts = len(self.ts), [], [], []
        self.forgotten, self.unpromised, self.is_rewound, self.is_emptied = set(), set(), False, False
        self.vk.forget_records()
        return count

    def disorder(self, found: list[int]) -> int:
        """Count the events that follow one which VK sent later; with several fetchers, no order is promised."""
        if len(self.fetchers) > 1:
            return 0
        numbers = [n for n in dict.fromkeys(found) if n >= self.first and n not in self.replayed]
        return sum(later < earlier for earlier, later in pairwise(numbers))

    def explain(self, missing: list[int], had: set[int]) -> str:
        """Describe where the missing updates were, to help find the bug."""
        twice = [number for number in dict.fromkeys(self.found) if self.on_stream[number] > 1]
        lines = [f"pushed {self.first}..{len(self.ts) - 1}, VK's ts {self.vk.ts}, gaps {self.gaps}"]
        for state, numbers in {
            "missing, held": [n for n in missing if n in had],
            "missing, recorded": [n for n in missing if n not in had and self.is_recorded(n)],
            "missing, nothing known": [n for n in missing if n not in had and not self.is_recorded(n)],
        }.items():
            lines.append(f"{state}: {len(numbers)}, ts {[self.ts[n] for n in [*numbers[:10], *numbers[-10:]]]}")
        lines += [f"twice {n}: ts {self.ts[n]}" for n in twice[:10]]
        lines += [f"{later} after {earlier}" for earlier, later in pairwise(self.found) if later < earlier][:10]
        lines += [f"{fetcher.token[-4:]} polls at {self.vk.polled_at.get(fetcher.token)}" for fetcher in self.fetchers]
        return "\n".join(lines)

    # Afterwards

    def heal(self) -> list[int]:
        """Undo everything that a fault may have left, and return the exit codes of the fetchers that had ended."""
        self.vk.heal()
        self.vk.up()
        for at_vk in (self.vk.unreadable, self.vk.refused, self.vk.failing):
            at_vk.clear()
        self.vk.lag = 0
        for link in self.links:
            link.heal()
        with self.server_lock:
            for server in self.nodes or [self.server]:
                server.resume()
                with contextlib.suppress(AssertionError):
                    server.start()
        self.command(
            lambda client: client.replicaof("NO", "ONE") if not self.nodes else None,
            lambda client: client.config_set("maxmemory", 0),
            lambda client: client.config_set("min-replicas-to-write", 0),
            lambda client: client.config_set("busy-reply-threshold", 5000),
            restore_stream,
        )
        for fetcher in self.fetchers:
            fetcher.resume()
        return [code for fetcher in self.fetchers if (code := fetcher.revive()) is not None]


def place_of(position: Position) -> int:
    """Return the ts of the last update that the position includes; here VK's ts grows by one for each."""
    return position.ts + position.part


def is_restart(since: Position, until: Position) -> bool:
    """Return whether VK has restarted its numbering inside this gap; version 1.1 counts no epochs."""
    return until.epoch > since.epoch or until.ts < since.ts


def has_line(fetcher: Process, text: str, position: int) -> bool:
    """Whether the fetcher has printed a line with this text, from this position on."""
    return any(text in line for line in fetcher.lines[position:])


def restore_stream(client: Any) -> None:
    """Put the stream back in its place, if a fault has put something else there."""
    if client.exists("{events}:aside"):
        client.rename("{events}:aside", "events")
    elif client.type("events") == "string":
        client.delete("events")
