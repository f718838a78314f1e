"""What every measurement needs: a contender as a process, VK as one, and a subscriber that costs next to nothing."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests import HOST
from tests.vk import GROUP, TOKEN

ROOT = Path(__file__).resolve().parent.parent
LATENCY, RPS, BATCH = 0.05, 20, 100  # seconds of an API answer, API requests a second, updates in an answer of the poll
DELIVERY_TIMEOUT = 900.0  # seconds that a contender may take for what was pushed at once


class Process:
    """A module of this repository, run by this Python in a new directory."""

    def __init__(self, *arguments: str, processors: Iterable[int] = (), **settings: str) -> None:
        """Start it, on these processors if any are given; `settings` are its environment, besides PATH and the like."""
        everywhere = os.sched_getaffinity(0)
        self.directory = tempfile.mkdtemp(prefix="bench-")
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        with Path(self.directory, "errors").open("wb") as errors:
            os.sched_setaffinity(0, processors or everywhere)  # the new process inherits this
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=self.directory, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, env={"PYTHONPATH": str(ROOT)} | inherited | settings,
            )  # fmt: skip
            os.sched_setaffinity(0, everywhere)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def errors(self) -> str:
        """What it has printed to standard error."""
        return Path(self.directory, "errors").read_text(errors="replace")

    def cpu(self) -> float:
        """Return the CPU time of all its threads so far, user and system, in seconds."""
        return time.clock_gettime(~self.process.pid << 3 | 2)  # clock_getcpuclockid(3)

    def memory(self) -> int:
        """Return its resident memory in bytes."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(rollup.split("Rss:")[1].split()[0]) * 1024


class Contender(Process):
    """One of the programs that are compared."""

    def __init__(self, module: str, vk_url: str, redis_url: str, processors: Iterable[int] = ()) -> None:
        """Start it on this VK and this Redis."""
        settings = {"TOKEN": TOKEN, "GROUPID": str(GROUP), "BUS": "events"}
        super().__init__(module, processors=processors, VK_URL=vk_url, REDIS_URL=redis_url, **settings)


@contextlib.contextmanager
def own_processor() -> Iterator[set[int]]:
    """Yield a processor for the contender; until the end, this thread and what it starts use the others.

    With few processors, a woken subscriber would otherwise wait while the contender makes its next poll.
    """
    everywhere = os.sched_getaffinity(0)
    own = {max(everywhere)}
    os.sched_setaffinity(0, everywhere - own or everywhere)
    try:
        yield own
    finally:
        os.sched_setaffinity(0, everywhere)


class VKProcess(Process):
    """The VK of the tests, as a process."""

    def __init__(self) -> None:
        """Start it."""
        options = {"latency": LATENCY, "rps": RPS, "batch": BATCH, "kept": 25_000}
        super().__init__("tests.vk", *(str(part) for name, value in options.items() for part in (f"--{name}", value)))
        assert self.process.stdout
        self.url = self.process.stdout.readline().decode().strip()
        self.connection = http.client.HTTPConnection(urlsplit(self.url).netloc)

    def push(self, updates: list[Any]) -> None:
        """Add the updates to VK's log."""
        self.connection.request("POST", "/push", json.dumps(updates))
        self.connection.getresponse().read()

    def stats(self) -> Any:
        """Return figures about the requests that VK got."""
        self.connection.request("GET", "/stats")
        return json.loads(self.connection.getresponse().read())


class Subscriber:
    """Counts what is published, and does nothing else."""

    MARK = b"$8\r\npmessage\r\n"

    def __init__(self, port: int) -> None:
        """Listen to every channel of the bus."""
        self.socket = socket.create_connection((HOST, port))
        self.socket.settimeout(1)
        self.socket.sendall(b"PSUBSCRIBE events:*\r\n")
        self.rest = b""
        self.first_at = 0.0  # when the first event of the latest take() arrived
        self.socket.recv(1000)
        self.due = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def take(self, count: int, contender: Process) -> float:
        """Wait for this many more events, and return when the last one arrived."""
        due = self.due = self.due + count
        deadline = time.monotonic() + DELIVERY_TIMEOUT
        while self.due > 0:
            with contextlib.suppress(TimeoutError):
                data = self.rest + self.socket.recv(262144)
                if self.due == due:
                    self.first_at = time.monotonic()
                self.due -= data.count(self.MARK)
                self.rest = data[1 - len(self.MARK) :]
            if time.monotonic() > deadline or contender.process.poll() is not None:
                raise SystemExit(f"{self.due} of {count} events are missing; it printed:\n{contender.errors}")
        if self.due < 0:
            raise SystemExit(f"{-self.due} events too many")
        return time.monotonic()
