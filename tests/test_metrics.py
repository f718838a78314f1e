"""Metrics: what Prometheus scrapes, and whether documents, dashboard and alerts cover it."""

import functools
import json
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from fetcher import metrics
from fetcher.errors import FatalError
from tests import HOST, free_port

ROOT = Path(__file__).resolve().parent.parent
RULES = yaml.safe_load((ROOT / "deploy/prometheus-rules.yml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text(encoding="utf-8"))
DOCUMENTS = [(ROOT / f"docs/operations{language}.md").read_text(encoding="utf-8") for language in ("", ".ru")]


OF_THE_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"}


def count(served: Any) -> None:
    """Count something with each of the metrics."""
    served.events.labels(type="message").inc(3)
    served.dead_letters.inc(2)
    served.gaps.inc()
    served.held_updates.set(7)
    served.last_poll.set(1764500000)
    served.checkpoint.set(1764500001)
    served.commit_seconds.observe(0.02)
    served.publish_age.observe(1.5)
    served.vk_requests.labels(method="execute").inc()
    served.vk_errors.labels(code="6").inc()
    served.redis_up.set(1)


EXPECTED = {
    'event_fetcher_events_total{type="message"}': 3,
    "event_fetcher_dead_letters_total": 2,
    "event_fetcher_gaps_total": 1,
    "event_fetcher_held_updates": 7,
    "event_fetcher_last_poll_timestamp_seconds": 1764500000,
    "event_fetcher_checkpoint_timestamp_seconds": 1764500001,
    'event_fetcher_commit_seconds_bucket{le="0.025"}': 1,
    "event_fetcher_commit_seconds_sum": 0.02,
    "event_fetcher_publish_age_seconds_count": 1,
    'event_fetcher_vk_requests_total{method="execute"}': 1,
    'event_fetcher_vk_errors_total{code="6"}': 1,
    "event_fetcher_redis_up": 1,
    'event_fetcher_info{version="1.2.3"}': 1,
}


@functools.cache
def served() -> tuple[int, Any]:
    """Serve the metrics, once per process; return the port and the metrics."""
    port = free_port()
    return port, metrics.serve(port, "1.2.3")


@functools.cache
def scraped(counting: bool = False) -> dict[str, float]:
    """Return what Prometheus reads, before anything is counted or after each metric has counted something."""
    port, ours = served()
    if counting:
        scraped()
        count(ours)
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


@functools.cache
def names() -> set[str]:
    """Return the names of all our series, without labels."""
    found = {re.sub("[{].*", "", name) for name in scraped(counting=True)}
    return {name for name in found if name.startswith("event_fetcher_") and not name.endswith("_created")}


def test_without_a_port_nothing_is_imported_or_counted() -> None:
    """Without METRICS_PORT, prometheus-client is not imported, and code that counts works all the same."""
    count(metrics.serve(0, "1.2.3"))
    code = "import sys; from fetcher import metrics; metrics.serve(0, '1'); print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_each_metric_is_served() -> None:
    """Each metric appears under its documented name, with its labels."""
    assert scraped(counting=True).items() >= EXPECTED.items()


def test_counters_start_at_zero() -> None:
    """Prometheus would not see an increase from nothing to one, so counters without labels start at 0."""
    found = scraped()
    assert [found[f"event_fetcher_{name}"] for name in ("gaps_total", "dead_letters_total", "held_updates")] == [0] * 3


def test_metrics_of_the_process_are_served() -> None:
    """Held updates take memory, so the size of the process is exported, too."""
    assert scraped()["process_resident_memory_bytes"] > 1e6


def test_a_port_that_is_taken_is_a_sentence() -> None:
    """The error names the port, so that the operator can choose another one."""
    with (
        socket.create_server((HOST, 0)) as taken,
        pytest.raises(FatalError, match=r"^METRICS_PORT: port \d+ cannot be opened \("),
    ):
        metrics.serve(taken.getsockname()[1], "1.2.3")


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """prometheus-client is an extra, and the error says how to install it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(FatalError, match=r"pip install '\.\[metrics\]'"):
        metrics.serve(free_port(), "1.2.3")


# --- Rules, dashboard and document ---------------------------------------------------------------------------

RULES_OF = [rule for group in RULES["groups"] for rule in group["rules"]]
EXPRESSIONS = [rule["expr"] for rule in RULES_OF]
EXPRESSIONS += [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_rules_and_panels_use_existing_metrics(expression: str) -> None:
    """The rules and panels use only metrics that the fetcher serves."""
    used = set(re.findall(r"\b(?:event_fetcher|process)_\w+", expression))
    assert used
    assert used - names() <= OF_THE_PROCESS & scraped().keys()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_unset_timestamp_is_ignored(expression: str) -> None:
    """A timestamp is 0 until it is set, for example right after a restart, so expressions ignore 0.

    The exception is the alert about polls: a fetcher that keeps restarting and never polls must trigger it.
    """
    if expression != "time() - max(event_fetcher_last_poll_timestamp_seconds) > 120":
        assert not re.search(r"_timestamp_seconds\b(?! > 0)", expression)


@pytest.mark.parametrize("text", DOCUMENTS, ids=["en", "ru"])
def test_the_document_explains_every_metric_and_alert(text: str) -> None:
    """In both languages, each metric and each alert has a row."""
    rows = set(re.findall(r"^\| `(event_fetcher_\w+)(?:\{\w+\})?` \|", text, re.MULTILINE))
    assert rows == {re.sub("_(bucket|sum|count)$", "", name) for name in names()}
    assert {rule["alert"] for rule in RULES_OF} == set(re.findall(r"^\| `(Fetcher\w+)` \|", text, re.MULTILINE))


def test_each_alert_says_what_to_do() -> None:
    """Each alert has a severity, a summary and a description."""
    for rule in RULES_OF:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_dashboard_shows_every_metric() -> None:
    """Each metric has a panel, and the panels do not overlap."""
    shown = "".join(EXPRESSIONS[len(RULES_OF) :])
    assert {name for name in names() if not name.endswith(("_sum", "_count"))} <= set(
        re.findall(r"event_fetcher_\w+", shown)
    )
    places = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
