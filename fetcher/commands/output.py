"""Print for people, on standard output."""

import os
import sys

from ..logs import log


def print_line(text: str, end: str = "\n") -> None:
    """Print a text immediately, on any terminal; do nothing if standard output is closed.

    If the text cannot be written, end the process: with code 0 if the reader is gone, as in `--watch | head`, otherwise
    with code 1.
    """
    try:
        if sys.stdout:
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every terminal knows Cyrillic
        print(text, end=end, flush=True)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        log.critical("The output cannot be written (%s)", error.strerror)
        os._exit(1)
