"""The log: our own lines, to standard error, and no secret in any of them."""

import logging
import re
from collections.abc import Iterable
from typing import Any


class Redacted(logging.Formatter):
    """Takes secrets out of tracebacks, where libraries speak; our own sentences hold none."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Hide these secrets, and what an address holds as user, password or key."""
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        address = r"(?<=://)[^\s/@]+(?=@)|(?<=\bkey=)[^\s&'\"]+|(?<=access_token=)[^\s&'\"]+"
        self.secrets = re.compile("|".join([*map(re.escape, secrets), address]))

    def formatException(self, *of_record: Any) -> str:  # noqa: N802
        """Return the traceback without secrets."""
        return self.secrets.sub("***", super().formatException(*of_record))


def to_stderr(level: str, secrets: Iterable[str]) -> None:
    """Send our own log lines to standard error; those of libraries, which hold addresses with keys, go nowhere."""
    logging.getLogger().addHandler(logging.NullHandler())
    handler = logging.StreamHandler()
    handler.setFormatter(Redacted(secrets))
    log = logging.getLogger("fetcher")
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
