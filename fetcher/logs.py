"""The log: our own lines, to standard error, and no secret in any of them."""

import logging
import re
from collections.abc import Iterable
from typing import Any


class Redacted(logging.Formatter):
    """Takes secrets out of every line, tracebacks included."""

    def __init__(self, token: str, passwords: Iterable[str] = ()) -> None:
        """Hide the token; and in tracebacks, where anything may stand, passwords and what an address holds of them."""
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        address = r"(?<=://)[^\s/@]+(?=@)|(?<=\bkey=)[^\s&'\"]+|(?<=access_token=)[^\s&'\"]+"
        self.token = re.compile(re.escape(token))
        self.secrets = re.compile("|".join([re.escape(token), *map(re.escape, passwords), address]))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without secrets."""
        return self.token.sub("***", super().format(record))

    def formatException(self, *of_record: Any) -> str:
        """Return the traceback without secrets."""
        return self.secrets.sub("***", super().formatException(*of_record))


def to_stderr(level: str, token: str, passwords: Iterable[str] = ()) -> None:
    """Send our own log lines to standard error; those of libraries, which hold addresses with keys, go nowhere."""
    logging.getLogger().addHandler(logging.NullHandler())
    handler = logging.StreamHandler()
    handler.setFormatter(Redacted(token, passwords))
    log = logging.getLogger("fetcher")
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
