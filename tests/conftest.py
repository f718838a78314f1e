"""What the tests share: a VK, a server, and fetchers between them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.processes import Fetcher
from tests.servers import Server
from tests.vk import VK


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
    """Return what starts a fetcher from the VK to the server, with further settings and constants."""
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
