"""A consumer's own connection: the consumers' only module that uses redis-py below the level of its clients.

A client waits for the reply to every command or pipeline. If a consumer did, each event would cost a round trip, so it
writes the XACK of one event and hands over the next without waiting. redis-py's Connection allows that, through its
methods connect, pack_commands, send_packed_command, read_response and disconnect. A separate connection also leaves the
client's pool to the handlers, and returns replies in one form, however the client decodes them.
"""

import asyncio
import os
import time
from contextlib import nullcontext, suppress
from typing import Any

from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

REPLY_TIMEOUT = 10.0  # seconds without a reply after which a connection may be dead
DRAIN_INTERVAL = 0.0002  # seconds between two reads of replies that nobody waits for: each takes about 20 µs

# Options of the client that begin like this are dropped, because only the consumer retries.
LEFT_OUT = ("retry", "maint_notifications")


class Connection:
    """A connection with the client's address and credentials. If the client blocks, no coroutine here ever suspends.

    Not every command is worth a round trip, so `send` only queues a command. It is written by `flush`, or with the next
    command whose reply matters, and its reply is read together with the next reply that matters.
    """

    wire: Any = None  # redis-py's connection
    sentinels: tuple[Any, ...] = ()  # in the order of the latest query
    commands: tuple[tuple[Any, ...], ...] = ()  # queued, but not written yet
    unread = 0  # replies to written commands that have not been read yet
    drain_at = 0.0  # when to read those that have arrived

    def __init__(self, client: Any, blocks: bool) -> None:
        """Connect to nothing yet."""
        self.client, self.blocks = client, blocks
        self.limit: Any = nullcontext if blocks else asyncio.timeout  # a blocking socket has its own timeout

    async def connect(self, key: str | None, delay: float) -> None:
        """Disconnect, wait for `delay` seconds, and connect again: in a cluster, to the node of `key`, or to any."""
        self.commands, self.unread = (), 0
        await self.aclose()
        await self.sleep(delay)
        async with self.limit(REPLY_TIMEOUT):
            source = self.client
            if hasattr(source, "nodes_manager"):
                if not self.blocks:
                    # Only once; without it, redis-py would consider the client ready as soon as it knows its nodes.
                    await source.initialize()
                await self.maybe_await(source.nodes_manager.initialize())  # another node may have the key now
                source = source.get_node_from_key(key) if key else source.get_random_node()
                source = getattr(source, "redis_connection", source)  # a node of redis.asyncio has no client
            # A cluster node of redis.asyncio has no pool, but itself has the attributes of one.
            source = getattr(source, "connection_pool", source)
            if manager := getattr(source, "sentinel_manager", None):
                # Begin with another sentinel each time, because the first may be silent. redis-py gets a copy of the
                # list, because it loses sentinels if several consumers change one list at the same time.
                self.sentinels = (*self.sentinels[1:], *self.sentinels[:1]) or tuple(manager.sentinels)
                manager.sentinels = [*self.sentinels]
                for sentinel in manager.sentinels:
                    sentinel.set_retry((Retry if self.blocks else AsyncRetry)(NoBackoff(), 0))
            options = {name: value for name, value in source.connection_kwargs.items() if not name.startswith(LEFT_OUT)}
            options |= {"protocol": 2, "decode_responses": False, "health_check_interval": 0}
            # The database is text instead of a number: see `send`.
            options |= {"socket_timeout": REPLY_TIMEOUT if self.blocks else None, "db": str(options.get("db") or "")}
            self.wire, self.pid = source.connection_class(**options), os.getpid()
            # CLIENT SETINFO would cost round trips.
            self.wire.driver_info = self.wire.lib_name = self.wire.lib_version = None
            await self.maybe_await(self.wire.connect())

    def send(self, *command: Any) -> None:
        """Queue the command: it is written by `flush`, or with the next command whose reply matters."""
        # Convert numbers to text here, because hiredis crashes if a signal arrives while it converts one.
        self.commands += (tuple(str(word) if isinstance(word, int) else word for word in command),)

    async def ask(self, *command: Any) -> Any:
        """Write the command after those that are queued, and return its reply."""
        self.send(*command)
        return (await self.replies())[-1]

    async def replies(self) -> list[Any]:
        """Write the queued commands, and return all replies that are due."""
        async with self.limit(REPLY_TIMEOUT):
            await self.flush()
            replies: list[Any] = []
            while self.unread:
                # Counted down before the reply is read: if reading is interrupted, `aclose` then waits for all replies
                # but the last. It waits because the next connection must not overtake an XACK; it does not wait for the
                # last reply because nobody needs the result of that command any more.
                self.unread -= 1
                replies.append(await self.maybe_await(self.wire.read_response(disconnect_on_error=False)))
            return replies

    async def flush(self) -> None:
        """Write the queued commands."""
        # No replies are expected if writing is interrupted.
        commands, unread, self.commands, self.unread = self.commands, self.unread, (), 0
        await self.maybe_await(self.wire.send_packed_command(self.wire.pack_commands(commands)))
        self.unread = unread + len(commands)

    async def maybe_await(self, result: Any) -> Any:
        """Return the result of a method of redis-py, awaiting it if the method is one of redis.asyncio."""
        return result if self.blocks else await result

    async def sleep(self, delay: float) -> None:
        """Wait for `delay` seconds, which may be 0. Let other tasks run, or else read the replies that have arrived."""
        if not self.blocks:
            await asyncio.sleep(delay)
        elif delay:
            time.sleep(delay)
        # An event loop does this by itself. If the process is killed, unread replies make the kernel reset the
        # connection, and Redis may then drop an XACK that it has not read yet. Nobody needs these replies, to XACK,
        # HDEL or HINCRBY, unless one is an error.
        if self.blocks and time.monotonic() >= self.drain_at:
            while self.unread and self.wire.can_read(0):
                self.unread -= 1
                self.wire.read_response(disconnect_on_error=False)
            self.drain_at = time.monotonic() + DRAIN_INTERVAL

    async def aclose(self) -> None:
        """Write the queued commands and read the replies that are due, then close the connection.

        Redis may drop commands that it has not read when the connection closes.
        """
        try:
            # A forked child must not use its parent's connection.
            if (self.unread or self.commands) and self.pid == os.getpid():
                with suppress(Exception):
                    await self.replies()
        finally:
            if self.wire:
                await self.maybe_await(self.wire.disconnect(True))  # does not wait for unwritten data
