"""What the tests share: a VK, a server, and fetchers between them."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from tests.net import OwnLookups
from tests.processes import Fetcher
from tests.servers import Server
from tests.vk import VK

WORKERS_PER_CORE, MAX_WORKERS = 5, 24  # most tests only wait, for a process or a clock

sys.dont_write_bytecode = False  # otherwise each worker would compile all tests again


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Return the number of workers for `-n auto`, unless the environment sets it."""
    cores = yield
    return cores if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else min(MAX_WORKERS, WORKERS_PER_CORE * cores)


def pytest_configure() -> None:
    """Restore Ctrl-C, also for the programs that tests start: shells make commands started with `&` ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that nothing waits for them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def untraced() -> Iterator[None]:
    """Do not measure coverage in this test, which runs thousands of cases and would take three times as long."""
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


@pytest.fixture
def own_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let entries be built with a fake client that answers lookups itself."""
    monkeypatch.setattr("fetcher.vk.entries.lookups", OwnLookups)


@pytest.fixture
def vk() -> Iterator[VK]:
    with VK() as vk:
        yield vk


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(aof=True) as server:
        yield server


@pytest.fixture
def fetch(vk: VK, server: Server) -> Iterator[Callable[..., Fetcher]]:
    """Return a function that starts a fetcher between the VK and the server, with further settings and constants."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **settings: Any) -> Fetcher:
            usual: dict[str, Any] = {
                "VK_URL": vk.url,
                "TOKEN": vk.token,
                "GROUPID": vk.group_id,
                "REDIS_URL": server.url,
            }
            return stack.enter_context(Fetcher(*arguments, **usual | settings))

        yield start
