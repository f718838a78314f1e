"""The fetcher behind sentinels: a failover under traffic loses nothing and repeats nothing."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.processes import Fetcher
from tests.sentinels import Watched, sentinels
from tests.servers import wait_until
from tests.vk import VK, message

COUNT = 300


@pytest.fixture
def watched() -> Iterator[Watched]:
    with sentinels() as watched:
        yield watched


@contextlib.contextmanager
def traffic(vk: VK) -> Iterator[Callable[[], list[str]]]:
    """Send a message every 0.03 s, at least COUNT; the yielded function ends that and returns the event_ids."""
    pushed: list[str] = []
    ended = threading.Event()

    def write() -> None:
        while len(pushed) < COUNT or not ended.is_set():
            update = message()
            vk.push(update)
            pushed.append(update["event_id"])
            threading.Event().wait(0.03)  # slow enough: VK keeps 256, and Redis may hang for 5 s before that is noticed

    def finish() -> list[str]:
        ended.set()
        writer.join()
        return pushed

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield finish
    finally:
        finish()


def published(watched: Watched) -> list[str]:
    """Return the event_ids in the primary's stream."""
    with watched.primary.client() as owner:
        return [json.loads(entry["event"])["event_id"] for _, entry in owner.xrange("events")]


@pytest.mark.long
@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_failover_loses_and_repeats_nothing(vk: VK, watched: Watched, fault: str) -> None:
    """The primary dies or hangs under traffic; the new primary's stream has everything, once and in order."""
    settings: dict[str, Any] = {"VK_URL": vk.url, "TOKEN": vk.token, "GROUPID": vk.group_id, "POLL_WAIT": 1}
    former = watched.primary
    with contextlib.ExitStack() as stack:
        fetcher = stack.enter_context(Fetcher(**settings, REDIS_URL=watched.url()))
        with former.client() as owner:  # messages before the first start are not published
            wait_until(lambda: owner.exists(f"{{events}}:ts:{vk.group_id}"), what="the checkpoint")
        finish = stack.enter_context(traffic(vk))
        wait_until(lambda: len(published(watched)) > 20, what="the first events")
        getattr(former, fault)()
        wait_until(lambda: watched.primary is not former, what="the failover")
        before = len(published(watched))
        wait_until(lambda: len(published(watched)) > before + 20, what="events on the new primary")
        pushed = finish()
        wait_until(lambda: set(pushed) <= set(published(watched)), what="the last events")
        assert published(watched) == pushed
        with Fetcher("--health", **fetcher.settings) as check:
            assert (check.wait(), check.lines) == (0, [])
        assert fetcher.running
        former.resume()
