"""What matters only to asynchronous consumers: cancelled tasks, a shared event loop, generators that are left early.

The promises of both kinds of consumer are tested in test_subscriber.py.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest
import redis
from redis.asyncio import Redis, RedisCluster

from fetcher import Event
from fetcher.asyncio import consume, subscribe
from fetcher.consumers import connection, durable
from tests import HOST
from tests.servers import Proxy, Server, cluster
from tests.test_subscriber import GROUP, PATIENCE, add, dead_letters, fill, listeners, pending, text, wait_until
from tests.test_subscriber import event as new_event


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    with server.client() as client:
        client.flushall()
        yield client


async def until(true: Callable[[], Any]) -> None:
    """Wait until the condition holds, while the event loop keeps running."""
    await asyncio.to_thread(wait_until, true)


def connections(client: redis.Redis) -> set[str]:
    return {one["id"] for one in client.client_list()}


@pytest.mark.parametrize("read", [lambda own: consume(own, GROUP, "a"), lambda own: subscribe(own, "message")])
def test_a_client_that_blocks_is_refused(server: Server, client: redis.Redis, read: Any) -> None:
    """A blocking client is refused, because it would stop all other tasks until an event arrives."""
    with pytest.raises(TypeError, match="await"):
        asyncio.run(anext(read(client)))


@pytest.mark.parametrize("read", [lambda own: consume(own, GROUP, "a"), lambda own: subscribe(own, "message")])
def test_a_cancelled_task_closes_its_connection(
    server: Server,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Redis], AsyncGenerator[Event, None]],
) -> None:
    """A task that is cancelled while it waits for an event closes its connection at once, even if Redis hangs."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 10 * PATIENCE)
    before = connections(client)

    async def run() -> None:
        async with Redis(host=HOST, port=server.port) as own:
            waiting = asyncio.create_task(anext(read(own)))
            await until(lambda: client.exists("events") or listeners(client))
            server.pause()
            try:
                waiting.cancel()
                async with asyncio.timeout(PATIENCE):
                    with pytest.raises(asyncio.CancelledError):
                        await waiting
            finally:
                server.resume()
            await until(lambda: connections(client) <= before)

    asyncio.run(run())


def test_a_task_cancelled_in_its_handler_leaves_the_event_unacknowledged(server: Server, client: redis.Redis) -> None:
    """The events read ahead are released when the generator is closed, which the event loop does by itself."""
    fill(client, 400)
    before = connections(client)
    got: list[str] = []

    async def work(own: Redis) -> None:
        async for event in consume(own, GROUP, "a", start="0"):
            got.append(event.event_id)
            if len(got) == 251:
                await asyncio.sleep(60)

    async def run() -> None:
        async with Redis(host=HOST, port=server.port) as own:
            task = asyncio.create_task(work(own))
            await until(lambda: len(got) == 251)
            assert len(pending(client, "events")) > 1
            task.cancel()
            await asyncio.wait([task])
            await until(lambda: connections(client) <= before)
            other = consume(own, GROUP, "b")
            assert [(await anext(other)).event_id for _ in range(149)] == [str(id) for id in range(251, 400)]
            await other.aclose()
            again = consume(own, GROUP, "a")
            assert (await anext(again)).event_id == "250"
            await again.aclose()

    asyncio.run(run())


def test_events_read_ahead_are_released_when_a_task_is_cancelled_between_two_events(
    server: Server, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handled events are acknowledged; the next consumer gets the others, for which no attempt is counted."""
    monkeypatch.setattr(durable, "READ_AHEAD_INTERVAL", PATIENCE)
    fill(client, 300)
    got: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def work(own: Redis) -> None:
        async for event in consume(own, GROUP, "a", start="0", attempts=1):
            got.append(event.event_id)
            if len(got) == 150:
                tasks[0].cancel()  # takes effect when the next event is requested

    async def run() -> None:
        async with Redis(host=HOST, port=server.port) as own:
            tasks.append(asyncio.create_task(work(own)))
            await asyncio.wait(tasks)
            other = consume(own, GROUP, "b", attempts=1)
            assert [(await anext(other)).event_id for _ in range(150)] == [str(id) for id in range(150, 300)]
            await other.aclose()

    asyncio.run(run())
    assert got == [str(id) for id in range(150)]
    assert dead_letters(client) == []


def test_a_task_may_be_cancelled_twice(server: Server, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second cancellation ends the wait for Redis to confirm the release of the events read ahead."""
    monkeypatch.setattr(durable, "READ_AHEAD_INTERVAL", PATIENCE)
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 10 * PATIENCE)
    fill(client, 300)

    async def work(own: Redis) -> None:
        got = 0
        async for _ in consume(own, GROUP, "a", start="0"):
            got += 1
            if got == 150:
                server.pause()
                current = asyncio.current_task()
                assert current
                current.cancel()

    async def run() -> None:
        async with Redis(host=HOST, port=server.port) as own:
            task = asyncio.create_task(work(own))
            try:
                await asyncio.wait([task], timeout=0.5)
                assert not task.done()
                task.cancel()
                async with asyncio.timeout(PATIENCE):
                    with pytest.raises(asyncio.CancelledError):
                        await task
            finally:
                server.resume()

    asyncio.run(run())


@pytest.mark.long
def test_an_event_that_no_handler_has_had_never_becomes_a_dead_letter(server: Server, client: redis.Redis) -> None:
    """An event that no handler has had never becomes a dead letter, whenever a task is cancelled.

    Redis is 40 ms away, and a task with a single attempt is cancelled dozens of times.
    """
    fill(client, 100)
    got: list[str] = []

    async def work(own: Redis) -> None:
        async for event in consume(own, GROUP, "a", start="0", attempts=1):
            got.append(event.event_id)

    async def run(port: int) -> None:
        async with Redis(host=HOST, port=port) as own:
            for life in range(36):
                task = asyncio.create_task(work(own))
                await asyncio.sleep(0.15 + 0.012 * (life % 13))
                task.cancel()
                await asyncio.wait([task])
            task = asyncio.create_task(work(own))
            await until(lambda: len({*got, *map(event_id, dead_letters(client))}) == 100)
            task.cancel()
            await asyncio.wait([task])

    def event_id(letter: dict[str, str]) -> str:
        return str(json.loads(letter["event"])["event_id"])

    with Proxy(server.port, delay=0.02) as proxy:
        asyncio.run(run(proxy.port))
    assert dead_letters(client) == []
    assert sorted(map(int, got)) == list(range(100))


def test_a_handled_event_is_not_redelivered_after_a_cancellation(server: Server, client: redis.Redis) -> None:
    """An acknowledgement that is on its way when the task is cancelled is not overtaken by a faster connection."""
    add(client, "events", 1, 2)

    async def run(proxy: Proxy) -> None:
        async with Redis(host=HOST, port=proxy.port) as own:
            events = consume(own, GROUP, "a", start="0")
            assert (await anext(events)).event_id == "1"
            proxy.delay = 0.5
            waiting = asyncio.create_task(anext(events))
            await asyncio.sleep(0.1)
            proxy.delay = 0
            waiting.cancel()
            await asyncio.wait([waiting])
            again = consume(own, GROUP, "a")
            assert (await anext(again)).event_id == "2"
            await again.aclose()

    with Proxy(server.port) as proxy:
        asyncio.run(run(proxy))


def test_a_cancelled_task_waits_for_a_hanging_redis_only_until_the_timeout(
    server: Server, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled task ends even if Redis hangs while an acknowledgement is on its way."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 2.0)
    add(client, "events", 1, 2)

    async def run() -> None:
        async with Redis(host=HOST, port=server.port) as own:
            events = consume(own, GROUP, "a", start="0")
            assert (await anext(events)).event_id == "1"
            server.pause()
            try:
                waiting = asyncio.create_task(anext(events))
                await asyncio.sleep(0.1)
                waiting.cancel()
                async with asyncio.timeout(PATIENCE):
                    await asyncio.wait([waiting])
            finally:
                server.resume()

    asyncio.run(run())


def test_break_leaves_the_event_unacknowledged_and_no_connection_behind(server: Server, client: redis.Redis) -> None:
    first, _ = add(client, "events", 1, 2)
    before = connections(client)

    async def run() -> None:
        async with Redis(host=HOST, port=server.port) as own:
            async for event in consume(own, GROUP, "a", start="0"):
                assert event.event_id == "1"
                break
            await until(lambda: connections(client) <= before)

    asyncio.run(run())
    assert pending(client, "events") == {first: "a"}


@pytest.mark.parametrize("live", [False, True])
def test_other_tasks_run_during_a_storm(server: Server, client: redis.Redis, live: bool) -> None:
    """Other tasks run at each event, even if the handler never waits for anything."""
    fill(client, 1000)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def publish() -> None:
        wait_until(client.pubsub_numpat)
        pipeline = client.pipeline()
        for id in range(1000):
            pipeline.publish("events:message", text(new_event(id)))
        pipeline.execute()

    async def run() -> None:
        async with Redis(host=HOST, port=server.port) as own:
            events = subscribe(own) if live else consume(own, GROUP, "a", start="0")
            publishing = asyncio.create_task(asyncio.to_thread(publish if live else client.ping))
            assert (await anext(events)).event_id == "0"
            await publishing  # all events are published before they are requested
            other = asyncio.create_task(count_turns())
            for id in range(1, 1000):
                assert (await anext(events)).event_id == str(id)
            await events.aclose()
        other.cancel()

    asyncio.run(run())
    assert turns >= 999


def test_one_client_serves_several_tasks(server: Server, client: redis.Redis) -> None:
    """One client serves listeners, workers and the handlers' own commands side by side."""
    fill(client, 100)
    heard: list[str] = []

    async def listen(own: Redis) -> None:
        async for event in subscribe(own, "message"):
            heard.append(event.event_id)

    async def work(own: Redis, name: str) -> None:
        async for event in consume(own, GROUP, name, start="0"):
            await own.publish("events:message", text(new_event(event.event_id)))
            await own.sadd("handled", event.event_id)

    async def run() -> None:
        # With a timeout, the handlers' own commands may swallow a cancellation, because wait_for() does in Python 3.11.
        async with Redis(host=HOST, port=server.port, socket_timeout=None) as own:
            listening = asyncio.create_task(listen(own))
            await until(lambda: listeners(client))
            tasks = [listening, *(asyncio.create_task(work(own, name)) for name in "abc")]
            await until(lambda: client.scard("handled") == 100 and len(heard) >= 100)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    asyncio.run(run())
    assert sorted(map(int, heard)) == list(range(100))


def test_an_event_is_of_the_same_kind(server: Server, client: redis.Redis) -> None:
    add(client, "events", "ид")

    async def run() -> Event:
        async with Redis(host=HOST, port=server.port) as own:
            async for event in consume(own, GROUP, "a", start="0"):
                return event
        raise AssertionError

    given = asyncio.run(run())
    assert type(given) is Event
    assert given.as_dict() == new_event("ид").as_dict()


def test_handlers_may_use_the_cluster_client_of_their_consumer() -> None:
    """Each handler runs commands on the client that it gave to `consume`, and closing the client closes everything."""

    async def handle(nodes: list[Server], writer: Any, opened: Callable[[], list[set[str]]]) -> None:
        assert not writer.get("handled")
        before = opened()
        client = RedisCluster(HOST, nodes[0].port)
        events = consume(client, GROUP, "a", start="0")
        async with contextlib.aclosing(client), contextlib.aclosing(events):
            for number in (1, 2, 3):
                event = await anext(events)
                await client.set("handled", event.event_id)
                assert writer.get("handled") == str(number).encode()
        await until(lambda: all(map(set.issubset, opened(), before)))

    with cluster() as nodes, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(node.client()) for node in nodes]
        writer = redis.RedisCluster(HOST, nodes[0].port)
        add(writer, "events", 1, 2, 3)
        asyncio.run(handle(nodes, writer, lambda: [*map(connections, clients)]))
