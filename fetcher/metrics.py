"""Prometheus metrics. Nothing is counted by user or chat. https://prometheus.io/docs/practices/naming/"""

from types import SimpleNamespace
from typing import Any, Self

from .errors import FatalError

COMMIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
AGE_BUCKETS = (1, 2, 3, 5, 10, 30, 60, 300, 1800, 3600, 21600)  # seconds; VK's dates are whole seconds


class Off:
    """Stands for all metrics and for each of them when METRICS_PORT is not set: counts nothing."""

    def __getattr__(self, name: str) -> Self:
        """Return a metric, or one of its methods."""
        return self

    def __call__(self, *args: object, **labels: object) -> Self:
        """Do nothing."""
        return self


OFF = Off()


def serve(port: int, version: str) -> Any:
    """Return the metrics, and serve them on this port of all addresses; without a port, return those that are off.

    A thread of its own serves them, whatever the fetcher waits for. Raise FatalError if the port cannot be opened or
    prometheus-client is not installed.
    """
    if not port:
        return OFF
    try:
        from prometheus_client import Counter, Gauge, Histogram, Info, start_http_server

        start_http_server(port)
    except ImportError:
        raise FatalError("METRICS_PORT needs prometheus-client: pip install '.[metrics]'") from None
    except OSError as error:
        raise FatalError(f"METRICS_PORT: port {port} cannot be opened ({error.strerror}): choose another one") from None
    ours: Any = {"namespace": "event_fetcher"}
    Info("event_fetcher", "The fetcher's version").info({"version": version})
    return SimpleNamespace(
        events=Counter("events", "Events put on the bus", ["type"], **ours),
        dead_letters=Counter("dead_letters", "Dead letters: malformed updates, and gaps", **ours),
        gaps=Counter("gaps", "Gaps in VK's history", **ours),
        held_updates=Gauge("held_updates", "Updates in memory that are not on the bus yet", **ours),
        last_poll=Gauge("last_poll_timestamp_seconds", "When VK last answered a poll", **ours),
        checkpoint=Gauge("checkpoint_timestamp_seconds", "When the checkpoint last moved", **ours),
        commit_seconds=Histogram("commit_seconds", "Duration of a commit", buckets=COMMIT_BUCKETS, **ours),
        publish_age=Histogram("publish_age_seconds", "A message's date to its commit", buckets=AGE_BUCKETS, **ours),
        vk_requests=Counter("vk_requests", "Requests to VK's API", ["method"], **ours),
        vk_errors=Counter("vk_errors", "Errors that VK's API returned", ["code"], **ours),
        redis_up=Gauge("redis_up", "1 while Redis accepts commits, else 0", **ours),
    )
