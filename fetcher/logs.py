"""The log, only the fetcher's own lines, on standard error, without secrets; and what commands print for people."""

import logging
import os
import sys
import traceback
from typing import Any

log = logging.getLogger("fetcher")

WITH_TIME = "%(asctime)s %(levelname)s %(message)s"


class Formatter(logging.Formatter):
    """Leaves out the text of exceptions, in which libraries quote addresses with secrets, and what people write."""

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the traceback, which quotes only code, and the exception's class."""
        kind, _, frames = ei
        return "".join(["Traceback (most recent call last):\n", *traceback.format_tb(frames), kind.__name__])


def to_stderr(form: str = "event-fetcher: %(message)s", level: str = "INFO") -> None:
    """Write the fetcher's log lines to standard error; this replaces what an earlier call set up.

    Log lines of libraries are discarded, because they contain addresses with keys.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(form))
    handler.addFilter(logging.Filter("fetcher"))
    logging.basicConfig(handlers=[handler], force=True)
    log.setLevel(level)


def print_line(text: str) -> None:
    """Print a text immediately, on any terminal; do nothing if standard output is closed.

    If the text cannot be written, end the process: with code 0 if the reader is gone, as in `--watch | head`, otherwise
    with code 1.
    """
    try:
        if sys.stdout:
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every terminal knows Cyrillic
        print(text, flush=True)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        log.critical("The output cannot be written (%s)", error.strerror)
        os._exit(1)
