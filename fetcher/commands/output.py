"""What commands print for people, on standard output."""

import os
import sys

from ..logs import log


def print_line(text: str, end: str = "\n") -> None:
    """Print a text at once, on any terminal; to nowhere if standard output is closed.

    End the process if it cannot be written, with code 0 if nobody reads it any more, as in `--watch | head`.
    """
    try:
        if sys.stdout:
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every terminal has Cyrillic
        print(text, end=end, flush=True)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        log.critical("The output cannot be written (%s)", error.strerror)
        os._exit(1)
