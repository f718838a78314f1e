"""The other end of the bus for `async for`: the same two names, over the clients of redis.asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis, RedisCluster

from . import subscriber
from .events import Event
from .subscriber import ERRORS, Command, Durable, Live, Reconnect, connection_of


def subscribe(redis: "Redis | RedisCluster", *event_types: str, bus: str = "events") -> AsyncGenerator[Event, None]:
    """Yield the events of these types, or of all, as they are published: see `fetcher.subscribe`."""
    return drive(redis, Live(bus, event_types))


def consume(
    redis: "Redis | RedisCluster", group: str, consumer: str, bus: str = "events", start: str = "$", idle: float = 60,
    attempts: int | None = None,
) -> AsyncGenerator[Event, None]:  # fmt: skip
    """Yield the stream's events, each to one consumer of the group: see `fetcher.consume`. A consumer is one task."""
    return drive(redis, Durable(bus, group, consumer, start, idle, attempts))


async def locate(redis: Any, key: str | None, failed: bool) -> Any:
    """Make a connection; in a cluster to the key's node, or to any; after a failure ask where they are now."""
    if not hasattr(redis, "get_node_from_key"):
        return connection_of(redis.connection_pool, None)
    await redis.initialize()
    if failed:
        await redis.nodes_manager.initialize()
    node = redis.get_node_from_key(key) if key else redis.get_random_node()
    return connection_of(node, None)


async def exchange(connection: Any, commands: Sequence[Command], replies: int) -> list[Any]:
    """Send the commands, and return so many replies."""
    if commands:
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        await asyncio.sleep(0)  # other tasks have their turn, even if the handler waits for nothing
    if not replies:
        return []
    async with asyncio.timeout(subscriber.SILENCE):
        return [await connection.read_response(disconnect_on_error=False) for _ in range(replies)]


async def drive(redis: Any, core: Live | Durable) -> AsyncGenerator[Event, None]:
    """Do what the core says."""
    steps, connection, failed = core.steps(), None, False
    result: Any = None
    try:
        while True:
            step = steps.throw(result) if isinstance(result, Exception) else steps.send(result)
            result = None
            if isinstance(step, Event):
                try:
                    yield step
                except GeneratorExit:
                    with suppress(*ERRORS):
                        await exchange(connection, *core.farewell())
                    raise
            elif isinstance(step, Reconnect):
                if connection:
                    await connection.disconnect(nowait=True)
                connection, failed = None, True
                await asyncio.sleep(step.delay)
            else:
                try:
                    if not connection:
                        async with asyncio.timeout(subscriber.SILENCE):
                            connection = await locate(redis, core.key, failed)
                            await connection.connect()
                    result = await exchange(connection, *step)
                except Exception as error:
                    result = error
    finally:
        if connection:
            await connection.disconnect(nowait=True)
