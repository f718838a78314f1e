"""A short run of the simulation, and whether it notices what it should."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fetcher.core.history import Position
from tests.servers import Server

from . import chaos, exhaustive, sabotage
from .store import Store
from .world import simulated

COMMIT = (Path(__file__).parents[2] / "fetcher/bus/commit.lua").read_text(encoding="utf-8")
KEYS = ["ts", "seen", "stream", "{events}:dead-letter"]
SEEDS = json.loads(Path(__file__).with_name("seeds.json").read_text())  # written by --sabotage

pytestmark = pytest.mark.usefixtures("untraced")


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with simulated():
        yield


@pytest.mark.parametrize("first_seed", range(0, 100, 10))
def test_every_invariant_holds_in_random_histories(first_seed: int) -> None:
    """Whatever goes wrong, nothing is silently lost, repeated or out of order, and everything settles."""
    for seed in range(first_seed, first_seed + 10):
        result = chaos.run(seed)
        assert not result.violation, f"python -m tests.simulation --seed {seed}"


def test_a_history_has_faults_of_every_kind() -> None:
    """Every kind of fault that the chaos can cause does happen."""
    faults = set().union(*(chaos.run(seed, turns=200).faults for seed in range(150)))
    assert faults >= {
        "kill", "cut", "failover", "emptied", "lost request", "lost reply", "timeout", "refused", "slow link",
        "refused in the script", "password refused", "unavailable", "malformed", "silence", "gap", "failed 1",
        "failed 2", "failed 3", "partly", "lookups fail", "VK is away", "VK forgets", "VK restarts its numbering",
        "unreadable place", "unreadable",
    }  # fmt: skip


def test_a_seed_replays_its_history() -> None:
    """The same seed gives the same history, in another process, too."""
    run = [sys.executable, "-m", "tests.simulation", "--seed", "7"]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed[:-1] == chaos.run(7, trace=True).trace
    assert len(printed) > 100


def test_every_invariant_holds_in_every_history_of_a_small_world() -> None:
    """Two fetchers, every order of their requests with one switch, and a fault at every place."""
    count, _, broken = exhaustive.explore_all(exhaustive.SMALL)
    assert not [(outcome.choices, outcome.violation) for outcome in broken]
    assert count > 200


@pytest.mark.parametrize("way", SEEDS)
def test_a_broken_core_is_noticed(way: str) -> None:
    """A simulation that catches nothing proves nothing; each seed is known to notice its sabotage."""
    with sabotage.sabotaged(way):
        violation = chaos.run(SEEDS[way]).violation
    assert violation
    assert not violation.startswith("a bug: TypeError"), "the wrong part does not fit"


def test_the_store_in_memory_behaves_like_a_server() -> None:
    """Random calls of commit.lua have the same answers and leave the same state in memory as on a server."""
    rng = random.Random(1)
    with Server() as server, server.client() as client, client.pubsub(ignore_subscribe_messages=True) as heard:
        script = client.register_script(COMMIT)
        heard.psubscribe("bus:*")
        heard.get_message(timeout=1)
        for _ in range(25):
            client.flushall()
            store, published = Store(), list[tuple[str, str]]()
            for _ in range(100):
                arguments = call(rng, store)
                assert script(KEYS, arguments) == store.run(COMMIT, KEYS, arguments), arguments
                if rng.random() < 0.1:
                    assert state(client) == state_of(store)
            assert state(client) == state_of(store)
            while len(published) < len(store.published) and (message := heard.get_message(timeout=60)):
                published.append((message["channel"], message["data"]))
            assert published == store.published


def call(rng: random.Random, store: Store) -> list[Any]:
    """Return arguments for the script that are often close to the checkpoint."""
    stored = Position.parse(store.checkpoint or rng.choice(["5", "1:30", "100000000000000000"]))
    kind = rng.choice(["batch", "batch", "batch", "batch", "gap", "restore"])
    step = rng.choice([0, 0, 0, -1, -5, 1, 30]) if kind != "restore" else 0
    since = stored._replace(ts=max(0, stored.ts + step), part=rng.choice([stored.part, 0, 3]) if step else stored.part)
    until = Position(since.epoch + (rng.random() < 0.02), since.ts + rng.choice([0, 1, 5, 20]), rng.choice([0, 0, 7]))
    arguments: list[Any] = [kind, str(since), str(max(since, until)), rng.choice([10, 50]), 10**6, 10**6]
    entries = list[list[Any]]()
    for _ in range(rng.randrange(8)):
        id = f"e{rng.randrange(400)}"
        event = [id, f"bus:{rng.choice('ab')}", 2, "event", json.dumps({"event_id": id})]
        letter = [
            rng.choice(["", id, f"sha256:{rng.randrange(5)}"]),
            "",
            4,
            "update",
            f"{rng.random()}",
            "error",
            "why",
        ]
        entries.append(event if rng.random() < 0.8 else letter)
    return [*arguments, len(entries), rng.choice(arguments[1:3]), *(part for entry in entries for part in entry)]


def state(client: Any) -> tuple[Any, ...]:
    """Return what the server holds."""
    dead = [fields for _, fields in client.xrange(KEYS[3])]
    events = [fields["event"] for _, fields in client.xrange("stream")]
    return client.get("ts") or "", client.zrange("seen", 0, -1, withscores=True), events, dead


def state_of(store: Store) -> tuple[Any, ...]:
    """Return the same for the store in memory."""
    seen = [(id, float(score)) for id, score in store.seen.items()]
    return store.checkpoint, seen, [text for _, text in store.stream], [letter.fields for letter in store.dead]
