"""Three real sentinels that watch a primary and its replica, for tests of redis+sentinel:// addresses."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import redis

from tests import HOST, free_port
from tests.servers import Server, program, wait_until

MASTER = "mymaster"
QUORUM = 2


class Sentinel:
    """Run one sentinel; `lines` replace the usual lines of its configuration.

    With a password of its own, it admits only the other sentinels.
    """

    def __init__(self, primary: Server, password: str | None = None, lines: list[str] | None = None) -> None:
        self.port = free_port()
        self.password = password
        self.directory = Path(tempfile.mkdtemp(prefix="sentinel-"))
        lines = lines or [
            f"sentinel monitor {MASTER} {HOST} {primary.port} {QUORUM}",
            f"sentinel down-after-milliseconds {MASTER} 500",
            f"sentinel failover-timeout {MASTER} 3000",
        ]
        lines = [f"port {self.port}", f"bind {HOST}", f"dir {self.directory}", "daemonize no", *lines]
        lines += [f"sentinel auth-pass {MASTER} {primary.password}"] if primary.password else []
        lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"] if password else []
        (self.directory / "sentinel.conf").write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def client(self) -> Any:
        return redis.Redis(HOST, self.port, decode_responses=True, password=self.password, socket_timeout=5)

    def start(self) -> None:
        """Start it with what it knew before."""
        arguments = [program(), str(self.directory / "sentinel.conf"), "--sentinel"]
        self._process = subprocess.Popen(
            arguments, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with self.client() as client:
            wait_until(client.ping, what="the sentinel's answer")

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def has_found_all(self) -> bool:
        """Return whether it has found the replica and the other sentinels."""
        with self.client() as client:
            state = client.sentinel_masters()[MASTER]
        return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == 2 and state["is_master"])

    def primary_port(self) -> int:
        """Return the port of the server that it considers the primary."""
        with self.client() as client:
            return int(client.sentinel_masters()[MASTER]["port"])


class Watched:
    """A primary, its replica, and the three sentinels; a failover swaps the servers' roles."""

    def __init__(self, servers: list[Server], sentinels: list[Sentinel]) -> None:
        self.servers, self.sentinels = servers, sentinels

    def url(self, password: str = "", name: str = MASTER, query: str = "") -> str:
        """Return the address; `password` is that of the servers."""
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{f':{password}@' if password else ''}{hosts}/{name}/0{query}"

    @property
    def primary(self) -> Server:
        """The server that the majority of the sentinels considers the primary."""
        ports = [sentinel.primary_port() for sentinel in self.sentinels]
        return next(server for server in self.servers if ports.count(server.port) >= QUORUM)


@contextlib.contextmanager
def sentinels(password: str | None = None, sentinel_password: str | None = None) -> Iterator[Watched]:
    """Run a primary, a replica that follows it, and three sentinels that know each other; takes about five seconds."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(password=password, aof=True)) for _ in range(2)]
        servers[1].replica_of(servers[0])
        watching = [stack.enter_context(Sentinel(servers[0], sentinel_password)) for _ in range(3)]
        wait_until(lambda: all(sentinel.has_found_all() for sentinel in watching), 30, "what the sentinels know")
        yield Watched(servers, watching)
