"""A consumer's own connection: the one place that uses redis-py below its clients.

A client waits for the reply to each command or pipeline. A consumer must not: it writes the XACK of one event and hands
over the next, or each event would cost a round trip. redis-py's Connection can do that, with its own methods: connect,
pack_commands, send_packed_command, read_response, disconnect. A connection of its own also leaves the client's pool to
the handlers, and gives replies one form, whatever the client decodes.
"""

import asyncio
import os
import time
from contextlib import nullcontext, suppress
from typing import Any

from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

REPLY_TIMEOUT = 10.0  # seconds without a reply after which a connection is in doubt
CLOSE_TIMEOUT = 3.0  # seconds that a cancelled task waits for replies: Redis may hang

# These replace the client's options, and its options that begin with LEFT_OUT are dropped: the consumer alone retries.
OPTIONS = {"protocol": 2, "decode_responses": False, "health_check_interval": 0}
LEFT_OUT = ("retry", "maint_notifications")


class Connection:
    """A connection with the client's address and credentials. If the client blocks, no coroutine here ever suspends.

    Not every command is worth a round trip: `send` queues one until the next command whose reply matters, or until
    `flush`, and its reply is read with the next one that matters.
    """

    wire: Any = None  # redis-py's connection
    sentinels: tuple[Any, ...] = ()  # in the order in which they are queried next
    commands: tuple[tuple[Any, ...], ...] = ()  # to be written
    due = 0  # replies that are not read yet, to what was written

    def __init__(self, client: Any, blocks: bool) -> None:
        """Connect to nothing yet."""
        self.client, self.blocks = client, blocks
        self.limit: Any = nullcontext if blocks else asyncio.timeout  # a socket that blocks has a timeout of its own

    async def connect(self, key: str | None, delay: float) -> None:
        """Disconnect, wait for `delay` seconds, and connect again: in a cluster to the key's node, or to any."""
        self.commands, self.due = (), 0
        await self.aclose()
        await self.sleep(delay)
        async with self.limit(REPLY_TIMEOUT):
            source = self.client
            if hasattr(source, "nodes_manager"):
                await self.settle(source.nodes_manager.initialize())  # another node may have the key now
                source = source.get_node_from_key(key) if key else source.get_random_node()
                if self.blocks:
                    source = self.client.get_redis_connection(source)
            # A cluster's node in redis.asyncio has no pool, but is like one.
            source = getattr(source, "connection_pool", source)
            if manager := getattr(source, "sentinel_manager", None):
                # The first one may be silent. A copy: redis-py loses some if several consumers change its list at once.
                self.sentinels = (*self.sentinels[1:], *self.sentinels[:1]) or tuple(manager.sentinels)
                manager.sentinels = [*self.sentinels]
                for sentinel in manager.sentinels:
                    sentinel.set_retry((Retry if self.blocks else AsyncRetry)(NoBackoff(), 0))
            options = {name: value for name, value in source.connection_kwargs.items() if not name.startswith(LEFT_OUT)}
            options |= OPTIONS | {"socket_timeout": REPLY_TIMEOUT if self.blocks else None}
            options["db"] = str(options.get("db") or "")  # no number: see `send`
            self.wire, self.pid = source.connection_class(**options), os.getpid()
            # CLIENT SETINFO would cost round trips.
            self.wire.driver_info = self.wire.lib_name = self.wire.lib_version = None
            await self.settle(self.wire.connect())

    def send(self, *command: Any) -> None:
        """Queue the command, to be written with the next one whose reply matters."""
        # hiredis crashes if a signal comes while it turns a number into text.
        self.commands += (tuple(str(word) if isinstance(word, int) else word for word in command),)

    async def ask(self, *command: Any) -> Any:
        """Return the reply to the command."""
        self.send(*command)
        return (await self.replies())[-1]

    async def replies(self) -> list[Any]:
        """Write what was sent, and return the replies that are due."""
        async with self.limit(REPLY_TIMEOUT):
            await self.flush()
            replies: list[Any] = []
            while self.due:
                # Before it is read: if this is interrupted, `aclose` waits for those that come after it, as the next
                # connection must not overtake an XACK, but not for the last one, whose command nobody needs any more.
                self.due -= 1
                replies.append(await self.settle(self.wire.read_response(disconnect_on_error=False)))
            return replies

    async def flush(self) -> None:
        """Write what was sent."""
        commands, due, self.commands, self.due = self.commands, self.due, (), 0  # an interrupted write has no replies
        await self.settle(self.wire.send_packed_command(self.wire.pack_commands(commands)))
        self.due = due + len(commands)

    async def settle(self, result: Any) -> Any:
        """Return what a method of redis-py returned, or await what one of redis.asyncio did."""
        return result if self.blocks else await result

    async def sleep(self, delay: float) -> None:
        """Wait for `delay` seconds. Other tasks get their turn even if it is 0."""
        if not self.blocks:
            await asyncio.sleep(delay)
        elif delay:
            time.sleep(delay)

    async def aclose(self) -> None:
        """Finish what was begun, then close the connection: Redis may drop what it has not read by then."""
        try:
            if (self.due or self.commands) and self.pid == os.getpid():  # a fork has no part in its parent's connection
                with suppress(Exception):
                    async with self.limit(CLOSE_TIMEOUT):
                        await self.replies()
        finally:
            if self.wire:
                await self.settle(self.wire.disconnect(True))  # what cannot be written is not waited for
