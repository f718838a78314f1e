"""The end of a soak by SIGTERM or Ctrl-C: every process leaves by itself, and takes what it started along."""

import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)

ending = threading.Event()


def end_on_signals() -> None:
    """Raise SystemExit at the first of these signals, so that each context ends; the next ones change nothing."""

    def end(number: int, frame: Any) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        ending.set()
        sys.exit(128 + number)

    for each in SIGNALS:
        signal.signal(each, end)


def end_with_parent() -> None:
    """Let this process end, as by SIGTERM, when the one that started it has ended, however that was."""
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def require_not_ending() -> None:
    """Raise SystemExit if this process is about to end: so its threads end."""
    if ending.is_set():
        raise SystemExit
