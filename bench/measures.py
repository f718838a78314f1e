"""What is measured of one contender, in its own process and on its own VK and Redis."""

import gc
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from bench.stage import BATCH, LATENCY, RPS, Contender, Subscriber, VKProcess, apart
from tests.servers import Server, wait_until
from tests.vk import VK, traffic

PEOPLE, CHATS = 1000, 50
SETTLED = 1.5  # seconds after the first poll until a contender has asked whatever it asks at its start
CHUNK = 10_000  # updates that are pushed at once

Values = dict[str, float]


def storm(module: str, count: int, seed: int) -> Values:
    """Push `count` updates of people whom nobody knows yet, then as many of people who are known."""
    with stage(module) as (vk, bus, it):
        asked = vk.stats()["api"]
        vk.push(traffic(seed, PEOPLE, CHATS, count))
        begun = time.monotonic()
        cold = bus.take(count, it) - begun
        asked = vk.stats()["api"] - asked
        memory = it.memory()
        time.sleep(0.2)
        computed = it.cpu()
        vk.push(traffic(seed + 1, PEOPLE, CHATS, count))
        begun = time.monotonic()
        warm = bus.take(count, it) - begun
        time.sleep(0.2)
        computed = it.cpu() - computed
        refused = vk.stats()["too_many"]
    return {
        "cold": count / cold, "asked": 1000 * asked / count, "refused": refused, "warm": count / warm,
        "cpu": 1e6 * computed / count, "memory": memory / 2**20,
    }  # fmt: skip


@contextmanager
def stage(module: str) -> Iterator[tuple[VKProcess, Subscriber, Contender]]:
    """Yield a VK in a process of its own, a subscriber and the contender, once this has settled."""
    with (
        Server() as redis, VKProcess() as vk, Subscriber(redis.port) as bus,
        Contender(module, vk.url, redis.url) as it,
    ):  # fmt: skip
        wait_until(lambda: vk.stats()["polls"], 30, "the first poll")
        time.sleep(SETTLED)
        yield vk, bus, it


def start(module: str) -> Values:
    """Start it, and wait for its first poll."""
    with Server() as redis, VK(latency=LATENCY, rps=RPS) as vk, Contender(module, vk.url, redis.url) as it:
        return {"start": first_poll(vk) - it.started}


def delay(module: str, count: int, known: bool, seed: int) -> tuple[Values, list[float]]:
    """Push `count` updates one at a time; with `known`, of people whose names are known.

    VK lives in this process here: nothing stands between the push and VK's log. Return the delays too, in seconds.
    """
    with (
        apart() as own, Server() as redis, VK(latency=LATENCY, rps=RPS, batch=BATCH) as vk,
        Subscriber(redis.port) as bus, Contender(module, vk.url, redis.url, own) as it,
    ):  # fmt: skip
        first_poll(vk)
        time.sleep(SETTLED)
        people, chats, rng = 20, 3, random.Random(seed)
        if known:
            vk.push(*traffic(seed, people, chats, 200))
            bus.take(200, it)
        updates = traffic(seed + 1, people, chats, count)
        gc.collect()
        gc.disable()
        computed = it.cpu()
        delays = []
        for update in updates:
            time.sleep(rng.uniform(0.005, 0.015))
            begun = time.monotonic()
            vk.push(update)
            delays.append(bus.take(1, it) - begun)
        computed = it.cpu() - computed
        gc.enable()
    values = {"delay": 1e3 * median(delays), "single": 1e6 * computed / count}
    return values | {"delay99": 1e3 * sorted(delays)[len(delays) * 99 // 100]}, delays


def growth(module: str, sizes: list[int], seed: int) -> list[tuple[int, Values]]:
    """Push more and more updates to one process, and tell at each size its memory, and its CPU since the last size."""
    points = []
    with stage(module) as (vk, bus, it):
        done = 0
        for size in sizes:
            count, computed = size - done, it.cpu()
            while done < size:
                chunk = min(CHUNK, size - done)
                vk.push(traffic(seed + done, PEOPLE, CHATS, chunk))
                bus.take(chunk, it)
                done += chunk
            time.sleep(0.2)
            points.append((size, {"memory": it.memory() / 2**20, "cpu": 1e6 * (it.cpu() - computed) / count}))
    return points


def first_poll(vk: VK) -> float:
    """Wait for the first poll, and return when VK got it."""
    polls: list[Any] = []

    def polled() -> bool:
        polls.extend(request.time for request in vk.requests if request.kind == "poll")
        return bool(polls)

    wait_until(polled, 30, "the first poll")
    return float(polls[0])
