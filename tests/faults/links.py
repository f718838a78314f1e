"""Links that are far, slow, short-lived or silent, and a VK of several servers, each as a fault."""

import time

from tests.faults.cases import case
from tests.faults.environment import Environment
from tests.faults.pairs import CASES
from tests.faults.recording import THIS
from tests.vk import CHAT, PERSON, message

__all__ = ["CASES"]  # with those of cases.py and pairs.py


@case("link: connections that live for a moment, and one in five refused", linked=True)
def shorten_connections(env: Environment) -> None:
    links = env.any_links()
    for link in links:
        link.lifetime, link.refuse_every = (0.1, 0.6), 5
        link.cut()
    env.expect(lambda: all(link.refused >= 2 for link in links), what="refused connections")
    for link in links:
        link.heal()


@case("link: answers nearly as late as Redis's timeout", linked=True)
def answer_late(env: Environment) -> None:
    links = env.any_links()
    for link in links:
        link.reply_delay = (0.3, 0.9)
    time.sleep(2)
    for link in links:
        link.heal()


@case("pair: long messages held, a link that drops what is silent", linked=True, quiet=True, splits=True)
def drop_what_is_silent(env: Environment) -> None:
    """What is on the bus is not sent again, although connections break."""
    long = "я" * 4096
    env.down()
    for _ in range(4):
        env.push(100, lambda: message(long, user=PERSON + env.random.randrange(10**6), peer=CHAT + 1))
        env.wait_for_polls()
    for link in env.links:
        link.bandwidth, link.max_silence, link.sent = 2_000_000, 0.3, [0, 0]
    env.up()
    env.expect(lambda: not env.missing(), what="all events")
    if env.is_strict:
        assert all(link.sent[0] < 3 * 400 * 8192 for link in env.links), [link.sent for link in env.links]
    for link in env.links:
        link.heal()


@case("pair: small answers of VK's, and a Redis far away", linked=True, quiet=True)
def small_pages(env: Environment) -> None:
    """However few updates VK puts into an answer, it is read faster than it forgets."""
    batch, env.vk.batch = env.vk.batch, 50
    for link in env.links:
        link.delay = 0.15
    until = time.monotonic() + 4
    while time.monotonic() < until:
        env.push(3)
        time.sleep(1 / 30)
    for link in env.links:
        link.delay = 0
    env.expect(lambda: not env.missing(), what="all events")
    env.vk.batch = batch


@case("VK: two servers a few numbers apart", quiet=True)
def let_servers_lag(env: Environment) -> None:
    """A lower ts alone is neither a restart of VK's numbering nor a gap; an earlier version may take it for one."""
    env.vk.lag = lambda: env.random.choice((0, 0, 1, 2, 3, 4, 5))
    for _ in range(40):
        env.push()
        time.sleep(0.03)
    env.vk.lag = 0
    env.expect(lambda: not env.missing(), what="all events")
    if env.is_strict and all(fetcher.version.name == THIS.name for fetcher in env.fetchers):
        assert not env.gaps, env.gaps
