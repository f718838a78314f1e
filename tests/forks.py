"""Python processes for the price of a fork: one process imports the libraries once, and the others are copies of it.

A copy is a process like any other, with an environment, a directory, files, a session, signals and an exit code of its
own. It imports whatever it runs; only the libraries are already there.
"""

import array
import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
INHERITED = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
LIBRARIES = ("argparse", "dotenv", "orjson", "prometheus_client", "redis.asyncio", "requests", "vk_api.bot_longpoll")
# Settings that a copy cannot adopt, because its Python already runs.
BEFORE_START = ("PYTHON", "LANG", "LC_", "LD_", "TZ")
MAX_FILES = 4  # stdin, stdout, stderr, and the socket for requests and replies
NUMBER, SIZE = "q", 8  # how a pid and an exit code are sent, in bytes


class Fork:
    """A copy, with those methods of subprocess.Popen that the tests use."""

    def __init__(self, pid: int, answers: socket.socket) -> None:
        self.pid = pid
        self._answers = answers

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the process runs."""
        try:  # the reply stays in the socket for the next caller
            return number(self._answers.recv(SIZE, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended, or raise subprocess.TimeoutExpired."""
        wait([self._answers], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = Fork | subprocess.Popen[bytes]


def number(answer: bytes) -> int:
    """Return the number in an answer, or -SIGKILL if there is none: the template has ended and killed its copies."""
    numbers = array.array(NUMBER, answer)
    return numbers[0] if numbers else -signal.SIGKILL


class Template:
    """A Python process that has imported these modules; it lives as long as this process."""

    def __init__(self, modules: Sequence[str]) -> None:
        if "COVERAGE_PROCESS_START" in os.environ:
            modules = [*modules, "coverage"]
        inherited = {name: value for name, value in os.environ.items() if name in INHERITED}
        self.environment = inherited | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(theirs.fileno()), *modules],
                cwd=ROOT, env=self.environment, pass_fds=[theirs.fileno()], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(self.close)

    def start(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: int, stderr: int) -> Process:
        """Run Python with these arguments, `-m module` or `-c code` first, in a session of its own."""
        if before_start(env) != before_start(self.environment):
            return subprocess.Popen(
                [sys.executable, *arguments], cwd=cwd, env=env, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            )  # fmt: skip
        request = json.dumps({"arguments": [*arguments], "cwd": str(cwd), "env": {**env}}).encode() + b"\n"
        answers, theirs = socket.socketpair()
        with theirs, open(os.devnull) as nothing:
            socket.send_fds(self._requests, [b"."], [nothing.fileno(), stdout, stderr, theirs.fileno()])
        answers.sendall(request)
        return Fork(number(answers.recv(SIZE)), answers)

    def close(self) -> None:
        """End the template, and all copies that are left."""
        self._requests.close()
        with contextlib.suppress(SystemExit):  # raised by a signal at the end of a soak
            self._process.wait()


def before_start(env: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that Python reads before it runs anything, except the one that reopened() reads."""
    return {name: env[name] for name in env if name.startswith(BEFORE_START) and name != "PYTHONUNBUFFERED"}


@functools.cache
def template(*modules: str) -> Template:
    """Return this process's template with these modules."""
    return Template(modules)


def serve(requests: socket.socket) -> list[int]:
    """Fork at each request, and return the requested files in the copy; exit when no client is left."""
    running: dict[int, socket.socket] = {}  # by pid: where the exit code is sent
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready = wait([requests, woken])
        if woken in ready:
            os.read(woken, 4096)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    report(running.pop(pid), os.waitstatus_to_exitcode(status))
        if requests in ready:
            data, files, _, _ = socket.recv_fds(requests, 1, MAX_FILES)
            if not data:
                break
            pid = os.fork()
            if not pid:
                requests.detach()
                for answers in running.values():
                    answers.detach()
                return files
            *others, theirs = files
            for file in others:
                os.close(file)
            running[pid] = socket.socket(fileno=theirs)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    sys.exit()


def report(client: socket.socket, number: int) -> None:
    """Send a number to the process that requested the copy, if it still exists."""
    with contextlib.suppress(OSError):
        client.sendall(array.array(NUMBER, [number]))


def reopened(file: int, like: TextIO) -> TextIO:
    """Open stdout or stderr as Python does when it starts, because it may now be a pipe, a file or a terminal."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    raw = open(file, "wb", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    by_line = file == 2 or os.isatty(file)
    return io.TextIOWrapper(raw, like.encoding, like.errors, line_buffering=by_line, write_through=unbuffered)


def become(files: list[int]) -> None:
    """Run as the requested process, from its start to its end."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=files[-1]) as client, client.makefile() as lines:
        request = json.loads(lines.readline())
        report(client, os.getpid())  # only now does it have a session of its own
        for number, file in enumerate(files[:-1]):
            os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdout, sys.stderr = reopened(1, sys.stdout), reopened(2, sys.stderr)
    if "COVERAGE_PROCESS_START" in os.environ:
        importlib.import_module("coverage").process_startup()
    option, program, *arguments = request["arguments"]
    sys.path[0] = request["cwd"]
    sys.argv = [option, *arguments]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), vars(main))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        for module in sys.argv[2:]:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # otherwise the end of each copy would cost as much as the fork saves at its start
        files = serve(requests)
    become(files)
