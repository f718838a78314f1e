"""`subscribe` and `consume` for `for`: the driver that blocks."""

import time
from collections.abc import Generator
from contextlib import ExitStack
from typing import Any

from redis import Redis, RedisCluster

from ..events import Event
from . import connection as own
from .durable import Durable
from .live import Live
from .steps import Connect, Core, LoopLeft


def subscribe(redis: "Redis | RedisCluster", *event_types: str, bus: str = "events") -> Generator[Event, None, None]:
    """Yield the events of these types, or of all, as they are published, for ever.

    It subscribes when the first event is requested, and again whenever the connection breaks or Redis has been silent
    for 20 seconds. What is published while nobody listens is not kept. A message that is no event is logged and passed
    over. Raise redis.AuthenticationError for a wrong password, redis.ResponseError for a missing permission.
    """
    return drive(redis, Live(bus, event_types))


def consume(
    redis: "Redis | RedisCluster", group: str, consumer: str, bus: str = "events", start: str = "$", idle: float = 60,
    attempts: int | None = None,
) -> Generator[Event, None, None]:  # fmt: skip
    """Yield the stream's events, each at least once to one consumer of the group, for ever.

    An event is acknowledged when the next one is requested: one whose handling ended in `break`, an exception or a
    crash comes again. First comes what this consumer had and did not acknowledge, then what any consumer has left for
    more than `idle` seconds (longer than the handling of an event ever takes), then what is new. A consumer is one
    thread; its name stays the same after a restart. Up to 100 entries are read ahead, as many as were handled in the
    last tenth of a second. What has waited for longer, or was not handed over when the loop is left, is released.

    With `attempts`, an event that was handed over so many times without being acknowledged is moved to the stream
    `{<bus>}:dead-letter:<group>`: fields `event` (the JSON), `id` (the entry's), `attempts`. An attempt is what was
    handed over, not what was read. It is counted in the hash `{<bus>}:attempts:<group>`: the command is written to the
    connection right before the event is handed over, and not waited for. So it counts even if the consumer is killed
    at the first line of its handler. If the connection or the machine breaks before Redis has the command, it does not
    count, and the event comes once more.

    A missing group is created, from the entry id `start` on ("$": new events; "0": all that the stream keeps), but
    from "0" if it was lost under this consumer. What is trimmed or no event is logged, acknowledged and passed over.
    It waits while Redis is unavailable. Raise redis.AuthenticationError for a wrong password, redis.ResponseError for a
    missing permission or a key of another type.
    """
    return drive(redis, Durable(bus, group, consumer, start, idle, attempts))


def drive(redis: Any, core: Core) -> Generator[Event, None, None]:
    """Do what the core says."""
    steps = core.steps()
    result: Any = None
    with ExitStack() as opened:
        while True:
            step = steps.throw(result) if isinstance(result, BaseException) else steps.send(result)
            result = None
            try:
                if isinstance(step, Connect):
                    opened.close()
                    time.sleep(step.delay)
                    if isinstance(redis, RedisCluster):
                        redis.nodes_manager.initialize()  # another node may have the key now
                    connection = own.new_connection(redis, core.key, own.REPLY_TIMEOUT)
                    opened.callback(connection.disconnect)
                    connection.connect()
                    continue
                connection.send_packed_command(connection.pack_commands(step.commands), check_health=False)
                if step.event:
                    yield step.event
                else:
                    result = [connection.read_response(disconnect_on_error=False) for _ in range(step.replies)]
            except BaseException as error:
                result = LoopLeft(error) if isinstance(error, GeneratorExit) else error
