"""The end of a soak by SIGTERM or Ctrl-C: every process ends by itself, with everything that it has started."""

import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)

ending = threading.Event()


def end_on_signals() -> None:
    """Raise SystemExit at the first of these signals, so that each context exits; later ones have no effect."""

    def end(number: int, frame: Any) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        ending.set()
        sys.exit(128 + number)

    for each in SIGNALS:
        signal.signal(each, end)


def end_with_parent() -> None:
    """End this process, as by SIGTERM, once the process that started it has ended in whatever way."""
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def require_not_ending() -> None:
    """Raise SystemExit if this process is about to end, so that its threads end, too."""
    if ending.is_set():
        raise SystemExit
