"""What operators count: Prometheus metrics, which do nothing until they are served.

Callers write `metrics.GAPS.inc()`, with the module's name, because `serve` puts the real metrics in these places.
Nothing is counted by user or chat. https://prometheus.io/docs/practices/naming/
"""

from typing import Any, Self


class Unserved:
    """A metric of any kind that counts nothing."""

    def labels(self, **labels: str) -> Self:
        """Return the metric with these labels."""
        return self

    def inc(self, amount: float = 1) -> None:
        """Count one more, or so many."""

    def set(self, value: float) -> None:
        """Tell the present value."""

    def observe(self, amount: float) -> None:
        """Tell one value of many."""


EVENTS: Any = Unserved()
DEAD_LETTERS: Any = Unserved()
GAPS: Any = Unserved()
HELD_UPDATES: Any = Unserved()
LAST_POLL: Any = Unserved()
CHECKPOINT: Any = Unserved()
COMMIT_SECONDS: Any = Unserved()
PUBLISH_AGE: Any = Unserved()
VK_REQUESTS: Any = Unserved()
VK_ERRORS: Any = Unserved()
REDIS_UP: Any = Unserved()


class Metrics:
    """All metrics by name."""

    def __getattr__(self, name: str) -> Any:
        """Return the metric."""
        return globals()[name.upper()]


METRICS = Metrics()

COMMIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
AGE_BUCKETS = (1, 2, 3, 5, 10, 30, 60, 300, 1800, 3600, 21600)  # seconds; VK's dates are whole seconds


def serve(port: int, version: str) -> None:
    """Put the real metrics in their places and answer on this port of all addresses.

    The answers come from a thread of their own, whatever else waits. Raise OSError if the port cannot be had, and
    ImportError without prometheus-client.
    """
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        Info,
        ProcessCollector,
        start_http_server,
    )

    to = CollectorRegistry()
    real = {
        "EVENTS": Counter("event_fetcher_events", "Events put on the bus", ["type"], registry=to),
        "DEAD_LETTERS": Counter("event_fetcher_dead_letters", "Updates that make no event, and gaps", registry=to),
        "GAPS": Counter("event_fetcher_gaps", "Gaps in VK's history", registry=to),
        "HELD_UPDATES": Gauge("event_fetcher_held_updates", "Updates in memory that the bus has not got", registry=to),
        "LAST_POLL": Gauge("event_fetcher_last_poll_timestamp_seconds", "When VK last answered a poll", registry=to),
        "CHECKPOINT": Gauge("event_fetcher_checkpoint_timestamp_seconds", "When the checkpoint moved", registry=to),
        "COMMIT_SECONDS": Histogram(
            "event_fetcher_commit_seconds", "How long Redis took for a commit", buckets=COMMIT_BUCKETS, registry=to
        ),
        "PUBLISH_AGE": Histogram(
            "event_fetcher_publish_age_seconds", "From a message's date to its commit", buckets=AGE_BUCKETS, registry=to
        ),
        "VK_REQUESTS": Counter("event_fetcher_vk_requests", "Requests to VK", ["method"], registry=to),
        "VK_ERRORS": Counter("event_fetcher_vk_errors", "Errors that VK answered", ["code"], registry=to),
        "REDIS_UP": Gauge("event_fetcher_redis_up", "1 while Redis takes commits, else 0", registry=to),
    }
    Info("event_fetcher", "The fetcher's version", registry=to).info({"version": version})
    ProcessCollector(registry=to)
    start_http_server(port, registry=to)
    globals().update(real)
