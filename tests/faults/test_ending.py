"""A soak that is interrupted leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.servers import program, wait_until

PROC = Path("/proc")


def processes_of(directory: Path) -> dict[int, str]:
    """Return the command lines of the processes that use this directory for temporary files, or are in it."""
    found = {}
    for process in PROC.glob("[0-9]*"):
        try:
            here = os.readlink(process / "cwd").startswith(str(directory))  # a server overwrites its environment
            if here or str(directory).encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory for temporary files that marks the processes using it; whatever a test leaves running is killed."""
    yield tmp_path
    for pid in processes_of(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not PROC.exists(), reason="/proc says which processes there are")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_soak_leaves_nothing_behind(number: int, directory: Path) -> None:
    """SIGTERM, Ctrl-C or kill -9 of the first process ends workers, fetchers and servers, and removes their files."""
    command = [sys.executable, "-m", "tests.faults", "--minutes", "30", "--only", "one fetcher", "--seed", "1"]
    environment = os.environ | {"TMPDIR": str(directory)}
    soak = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert soak.stdout
    with soak.stdout as lines:
        assert any("started" in line for line in lines)
        running = " ".join(processes_of(directory).values())
        assert running.count("tests.forks") > 1  # the template of forks, and a fetcher
        assert Path(program()).name in running
        soak.send_signal(number)
        assert soak.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not processes_of(directory), 60, "the end of all processes")
    assert not list(directory.iterdir())
