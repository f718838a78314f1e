"""Every fault once, under traffic: each update reaches the bus once and in VK's order."""

from collections.abc import Iterator

import pytest

from tests.faults.cases import CASES
from tests.faults.play import play
from tests.faults.scene import Scene


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        yield scene


@pytest.fixture(scope="module")
def clustered() -> Iterator[Scene]:
    with Scene(clustered=True) as scene:
        yield scene


@pytest.mark.parametrize("name", CASES)
def test_fault(name: str, scene: Scene) -> None:
    """No fault loses, repeats or reorders anything."""
    count = play(CASES[name], scene)
    assert count.events
    assert count.clean, f"{count}\n{scene.fetcher.output}"
    assert not scene.leaks()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.proxied])
def test_fault_in_a_cluster(name: str, clustered: Scene) -> None:
    """The same holds in a Redis Cluster of which REDIS_URL names one node."""
    count = play(CASES[name], clustered)
    assert count.events
    assert count.clean, f"{count}\n{clustered.fetcher.output}"
    assert not clustered.leaks()
