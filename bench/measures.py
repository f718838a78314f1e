"""The measurements of one contender, in a process of its own and with its own VK and Redis."""

import gc
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from timeit import repeat
from typing import Any

from bench.environment import BATCH, LATENCY, RPS, Contender, Subscriber, VKProcess, own_processor
from fetcher.core.backlog import Pending
from fetcher.core.history import Entry, Name, Position
from fetcher.fastjson import event_to_json, loads
from fetcher.vk.entries import EntryBuilder, ids_to_resolve, with_names
from tests.servers import Proxy, Server, bus_at, wait_until
from tests.vk import GROUP, VK, traffic

PEOPLE, CHATS = 1000, 50
SETTLE_TIME = 1.5  # seconds after the first poll, in which a contender sends its start-up requests
CHUNK = 10_000  # updates that are pushed at once

Values = dict[str, float]


def storm(module: str, count: int, seed: int) -> Values:
    """Push `count` updates from people whose names are unknown, then as many with known names."""
    with environment(module) as (vk, bus, contender):
        at_rest = contender.memory()
        requests = vk.stats()["api"]
        vk.push(traffic(seed, PEOPLE, CHATS, count))
        begun = time.monotonic()
        cold = bus.take(count, contender) - begun
        requests = vk.stats()["api"] - requests
        memory = contender.memory()
        time.sleep(0.2)
        computed = contender.cpu()
        vk.push(traffic(seed + 1, PEOPLE, CHATS, count))
        begun = time.monotonic()
        warm = bus.take(count, contender) - begun
        time.sleep(0.2)
        computed = contender.cpu() - computed
        refused = vk.stats()["too_many"]
    return {
        "cold": count / cold, "requests": 1000 * requests / count, "refused": refused, "warm": count / warm,
        "cpu": 1e6 * computed / count, "memory": memory / 2**20, "at_rest": at_rest / 2**20,
        "limit": 100 * requests / cold / RPS,
    }  # fmt: skip


@contextmanager
def environment(module: str) -> Iterator[tuple[VKProcess, Subscriber, Contender]]:
    """Yield a VK in a process of its own, a subscriber and the contender, once the contender has settled."""
    with (
        Server() as redis, VKProcess() as vk, Subscriber(redis.port) as bus,
        Contender(module, vk.url, redis.url) as contender,
    ):  # fmt: skip
        wait_for_poll(lambda: bool(vk.stats()["polls"]), contender)
        time.sleep(SETTLE_TIME)
        yield vk, bus, contender


def start(module: str) -> Values:
    """Start the contender, and measure the time until its first poll."""
    with Server() as redis, VK(latency=LATENCY, rps=RPS) as vk, Contender(module, vk.url, redis.url) as contender:
        return {"start": first_poll(vk, contender) - contender.started}


def delay(module: str, count: int, known: bool, seed: int) -> tuple[Values, list[float]]:
    """Push `count` updates one at a time; with `known`, they are from people whose names are known.

    VK runs in this process, so that nothing stands between the push and VK's log. Also return the delays, in seconds.
    """
    with (
        own_processor() as own, Server() as redis, VK(latency=LATENCY, rps=RPS, batch=BATCH) as vk,
        Subscriber(redis.port) as bus, Contender(module, vk.url, redis.url, own) as contender,
    ):  # fmt: skip
        first_poll(vk, contender)
        time.sleep(SETTLE_TIME)
        people, chats, rng = 20, 3, random.Random(seed)
        if known:
            vk.push(*traffic(seed, people, chats, 200))
            bus.take(200, contender)
        updates = traffic(seed + 1, people, chats, count)
        gc.collect()
        gc.disable()
        computed = contender.cpu()
        delays = []
        for update in updates:
            time.sleep(rng.uniform(0.005, 0.015))
            begun = time.monotonic()
            vk.push(update)
            delays.append(bus.take(1, contender) - begun)
        computed = contender.cpu() - computed
        gc.enable()
    values = {"delay": 1e3 * median(delays), "single": 1e6 * computed / count}
    return values | {"delay99": 1e3 * sorted(delays)[len(delays) * 99 // 100]}, delays


def growth(module: str, sizes: list[int], seed: int) -> list[tuple[int, Values]]:
    """Push more and more updates to one process; return its memory at each size, and its CPU since the last size."""
    points = []
    with environment(module) as (vk, bus, contender):
        done = 0
        for size in sizes:
            count, computed = size - done, contender.cpu()
            while done < size:
                chunk = min(CHUNK, size - done)
                vk.push(traffic(seed + done, PEOPLE, CHATS, chunk))
                bus.take(chunk, contender)
                done += chunk
            time.sleep(0.2)
            points.append(
                (size, {"memory": contender.memory() / 2**20, "cpu": 1e6 * (contender.cpu() - computed) / count})
            )
    return points


def drain(module: str, count: int, delay: float, seed: int) -> Values:
    """Hold `count` updates while Redis is down; measure the memory then, and later the time from first to last event.

    `delay` is the one-way delay of the link, in seconds. `count` must be below MAX_PENDING: with more, VK is not
    polled.
    """
    with (
        Server() as redis, Proxy(redis.port, delay=delay) as link,
        VK(latency=LATENCY, rps=RPS, batch=BATCH, kept=2 * count) as vk,
        Subscriber(redis.port) as bus, Contender(module, vk.url, link.url) as contender,
    ):  # fmt: skip
        first_poll(vk, contender)
        time.sleep(SETTLE_TIME)
        link.down()
        last = str(vk.push(*traffic(seed, PEOPLE, CHATS, count)))
        wait_until(lambda: any(one.params.get("ts") == last for one in vk.requests[-10:]), 60, "the last poll")
        memory = contender.memory()
        link.up()
        done = bus.take(count, contender)
    return {"drain": done - bus.first_at, "held": memory / 2**20}


def side_by_side(module: str, fetchers: int, count: int, seed: int) -> Values:
    """Let several fetchers of one community work side by side; measure the CPU per event of them all, and of Redis."""
    with (
        Server() as redis,
        redis.client() as client,
        VKProcess() as vk,
        Subscriber(redis.port) as bus,
        ExitStack() as stack,
    ):
        contenders = [stack.enter_context(Contender(module, vk.url, redis.url)) for _ in range(fetchers)]

        def computed() -> tuple[float, float]:
            info = client.info("cpu")
            return sum(contender.cpu() for contender in contenders), info["used_cpu_user"] + info["used_cpu_sys"]

        def settled() -> tuple[float, float]:
            before, now = (-1.0, 0.0), computed()
            while now[0] - before[0] > 0.01:  # the slower ones still commit what is already on the bus
                time.sleep(0.5)
                before, now = now, computed()
            return now

        wait_until(lambda: vk.stats()["polls"] >= fetchers, 60, "the first polls")
        time.sleep(SETTLE_TIME)
        vk.push(traffic(seed, PEOPLE, CHATS, count))
        bus.take(count, contenders[0])
        ours, of_redis = settled()
        vk.push(traffic(seed + 1, PEOPLE, CHATS, count))
        bus.take(count, contenders[0])
        ours_after, of_redis_after = settled()
    return {"cpu": 1e6 * (ours_after - ours) / count, "redis": 1e6 * (of_redis_after - of_redis) / count}


def parts() -> Values:
    """Measure each part of the fetcher's work per event, in microseconds: the least of many runs, or their median."""
    updates = traffic(1, PEOPLE, CHATS, 500)
    answer = json.dumps({"ts": "1", "updates": updates}, ensure_ascii=False).encode()
    nobody: Any = None  # these updates are complete, so nothing has to be looked up
    build = EntryBuilder(nobody, nobody, GROUP, "/!", raw=False).event_of
    events = [event for update in updates if (event := build(update))]
    names = dict.fromkeys(ids_to_resolve(events), Name("Руслан Башинский", "Руслан", "Башинский", "oidaho"))
    named = [with_names(event, names) for event in events]
    entries = [Entry(event.event_id, event.event_type, event_to_json(event)) for event in named]

    def least(work: Callable[[], object], times: int, count: int) -> float:
        return 1e6 * min(repeat(work, number=1, repeat=times)) / count

    figures = {
        "parse": least(lambda: loads(answer), 30, 500),
        "build": least(lambda: [build(update) for update in updates], 30, 500),
        "names": least(lambda: [with_names(event, names) for event in events], 30, 500),
        "write": least(lambda: [event_to_json(event) for event in named], 30, 500),
    }
    with Server() as redis, redis.client() as client:
        bus = bus_at(redis.url, groupid=GROUP)
        bus.read([], Position(0, 1))
        commits = iter(
            [
                Pending("batch", Position(0, number), Position(0, number + 1), entries=[entry])
                for number, entry in enumerate(entries, 1)
            ]
        )
        publish = client.pipeline(transaction=False)
        figures["commit"] = 1e6 * median(repeat(lambda: bus.commit(next(commits)), number=1, repeat=len(entries)))
        figures["publish"] = 1e6 * median(
            repeat(lambda: publish.publish("events:message", answer[:500]).execute(), number=1, repeat=len(entries))
        )
    return figures


def wait_for_poll(polled: Callable[[], bool], contender: Contender) -> None:
    """Wait for the contender's first poll; if it ends instead, exit with what it printed."""
    wait_until(lambda: polled() or contender.process.poll() is not None, 30, "the first poll")
    if not polled():
        raise SystemExit(f"It has ended before its first poll, and printed:\n{contender.errors}")


def first_poll(vk: VK, contender: Contender) -> float:
    """Wait for the first poll, and return when VK received it."""
    polls: list[Any] = []

    def polled() -> bool:
        polls.extend(request.time for request in vk.requests if request.kind == "poll")
        return bool(polls)

    wait_for_poll(polled, contender)
    return float(polls[0])
