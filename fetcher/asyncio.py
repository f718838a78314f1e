"""`subscribe` and `consume` for `async for`, over the clients of redis.asyncio: the other driver of the same core."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from redis.asyncio import Redis, RedisCluster

from .consumers import connection as own
from .consumers.durable import Durable
from .consumers.live import Live
from .consumers.steps import Connect, Core, LoopLeft
from .events import Event


def subscribe(redis: "Redis | RedisCluster", *event_types: str, bus: str = "events") -> AsyncGenerator[Event, None]:
    """Yield the events of these types, or of all, as they are published: see `fetcher.subscribe`."""
    return drive(redis, Live(bus, event_types))


def consume(
    redis: "Redis | RedisCluster", group: str, consumer: str, bus: str = "events", start: str = "$", idle: float = 60,
    attempts: int | None = None,
) -> AsyncGenerator[Event, None]:  # fmt: skip
    """Yield the stream's events, each at least once: see `fetcher.consume`. A consumer is one task."""
    return drive(redis, Durable(bus, group, consumer, start, idle, attempts))


async def drive(redis: Any, core: Core) -> AsyncGenerator[Event, None]:
    """Do what the core says."""
    steps = core.steps()
    result: Any = None
    async with AsyncExitStack() as opened:
        while True:
            step = steps.throw(result) if isinstance(result, BaseException) else steps.send(result)
            result = None
            try:
                if isinstance(step, Connect):
                    await opened.aclose()
                    await asyncio.sleep(step.delay)
                    async with asyncio.timeout(own.REPLY_TIMEOUT):
                        if isinstance(redis, RedisCluster):
                            await redis.nodes_manager.initialize()  # another node may have the key now
                        connection = own.new_connection(redis, core.key, None)
                        opened.push_async_callback(connection.disconnect, nowait=True)
                        await connection.connect()
                    continue
                await connection.send_packed_command(connection.pack_commands(step.commands), check_health=False)
                if step.event:
                    yield step.event
                elif step.replies:
                    async with asyncio.timeout(own.REPLY_TIMEOUT):
                        replies = range(step.replies)
                        result = [await connection.read_response(disconnect_on_error=False) for _ in replies]
                else:
                    await asyncio.sleep(0)  # other tasks have their turn, even if the handler waits for nothing
            except BaseException as error:
                result = LoopLeft(error) if isinstance(error, GeneratorExit | asyncio.CancelledError) else error
