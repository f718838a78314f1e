"""How the program fares on links that are far, slow, short-lived or silent: python -m tests.faults --links."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.faults.environment import Environment
from tests.faults.recording import Version
from tests.servers import Proxy, wait_until
from tests.vk import CHAT, PERSON, message

FAR = 0.3  # seconds in each direction
ARRIVAL_TIMEOUT = 60.0  # seconds after which updates that are not on the bus count as missing

Run = Callable[[Environment], None]


class Scenario(NamedTuple):
    """What happens: it lasts until the traffic is over, or until ten seconds after Redis is back."""

    name: str
    run: Run
    vk_options: Mapping[str, Any] = MappingProxyType({})  # settings of VK
    vk_delay: float = 0.0  # seconds that everything takes in each direction on the way to VK


class Figures(NamedTuple):
    """The result: `out` events were published by its end, and the rest `seconds` later, None if not at all."""

    events: int
    out: int
    seconds: float | None
    missing: int
    gaps: int
    repeated: int
    megabytes: float  # sent to Redis

    def row(self) -> str:
        """Return the cells of a table."""
        seconds = f"{self.seconds:.1f} s" if self.seconds is not None else f"not within {ARRIVAL_TIMEOUT:.0f} s"
        cells = (f"{self.events:,}", f"{self.out:,}", seconds, f"{self.missing:,}", self.gaps, self.repeated)
        return " | ".join(map(str, (*cells, f"{self.megabytes:.1f}")))


COLUMNS = (
    "events",
    "out at the end",
    "all out after",
    "missing",
    "gaps recorded",
    "repeated",
    "MB to Redis",
)


def measure(scenario: Scenario, version: Version) -> Figures:
    """Run the scenario with one fetcher of this version, with the version's own constants."""
    with (
        far_vk(scenario.vk_delay) as far,
        Environment(versions=[version.as_it_is], **scenario.vk_options, **far) as env,
    ):
        (link,) = env.links
        first, link.sent = len(env.ts), [0, 0]
        scenario.run(env)
        ended = time.monotonic()
        out = len(env.ts) - first - len(env.missing())
        seconds = None
        with contextlib.suppress(AssertionError):
            wait_until(env.has_arrived, ARRIVAL_TIMEOUT)
            seconds = time.monotonic() - ended
        missing, gaps = len(env.missing()), len(env.gaps)
        repeated = sum(times > 1 for times in env.on_stream)
        return Figures(len(env.ts) - first, out, seconds, missing, gaps, repeated, link.sent[0] / 1e6)


@contextlib.contextmanager
def far_vk(delay: float) -> Iterator[dict[str, Any]]:
    """Yield the options of an environment whose VK is this far away, and whose polls are as long as usual."""
    with contextlib.ExitStack() as stack:

        def link_to_vk(port: int) -> str:
            return f"http://127.0.0.1:{stack.enter_context(Proxy(port, delay=delay)).port}"

        yield {"polls_as_usual": True} | ({"link_to_vk": link_to_vk} if delay else {})


def push_steadily(env: Environment, rate: float, seconds: float) -> None:
    """Push this many updates a second, one by one."""
    begun = time.monotonic()
    for number in range(1, round(rate * seconds) + 1):
        env.push()
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))


def hold(env: Environment, count: int, text: str) -> None:
    """Let the fetcher hold this many messages, each from a different person, while Redis is down."""
    env.down()
    people = itertools.count(PERSON)
    for _ in range(0, count, 200):
        env.push(200, lambda: message(text, user=next(people), peer=CHAT + 1))
        env.wait_for_polls()


def long_messages(env: Environment) -> None:
    hold(env, 4000, "x" * 16_000)
    (link,) = env.links
    link.bandwidth, link.max_silence = 4e6, 2.0
    env.up()
    time.sleep(10)


def short_messages(env: Environment) -> None:
    hold(env, 3000, "x" * 100)
    (link,) = env.links
    link.bandwidth, link.lifetime = 128_000, (3.0, 3.0)
    env.up()
    time.sleep(10)


def pauses(env: Environment) -> None:
    (link,) = env.links
    link.delay = FAR
    for _ in range(5):
        push_steadily(env, 20, 5)
        link.swallow()
        push_steadily(env, 20, 2.5)
        link.release()
    push_steadily(env, 20, 60)


def late_replies(env: Environment) -> None:
    (link,) = env.links
    link.reply_delay = (0.8, 1.5)
    push_steadily(env, 40, 30)


def small_pages(env: Environment) -> None:
    (link,) = env.links
    link.delay = FAR
    push_steadily(env, 90, 20)


def short_lives(env: Environment) -> None:
    (link,) = env.links
    link.lifetime, link.refuse_every = (1.0, 3.0), 5
    link.cut()
    push_steadily(env, 40, 30)


def servers_apart(env: Environment) -> None:
    env.vk.lag = lambda: env.random.choice((0, 0, 1, 2, 3, 4, 5))
    push_steadily(env, 40, 12)
    env.vk.lag = 0


def short_memory(env: Environment) -> None:
    """Freeze the fetcher until VK has forgotten a few updates, then continue the traffic."""
    (fetcher,) = env.fetchers
    fetcher.pause()
    env.push(env.vk.kept + 20)
    fetcher.resume()
    push_steadily(env, 50, 12)


SMALL_PAGES = {"batch": 50, "kept": 300}
SCENARIOS = [
    Scenario("4,000 messages of 16 kB held, 4 MB/s, drops what is silent for 2 s", long_messages, {"kept": 5000}),
    Scenario("3,000 short messages held, 128 kB/s, connections live for 3 s", short_messages, {"kept": 5000}),
    Scenario("20 updates/s, Redis 0.3 s away each way, five pauses of 2.5 s", pauses),
    Scenario("40 updates/s, replies after 0.8 to 1.5 s", late_replies),
    Scenario("90 updates/s, 50 in an answer, VK keeps 300, Redis 0.3 s away each way", small_pages, SMALL_PAGES),
    Scenario("40 updates/s, connections live for 1 to 3 s, one in five refused", short_lives),
    Scenario("40 updates/s, two VK servers 1 to 5 numbers apart", servers_apart),
    Scenario("50 updates/s, VK 0.05 s away each way has forgotten 20", short_memory, vk_delay=0.05),
]


def print_figures(versions: list[Version], word: str) -> None:
    """Measure the scenarios whose names contain this word, and print the table."""
    print(f"| | version | {' | '.join(COLUMNS)} |\n| --- | --- |{' ---: |' * len(COLUMNS)}", flush=True)
    for scenario in SCENARIOS:
        for version in versions if word in scenario.name else ():
            print(f"| {scenario.name} | {version.name} | {measure(scenario, version).row()} |", flush=True)
