"""A VK that records what it gave to whom, to tell losses from updates that no fetcher ever had."""

import io
import itertools
import json
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.processes import ROOT, Fetcher
from tests.vk import VK, Fault
from tests.vk.updates import Json

SHORT = {  # seconds; the program's own are too long for a test
    "fetcher.bus.connection:TIMEOUT": 1.0,
    "fetcher.core.relay:HEARTBEAT_INTERVAL": 0.5,
    "fetcher.core.relay:DRAIN_TIME": 0.3,
    "fetcher.core.relay:MIN_BACKOFF": 0.1,
    "fetcher.core.relay:MAX_BACKOFF": 0.3,
    "fetcher.core.relay:NAMES_TIMEOUT": 1.0,
    "fetcher.vk.api:API_TIMEOUT": 1.0,
    "fetcher.vk.api:MIN_PAUSE": 0.1,
    "fetcher.vk.api:MAX_PAUSE": 0.3,
    "fetcher.vk.longpoll:API_TIMEOUT": 1.0,
    "fetcher.vk.longpoll:UNREADABLE_TIMEOUT": 1.0,
    "fetcher.vk.longpoll:KEY_INTERVAL": 0.1,
    "fetcher.vk.longpoll:RETRY_INTERVAL": 0.5,
}


class Version(NamedTuple):
    """A version of the program: its name, where its source is, and which of its constants have other values."""

    name: str
    root: Path
    constants: dict[str, Any]

    @property
    def as_it_is(self) -> "Version":
        """The same version with its own constants."""
        return self._replace(constants={})


PRINT_VERSION = """
import json, fetcher
from tests.faults.recording import SHORT
print(json.dumps([fetcher.__version__, SHORT]))
"""
THIS = Version("this version", ROOT, SHORT)


@contextmanager
def version_of(revision: str) -> Iterator[Version]:
    """Unpack a git revision into a directory that lasts as long as the context; its own tests name its constants."""
    with tempfile.TemporaryDirectory(prefix="version-") as directory:
        packed = subprocess.run(["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(directory, filter="data")
        command = [sys.executable, "-c", PRINT_VERSION]
        answer = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, check=True).stdout
        name, constants = json.loads(answer)
        yield Version(name, Path(directory), constants)


def number_of(event_id: str) -> int:
    """Return the number of an update, which is its event_id."""
    return int(event_id, 16)


class RecordingVK(VK):
    """A VK whose clients each have a token of their own, and which knows what a client certainly has.

    A client has the updates of an answer once it polls at the end of that answer; what was lost on the way does not
    count. But if the answer ends at the ts of a key, the client may have that ts from the key.
    """

    def __init__(self, **options: Any) -> None:
        self.recording = threading.Lock()
        self.numbers = itertools.count(1)
        self.owners: dict[str, str] = {}  # the token with which each key was taken
        # By token: the ts after an answer, and the numbers of its updates.
        self.given: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
        self.had: defaultdict[str, set[int]] = defaultdict(set)  # by token
        self.polled_at: dict[str, int] = {}  # by token: the ts of the latest poll
        super().__init__(**options)

    def new_token(self) -> str:
        """Return a token that no other client has."""
        return f"{self.token}-{next(self.numbers)}"

    def ask(self, name: str, params: Json) -> tuple[Fault | None, Any]:
        """Answer a request of the API, and remember which client took a key."""
        token = params.get("access_token", "")
        if token.startswith(f"{self.token}-"):
            params = params | {"access_token": self.token}
        fault, answer = super().ask(name, params)
        if name == "groups.getLongPollServer" and isinstance(answer, dict):
            response = answer.get("response")
            if isinstance(response, dict):
                self.owners[response["key"]] = token
                with self.recording:
                    self.given[token].pop(str(response["ts"]), None)
        return fault, answer

    def poll(self, params: Json) -> tuple[Fault | None, Any]:
        """Answer a request of the long poll, and remember what was given."""
        owner, ts = self.owners.get(params.get("key", ""), ""), params.get("ts", "")
        with self.recording:
            self.had[owner].update(self.given.pop(owner, {}).get(ts, ()))
            self.polled_at[owner] = int(ts)
        fault, answer = super().poll(params)
        if fault is None and isinstance(answer, dict) and answer.get("updates"):
            numbers = [number_of(update["event_id"]) for update in answer["updates"]]
            with self.recording:
                self.given[owner][str(answer["ts"])] = numbers
        return fault, answer

    def had_by(self, tokens: set[str]) -> set[int]:
        """Return the numbers of the updates that any of these clients has had since the last forget_records()."""
        with self.recording:
            return set().union(*(self.had[token] for token in tokens))

    def forget_records(self) -> None:
        """Start a new record."""
        with self.recording:
            self.given.clear()
            self.had.clear()


class Process(Fetcher):
    """A fetcher with a new token at each start; two faults may end and start it at once.

    With several versions, each start uses the next one.
    """

    def __init__(self, vk: RecordingVK, versions: Sequence[Version], **settings: Any) -> None:
        self.vk = vk
        self.versions = itertools.cycle(versions)
        self.version = versions[0]  # of the current process, once it is started
        self.starts: Counter[str] = Counter()  # by version
        self.changing = threading.RLock()
        super().__init__(**{"VK_URL": vk.url, "GROUPID": vk.group_id, **settings})

    @property
    def token(self) -> str:
        """The token of the current process."""
        return str(self.settings["TOKEN"])

    def start(self) -> None:
        """Start it, unless it runs already."""
        with self.changing:
            if not self.running:
                self.version = next(self.versions)
                self.starts[self.version.name] += 1
                self.constants = self.version.constants
                self.settings |= {"TOKEN": self.vk.new_token(), "PYTHONPATH": self.version.root}
                super().start()

    def kill(self) -> None:
        """End it as kill -9 does, if it runs."""
        with self.changing:
            if self.running:
                super().kill()

    def restart(self) -> None:
        """Kill it, if it runs, and start it again."""
        with self.changing:
            self.kill()
            self.start()

    def pause(self) -> None:
        """Freeze it, if it runs; it keeps its connections."""
        with self.changing:
            if self.running:
                self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it continue, if it runs."""
        with self.changing:
            if self.running:
                self.signal(signal.SIGCONT)

    def revive(self) -> int | None:
        """Start it if it has ended by itself, as a supervisor would, and return its exit code."""
        with self.changing:
            if self.running:
                return None
            code = self.wait()
            self.start()
            return code
