"""End the process at SIGTERM or SIGINT, at once: whatever it waits for, nothing needs flushing.

Only the program imports this, before anything that takes time: in a container it is process 1, and the kernel drops
a signal that process 1 does not handle yet.
"""

import os
import signal
import sys
import threading

SIGNALS = {signal.SIGTERM, signal.SIGINT}
exit_code = 0  # of a process that a signal ends

if sys.platform == "win32":
    for number in SIGNALS:
        signal.signal(number, lambda *of_signal: os._exit(exit_code))
else:

    def wait() -> None:
        """Wait for a signal, and end the process."""
        signal.sigwait(SIGNALS)
        os._exit(exit_code)

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=wait, daemon=True).start()
