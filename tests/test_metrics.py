"""What operators count: nothing until it is served, then what Prometheus reads."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import HOST, free_port

ROOT = Path(__file__).resolve().parent.parent
RULES = yaml.safe_load((ROOT / "deploy/prometheus-rules.yml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text(encoding="utf-8"))
DOCUMENTS = [(ROOT / f"docs/operations{language}.md").read_text(encoding="utf-8") for language in ("", ".ru")]

USE = """
import sys, urllib.request
from fetcher import metrics

def use():
    metrics.EVENTS.labels(type="message").inc(3)
    metrics.DEAD_LETTERS.inc(2)
    metrics.GAPS.inc()
    metrics.HELD_UPDATES.set(7)
    metrics.LAST_POLL.set(1764500000)
    metrics.CHECKPOINT.set(1764500001)
    metrics.COMMIT_SECONDS.observe(0.02)
    metrics.PUBLISH_AGE.observe(1.5)
    metrics.VK_REQUESTS.labels(method="execute").inc()
    metrics.VK_ERRORS.labels(code="6").inc()
    metrics.REDIS_UP.set(1)
"""
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


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own: metrics are the process's."""
    return subprocess.run([sys.executable, "-c", USE + code, *arguments], cwd=ROOT, capture_output=True, text=True)


SERVE = """
metrics.serve(int(sys.argv[1]), "1.2.3")
if sys.argv[2:]:
    use()
print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics").read().decode())
"""


def scraped(*arguments: str) -> dict[str, float]:
    """Return what Prometheus would read."""
    done = run(SERVE, str(free_port()), *arguments)
    assert done.returncode == 0, done.stderr
    samples = [line.rpartition(" ") for line in done.stdout.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def names() -> set[str]:
    """Return the names of all series of ours, without labels."""
    found = {re.sub("[{].*", "", name) for name in scraped("use")}
    return {name for name in found if name.startswith("event_fetcher_") and not name.endswith("_created")}


def test_nothing_is_imported_until_it_is_served() -> None:
    """Whoever does not set METRICS_PORT need not have prometheus-client, and counts at no cost."""
    done = run("use(); assert 'prometheus_client' not in sys.modules")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_counted_is_served() -> None:
    """Each metric appears under the name that the document tells, with its labels."""
    assert scraped("use").items() >= EXPECTED.items()


def test_what_has_not_happened_is_zero() -> None:
    """An increase from nothing to one would not be seen: counters without labels are there from the beginning."""
    found = scraped()
    assert [found[f"event_fetcher_{name}"] for name in ("gaps_total", "dead_letters_total", "held_updates")] == [0] * 3


def test_the_process_is_told_as_well() -> None:
    """What is held is in memory, so its size belongs to the picture."""
    assert scraped()["process_resident_memory_bytes"] > 1e6


def test_a_port_that_somebody_has_is_an_error() -> None:
    """Raised as OSError, before anything is replaced."""
    with socket.create_server((HOST, free_port())) as taken:
        done = run(SERVE, str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "OSError" in done.stderr


# --- Rules, dashboard and document ---------------------------------------------------------------------------

RULES_OF = [rule for group in RULES["groups"] for rule in group["rules"]]
EXPRESSIONS = [rule["expr"] for rule in RULES_OF]
EXPRESSIONS += [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_rules_and_panels_ask_for_what_exists(expression: str) -> None:
    """Every metric in them is one that the fetcher serves."""
    asked = set(re.findall(r"\b(?:event_fetcher|process)_\w+", expression))
    assert asked
    assert asked - {"process_resident_memory_bytes", "process_cpu_seconds_total"} <= names()


@pytest.mark.parametrize("text", DOCUMENTS, ids=["en", "ru"])
def test_the_document_explains_every_metric_and_alarm(text: str) -> None:
    """Both languages have a row for each."""
    rows = set(re.findall(r"^\| `(event_fetcher_\w+)(?:\{\w+\})?` \|", text, re.MULTILINE))
    assert rows == {re.sub("_(bucket|sum|count)$", "", name) for name in names()}
    assert {rule["alert"] for rule in RULES_OF} == set(re.findall(r"^\| `(Fetcher\w+)` \|", text, re.MULTILINE))


def test_each_alarm_says_what_to_do() -> None:
    """Whoever is woken reads one sentence and where to look."""
    for rule in RULES_OF:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_dashboard_shows_every_metric() -> None:
    """And its panels do not lie on each other."""
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
