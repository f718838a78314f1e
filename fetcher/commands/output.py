"""What commands print for people, on standard output."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..logs import log


@contextmanager
def printing() -> Iterator[None]:
    """Let lines be printed: each is written at once, on any terminal; to nowhere if standard output is closed.

    End the process if they cannot be written, with code 0 if nobody reads them any more, as in `--watch | head`.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    # Not every terminal can show Cyrillic.
    sys.stdout.reconfigure(errors="replace", line_buffering=True)  # type: ignore[union-attr]
    try:
        yield
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        log.critical("The output cannot be written (%s)", error.strerror)
        os._exit(1)
