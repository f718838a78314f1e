"""Prometheus metrics; none has a label for a user or a chat. https://prometheus.io/docs/practices/naming/"""

from types import SimpleNamespace
from typing import Any, Self

from .errors import FatalError

COMMIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
AGE_BUCKETS = (1, 2, 3, 5, 10, 30, 60, 300, 1800, 3600, 21600)  # seconds; VK's dates are whole seconds


class Off:
    """Counts nothing; stands for all metrics, and for each of them, if METRICS_PORT is not set."""

    def __getattr__(self, name: str) -> Self:
        """Return this object for any metric, and for any method of a metric."""
        return self

    def __call__(self, *args: object, **labels: object) -> Self:
        """Do nothing."""
        return self


OFF = Off()


def serve(port: int, version: str) -> Any:
    """Return the metrics, and serve them on this port of all IPv4 addresses; return OFF if the port is 0.

    They are served from a separate thread, so they are available whatever the fetcher is waiting for. Raise FatalError
    if the port cannot be opened or prometheus-client is not installed.
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
    Info("event_fetcher", "The fetcher's version").info({"version": version})
    return SimpleNamespace(
        events=Counter("event_fetcher_events", "Events put on the bus", ["type"]),
        dead_letters=Counter("event_fetcher_dead_letters", "Dead letters: malformed updates, and gaps"),
        gaps=Counter("event_fetcher_gaps", "Gaps in VK's history"),
        held_updates=Gauge("event_fetcher_held_updates", "Updates in memory that are not on the bus yet"),
        last_poll=Gauge("event_fetcher_last_poll_timestamp_seconds", "When VK last answered a poll"),
        checkpoint=Gauge("event_fetcher_checkpoint_timestamp_seconds", "When the checkpoint last moved"),
        commit_seconds=Histogram("event_fetcher_commit_seconds", "Duration of a commit", buckets=COMMIT_BUCKETS),
        publish_age=Histogram("event_fetcher_publish_age_seconds", "Age of messages at commit", buckets=AGE_BUCKETS),
        vk_requests=Counter("event_fetcher_vk_requests", "Requests to VK's API", ["method"]),
        vk_errors=Counter("event_fetcher_vk_errors", "Errors that VK's API returned", ["code"]),
        redis_up=Gauge("event_fetcher_redis_up", "1 while Redis accepts commits, else 0"),
    )
