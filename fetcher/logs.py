"""The log: our own lines, to standard error, without secrets."""

import logging
import traceback
from typing import Any

log = logging.getLogger("fetcher")

WITH_TIME = "%(asctime)s %(levelname)s %(message)s"
PLAIN = "event-fetcher: %(message)s"


class Formatter(logging.Formatter):
    """Leaves out the text of exceptions: libraries quote addresses with passwords and keys, and what people write."""

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the traceback, which is all code, and the exception's class."""
        kind, _, frames = ei
        return "".join(["Traceback (most recent call last):\n", *traceback.format_tb(frames), kind.__name__])


def to_stderr(form: str = PLAIN, level: str = "INFO") -> None:
    """Write our own log lines to standard error, in place of what an earlier call set up.

    The lines of libraries hold addresses with keys: they are discarded.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(form))
    handler.addFilter(logging.Filter("fetcher"))
    logging.basicConfig(handlers=[handler], force=True)
    log.setLevel(level)
