"""The log: our own lines, to standard error, without secrets."""

import logging
import re
from collections.abc import Iterable
from typing import Any

WITH_TIME = "%(asctime)s %(levelname)s %(message)s"
PLAIN = "event-fetcher: %(message)s"


class RedactingFormatter(logging.Formatter):
    """Hides secrets in tracebacks, which quote libraries; our own sentences hold none."""

    def __init__(self, form: str, secrets: Iterable[str]) -> None:
        """Hide these secrets, and the user, password or key in any address."""
        super().__init__(form)
        address = r"(?<=://)[^\s/@]+(?=@)|(?<=\bkey=)[^\s&'\"]+|(?<=access_token=)[^\s&'\"]+"
        self.secrets = re.compile("|".join([*map(re.escape, secrets), address]))

    def formatException(self, *exc_info: Any) -> str:  # noqa: N802
        """Return the traceback without secrets."""
        return self.secrets.sub("***", super().formatException(*exc_info))


def to_stderr(form: str = PLAIN, level: str = "INFO", secrets: Iterable[str] = ()) -> None:
    """Write our own log lines to standard error, in place of what an earlier call set up.

    The lines of libraries hold addresses with keys: they are discarded.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(form, secrets))
    log = logging.getLogger("fetcher")
    log.handlers, log.propagate = [handler], False
    log.setLevel(level)
    logging.getLogger().handlers = [logging.NullHandler()]
