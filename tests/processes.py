"""The fetcher as a process: start it, read its output, stop it or kill it."""

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any, Self

from tests.forks import INHERITED, LIBRARIES, Process, template
from tests.forks import ROOT as ROOT


def environment() -> dict[str, str]:
    """Return the environment that a process of the tests needs, and nothing else."""
    inherited = {
        name: value for name, value in os.environ.items() if name in INHERITED or name.startswith("COVERAGE")
    }  # fmt: skip
    if "COVERAGE_PROCESS_START" in inherited:
        inherited.setdefault("COVERAGE_FILE", str(ROOT / ".coverage"))  # the process's own directory may be removed
    return inherited | {"PYTHONPATH": str(ROOT)}


def uncovered() -> dict[str, str]:
    """Return the same without coverage, which an interrupt could leave waiting forever for a lock of its own."""
    return {name: value for name, value in environment().items() if not name.startswith("COVERAGE")}


class Fetcher:
    """Run the program in a process of its own: Fetcher(VK_URL=vk.url, TOKEN=vk.token, GROUPID=vk.group_id, ...).

    The settings are its whole environment except PATH and the like; those that are None are left out. It runs in a new
    directory, or in `cwd`, which may have a .env file.
    """

    def __init__(
        self, *arguments: str, constants: dict[str, Any] | None = None, cwd: str | Path | None = None,
        start: bool = True, **settings: Any,
    ) -> None:  # fmt: skip
        self.arguments = arguments
        self.settings = settings
        self.constants = constants or {}
        self.lines: list[str] = []  # everything that it has printed, across restarts
        self._own_directory = None if cwd else tempfile.mkdtemp(prefix="fetcher-")
        self.cwd = Path(cwd or self._own_directory or "")
        self._since = 0  # where the lines of the current process begin
        self._printed = threading.Condition()
        self._process: Process | None = None
        self._reader: threading.Thread | None = None
        atexit.register(self.close)
        if start:
            self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it with `settings`, `constants` and `arguments` as they are now."""
        assert not self.running, "it runs already"
        with self._printed:
            self._since = len(self.lines)
        reading, writing = os.pipe()
        printed = open(reading, encoding="utf-8", errors="replace")  # noqa: SIM115  # _read() closes it
        command = ["-m", "tests.run", *self.arguments]
        settings = {name: str(value) for name, value in self.settings.items() if value is not None}
        env = environment() | {"PYTHONUNBUFFERED": "1", "CONSTANTS": json.dumps(self.constants)} | settings
        self._process = template(*LIBRARIES).start(command, self.cwd, env, writing, writing)
        os.close(writing)
        self._reader = threading.Thread(target=self._read, args=(printed,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._printed:
                self.lines.append(line.rstrip("\n"))
                self._printed.notify_all()
        stream.close()

    @property
    def process(self) -> Process:
        assert self._process, "not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """Everything that it has printed, across restarts."""
        with self._printed:
            return "\n".join(self.lines)

    def wait_for(self, text: str, timeout: float = 60, after: int | None = None) -> int:
        """Wait until a line contains the text, and return its index in `lines`.

        Only lines of the current process count, or those that follow the line `after`.
        """
        position = self._since if after is None else after + 1
        deadline = time.monotonic() + timeout
        with self._printed:
            while True:
                for index in range(position, len(self.lines)):
                    if text in self.lines[index]:
                        return index
                position = max(position, len(self.lines))
                reading = self._reader is not None and self._reader.is_alive()
                left = deadline - time.monotonic()
                if left <= 0 or not (reading or self.running):
                    break
                self._printed.wait(min(left, 0.1))
        raise AssertionError(f"{text!r} was not printed within {timeout} s, but:\n{self.output}")

    def wait(self, timeout: float = 60) -> int:
        """Wait until it ends by itself, and return its exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s; it printed:\n{self.output}") from None
        if self._reader:
            self._reader.join(1)  # a child of its own may still hold the pipe
        return code

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def terminate(self, timeout: float = 60) -> int:
        """Send it SIGTERM, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """End it as kill -9 does."""
        self.process.kill()
        self.wait()

    def restart(self) -> None:
        """Kill it, if it still runs, and start it again with `settings`, `constants` and `arguments`."""
        if self.running:
            self.kill()
        self.start()

    def close(self) -> None:
        """Leave nothing behind: no process, no children and no directory."""
        atexit.unregister(self.close)
        if self._process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._reader:
                self._reader.join(1)
        if self._own_directory:
            shutil.rmtree(self._own_directory, ignore_errors=True)
