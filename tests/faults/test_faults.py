"""Every fault once: each update reaches the bus once and in VK's order."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.faults.cases import Case
from tests.faults.environment import Environment
from tests.faults.links import CASES
from tests.faults.run import run


def environment(**options: Any) -> Callable[..., Iterator[Environment]]:
    """Return a fixture with one environment for all the tests that a pytest process runs in it."""

    @pytest.fixture(scope="module")
    def start() -> Iterator[Environment]:
        with Environment(**options) as env:
            yield env

    return start


def grouped(name: str, cases: Iterable[Case]) -> list[Any]:
    """Return the names of the cases; about twenty run on the same pytest worker, and share an environment."""
    return [
        pytest.param(case.name, marks=pytest.mark.xdist_group(f"{name} {number // 21}"))
        for number, case in enumerate(cases)
    ]


pytestmark = pytest.mark.long
CASES_ALONE = grouped("alone", (case for case in CASES.values() if case.fetchers == 1 and not case.clustered))
CASES_OF_A_PAIR = grouped("pair", (case for case in CASES.values() if case.fetchers == 2))
CASES_IN_A_CLUSTER = grouped("clustered", (case for case in CASES.values() if case.concerns_redis and not case.linked))

alone, pair, clustered = environment(), environment(fetchers=2), environment(clustered=True)


def check(name: str, env: Environment) -> None:
    """Run the case, and check the account."""
    count = run(CASES[name], env)
    assert count.events
    assert count.is_clean, f"{count}\n{env.output}"
    assert not env.leaks()


@pytest.mark.parametrize("name", CASES_ALONE)
def test_fault(name: str, alone: Environment) -> None:
    """No fault loses, repeats or reorders anything."""
    check(name, alone)


@pytest.mark.parametrize("name", CASES_OF_A_PAIR)
def test_fault_of_two_fetchers(name: str, pair: Environment) -> None:
    """Neither of two fetchers loses what the other one holds."""
    check(name, pair)


@pytest.mark.parametrize("name", CASES_IN_A_CLUSTER)
def test_fault_in_a_cluster(name: str, clustered: Environment) -> None:
    """The same holds in a Redis Cluster, of which REDIS_URL names one node."""
    check(name, clustered)
