"""Faults that once lost updates in a fetcher's memory: mostly pairs, each as short as it can be."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from tests.faults.cases import CASES, case, cut_clients, restart_numbering, set_password
from tests.faults.environment import PASSWORD, Environment
from tests.servers import wait_until
from tests.vk import CHAT, PERSON, message

__all__ = ["CASES"]  # with those of cases.py


def push_more_than_vk_keeps(env: Environment, ahead: int = 0) -> range:
    """Push as many updates as VK keeps, and this many more, no faster than the fetchers read them."""
    pushed = env.push(0)
    while len(pushed) < env.vk.kept + ahead:
        pushed = range(pushed.start, env.push(env.vk.kept // 2).stop)
        env.wait_for_polls()
    return pushed


@contextmanager
def newest_on_failed_1(env: Environment, newest: bool) -> Iterator[None]:
    """Let `failed: 1` name VK's newest ts, or the oldest that VK keeps: its documentation can be read both ways."""
    usual, env.vk.newest_on_failed_1 = env.vk.newest_on_failed_1, newest
    try:
        yield
    finally:
        env.vk.newest_on_failed_1 = usual


def outage_then_failover(env: Environment, newest: bool) -> None:
    """Let Redis be down for longer than VK remembers, and come back without 40 acknowledged writes."""
    with newest_on_failed_1(env, newest):
        replica = env.detached_replica()
        env.push(40)
        env.expect(lambda: not env.missing(), what="the acknowledged writes")
        env.down()
        push_more_than_vk_keeps(env, 40)
        env.fail_over(replica)
        env.up()
        env.expect(env.has_arrived, what="everything")


def outage_and_restart(env: Environment, newest: bool) -> None:
    """Kill the fetcher while Redis is down and one update is not on the bus, and let VK forget that update."""
    with newest_on_failed_1(env, newest):
        env.down()
        env.forget(env.push())
        env.wait_for_polls()
        for fetcher in env.fetchers:
            fetcher.restart()
        env.wait_for_polls()
        push_more_than_vk_keeps(env, 40)
        env.up()
        env.expect(env.has_arrived, what="everything")


def restart_of_one(env: Environment, newest: bool) -> None:
    """Kill one of two fetchers while Redis is down, and let it come back first; the other holds what it lacks."""
    with newest_on_failed_1(env, newest):
        stays, killed = env.random.sample(range(2), 2)
        env.down()
        env.push(60)
        env.wait_for_polls()
        env.fetchers[killed].restart()
        env.wait_for_polls()
        pushed = push_more_than_vk_keeps(env, 40)
        env.links[killed].up()
        env.expect(lambda: not set(pushed) & set(env.missing()), what="what both had")
        env.links[stays].up()
        env.expect(env.has_arrived, what="everything")


for outcome, newest in {"": False, ", and VK names its newest ts": True}.items():
    case(f"pair: Redis away, then a failover that lacks acknowledged writes{outcome}", linked=True, quiet=True)(
        partial(outage_then_failover, newest=newest)
    )
    case(f"pair: Redis away, fetchers killed with one update{outcome}", linked=True, quiet=True, forgets=True)(
        partial(outage_and_restart, newest=newest)
    )
    case(
        f"pair: Redis away, one of two fetchers killed and back first{outcome}",
        linked=True,
        quiet=True,
        fetchers=2,
        kills=True,
    )(partial(restart_of_one, newest=newest))


@case(
    "pair: Redis comes back empty, one of two fetchers started meanwhile",
    linked=True,
    quiet=True,
    forgets=True,
    fetchers=2,
)
def come_back_empty(env: Environment) -> None:
    """What the fetcher that was not restarted holds must not count as something that the bus once had."""
    stays, started = env.random.sample(range(2), 2)
    env.down()
    env.fetchers[started].kill()
    env.push(60)
    env.wait_for_polls(env.fetchers[stays])
    env.fetchers[started].start()
    env.wait_for_polls()
    env.push(40)
    env.wait_for_polls()
    env.empty()
    env.links[started].up()
    time.sleep(0.5)
    env.links[stays].up()
    env.expect(env.has_arrived, what="everything")


@case("pair: Redis comes back empty, the fetchers have stayed", linked=True, quiet=True, forgets=True)
def come_back_empty_to_all(env: Environment) -> None:
    env.push(40)
    env.expect(lambda: not env.missing(), what="the acknowledged writes")
    env.down()
    env.push(40)
    env.wait_for_polls()
    env.empty()
    env.up()
    env.expect(lambda: env.letters("lost the checkpoint"), what="the record")
    env.expect(env.has_arrived, what="everything")


@case("pair: Redis is emptied and drops its clients while nobody asks it", quiet=True, forgets=True)
def come_back_empty_unnoticed(env: Environment) -> None:
    """What the fetchers remember is published before what comes next, so VK's order holds."""
    env.push(40)
    env.expect(lambda: not env.missing(), what="the acknowledged writes")
    env.empty()
    env.command(lambda client: client.client_kill_filter(user="default"))
    env.push(3)
    env.expect(lambda: not env.missing(), what="everything")


@case("pair: Redis is emptied, and its clients stay", quiet=True, forgets=True, single=True)
def empty_under_clients(env: Environment) -> None:
    """No connection breaks, but a fetcher still notices that the checkpoint is gone, and restores it."""
    env.push(40)
    env.expect(lambda: not env.missing(), what="the acknowledged writes")
    env.empty()
    env.push(3)
    env.expect(lambda: not env.missing(), what="everything")


@case("pair: Redis back but slow, under traffic", linked=True, splits=True)
def come_back_slow(env: Environment) -> None:
    """While the backlog drains, VK must be polled before it forgets."""
    env.down()
    for _ in range(6):
        env.push(150)
        env.wait_for_polls()
    kept, env.vk.kept = env.vk.kept, env.vk.kept * 2 // 3  # as many as 4 s of traffic bring
    for link in env.links:
        link.delay, link.bandwidth = 0.05, 130_000
    env.up()
    with suppress(AssertionError):  # the traffic goes on, and may keep the link busy
        wait_until(lambda: len(env.missing()) < 50, 7)
    for link in env.links:
        link.delay, link.bandwidth = 0, 0
    env.vk.kept = kept


def failing_lookup(env: Environment, code: int) -> None:
    """Let VK fail for one chat for longer than a batch waits; all events are published while it still fails."""
    (chat,) = env.next_chats(1)
    env.vk.failing[chat] = code
    env.push(3, lambda: message(peer=chat, user=PERSON + env.random.randrange(20)))
    env.push(5)
    env.expect(lambda: not env.missing(), what="all events")
    env.vk.failing.clear()


for code in (10, 29):
    case(f"API: one lookup answered with error {code} for long", quiet=True)(partial(failing_lookup, code=code))


@case("pair: hundreds of long messages held, and a narrow link", linked=True, quiet=True, splits=True)
def narrow_link(env: Environment) -> None:
    """Every commit gets through, however long it takes: a timeout makes the next one smaller."""
    long = "я" * 4096
    env.down()
    for _ in range(4):
        env.push(80, lambda: message(long, user=PERSON, peer=CHAT + 1))
        env.wait_for_polls()
    for link in env.links:
        link.bandwidth = 1_000_000
    env.up()
    env.expect(lambda: not env.missing(), what="all events")
    for link in env.links:
        link.bandwidth = 0


@case("pair: sixty messages that forward a hundred long ones each", quiet=True, splits=True)
def long_forwards(env: Environment) -> None:
    """A live subscriber gets all of them, although Redis drops one that has 32 MB waiting."""
    connections = env.listener.connections
    words = "long words of somebody else " * 120

    def forward() -> dict[str, Any]:
        forwarded = [
            {"from_id": PERSON, "date": 1764500000, "text": words, "conversation_message_id": number, "attachments": []}
            for number in range(100)
        ]
        return message("look", user=PERSON, peer=CHAT + 1, fwd_messages=forwarded)

    pushed = env.push(60, forward)
    env.expect(lambda: not env.missing(), what="all events")
    if env.is_strict:
        wait_until(lambda: set(pushed) <= set(env.listener.heard), 60, "the subscriber's events")
        assert env.listener.connections == connections


@case("pair: password changed for a moment while updates are held", linked=True, quiet=True, fatal=True)
def lock_out_for_a_moment(env: Environment) -> None:
    """Updates in memory matter more than a quick end: the fetchers log the error, try again, and lose nothing."""
    env.down()
    env.push(100)
    env.wait_for_polls()
    wait_for_refusal = env.wait_for_line("password")
    env.command(set_password("other"))
    env.up()
    wait_for_refusal()
    env.command(set_password(PASSWORD))
    env.expect(lambda: not env.missing(), what="all events")
    assert not env.is_strict or all(fetcher.running for fetcher in env.fetchers), env.output


@case("poll: unreadable until the new key", quiet=True, forgets=True)
def unreadable_until_new_key(env: Environment) -> None:
    """A new key may make the unreadable ts readable, so it is polled once more before it is given up."""
    with env.pushing:
        since = env.vk.ts
        env.vk.unreadable.add(str(since))
        env.vk.cut()  # the polls under way would return them
        env.push(30)
    env.expect(lambda: any(ts > since for ts in env.vk.polled_at.values()), what="a poll elsewhere")
    env.vk.unreadable.clear()
    env.expect(lambda: not env.missing(), what="all events")


@case("pair: VK restarts its numbering, then Redis drops its clients", quiet=True, forgets=True, restarts=True)
def restart_numbering_and_cut(env: Environment) -> None:
    """What is committed again belongs to the earlier epoch, and must not move the checkpoint back to it."""
    restart_numbering(env)
    for _ in range(2):
        cut_clients(env)
        env.push(20)
        env.expect(env.has_arrived, what="everything")


@case("pair: VK restarts its numbering, then a failover", linked=True, quiet=True, forgets=True, restarts=True)
def restart_numbering_and_fail_over(env: Environment) -> None:
    replica = env.detached_replica()
    restart_numbering(env)
    env.push(20)
    env.expect(env.has_arrived, what="everything")
    env.down()
    env.push(20)
    env.wait_for_polls()
    env.fail_over(replica)
    env.up()
    env.expect(env.has_arrived, what="everything")
