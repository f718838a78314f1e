"""How fast events are consumed, next to a bare loop on the same server: `python -m bench.consumers`.

The bare loops read JSON with the same function, so that what is compared is the reading of the bus.
"""

import argparse
import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from hashlib import sha1
from statistics import median
from typing import Any

import redis

import fetcher.asyncio
from fetcher import Event, Message, Peer, User, consume, subscribe
from fetcher.fastjson import loads
from tests import HOST
from tests.servers import Server, wait_until

GROUP, CHANNEL = "bench", "events:message"
BARE_STREAM, BARE_CHANNEL = "bare XREADGROUP COUNT 100", "bare listen()"
GOALS = {  # the least share of a bare loop's rate
    "consume": (BARE_STREAM, 1 / 3),
    "fetcher.asyncio.consume": (BARE_STREAM, 1 / 6),
    "subscribe": (BARE_CHANNEL, 1 / 2),
    "fetcher.asyncio.subscribe": (BARE_CHANNEL, 1 / 6),
}


def bare_stream(client: Any) -> Generator[Event, None, None]:
    """Yield a hundred events at a time, parsed and typed, and acknowledge them together."""
    while True:
        ((_, entries),) = client.xreadgroup(GROUP, "bare", {"events": ">"}, count=100)
        for _, fields in entries:
            yield Event.from_dict(loads(fields[b"event"]))
        client.xack("events", GROUP, *(id for id, _ in entries))


def bare_channel(client: Any) -> Generator[Any, None, None]:
    """Yield the published JSON, parsed."""
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(CHANNEL)
        for message in pubsub.listen():
            yield loads(message["data"])


STREAM: dict[str, Callable[[Any], Generator[Any, None, None] | AsyncGenerator[Event, None]]] = {
    BARE_STREAM: bare_stream,
    "consume": lambda client: consume(client, GROUP, "a"),
    "consume with attempts": lambda client: consume(client, GROUP, "a", attempts=3),
    "fetcher.asyncio.consume": lambda client: fetcher.asyncio.consume(client, GROUP, "a"),
}
CHANNELS: dict[str, Callable[[Any], Generator[Any, None, None] | AsyncGenerator[Event, None]]] = {
    BARE_CHANNEL: bare_channel,
    "subscribe": lambda client: subscribe(client, "message"),
    "fetcher.asyncio.subscribe": lambda client: fetcher.asyncio.subscribe(client, "message"),
}


def measure(events: int, rounds: int) -> dict[str, float]:
    """Return each contender's median rate in events a second; in each round, all take turns on one server."""
    rates: dict[str, list[float]] = {name: [] for name in (*STREAM, *CHANNELS)}
    texts = [text(number) for number in range(events)]
    with Server() as server, server.client() as client:
        pipeline = client.pipeline(transaction=False)
        for each in texts:
            pipeline.xadd("events", {"event": each})
        pipeline.execute()
        for _ in range(rounds):
            for name, read in STREAM.items():
                client.xgroup_create("events", GROUP, "0")
                rates[name].append(rate(read, server.port, events))
                client.xgroup_destroy("events", GROUP)
            for name, read in CHANNELS.items():
                publishing = threading.Thread(target=publish, args=(client, server.port, texts))
                publishing.start()
                rates[name].append(rate(read, server.port, events))
                publishing.join()
    return {name: median(values) for name, values in rates.items()}


def text(number: int) -> str:
    """Return the JSON of an event of usual size."""
    user = User(206295116 + number % 1000, "Руслан Башинский", "Руслан", "Башинский", f"id{number % 1000}")
    message = Message(number, f"Сообщение номер {number}, какие пишут в беседах", None, [], ["photo"])
    event = Event(
        "message",
        sha1(str(number).encode()).hexdigest(),
        user,
        Peer(2000000002, 2, "FUNCKA | TOASTER | DEV | CHAT"),
        message,
    )
    return json.dumps(event.as_dict(), ensure_ascii=False)


def rate(read: Callable[[Any], Any], port: int, events: int) -> float:
    """Take this many events, and return how many arrived per second after the first one."""

    def take() -> float:
        with redis.Redis(HOST, port) as client, closing(read(client)) as reading:
            next(reading)
            begun = time.perf_counter()
            for _ in itertools.islice(reading, events - 1):
                pass
            return time.perf_counter() - begun

    async def take_asynchronously() -> float:
        async with redis.asyncio.Redis(host=HOST, port=port) as client, aclosing(read(client)) as reading:
            await anext(reading)
            begun = time.perf_counter()
            for _ in range(events - 1):
                await anext(reading)
            return time.perf_counter() - begun

    asynchronous = read in (STREAM["fetcher.asyncio.consume"], CHANNELS["fetcher.asyncio.subscribe"])
    return (events - 1) / (asyncio.run(take_asynchronously()) if asynchronous else take())


def publish(client: redis.Redis, port: int, texts: list[str]) -> None:
    """Publish everything at once when there is a subscriber, so that only the server has work left."""
    start = f"*3\r\n$7\r\nPUBLISH\r\n${len(CHANNEL)}\r\n{CHANNEL}\r\n".encode()
    bodies = [text.encode() for text in texts]
    commands = b"".join(b"%s$%d\r\n%s\r\n" % (start, len(body), body) for body in bodies)
    wait_until(lambda: client.pubsub_numsub(CHANNEL)[0][1] == 1)
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(b"CLIENT REPLY OFF\r\n" + commands)
    wait_until(lambda: client.pubsub_numsub(CHANNEL)[0][1] == 0, 60)


def report(rates: dict[str, float]) -> str:
    """Return the table in Markdown."""
    lines = ["| consumer | events/s | of the bare loop | goal |", "| --- | ---: | ---: | ---: |"]
    for name, value in rates.items():
        bare, goal = GOALS.get(name, (BARE_STREAM if name in STREAM else BARE_CHANNEL, 0))
        part = value / rates[bare]
        target = f"at least {goal:.2f}{'' if part >= goal else ' (missed)'}" if goal else ""
        lines.append(f"| {name} | {value:,.0f} | {part:.2f} | {target} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(report(measure(options.events, options.rounds)))


if __name__ == "__main__":
    main()
