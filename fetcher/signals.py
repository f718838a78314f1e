"""End the process at SIGTERM or SIGINT, at once: whatever it waits for, nothing needs flushing.

Only the program imports this, before anything that takes time: in a container it is process 1, and the kernel drops
a signal that process 1 does not handle yet.
"""

import os
import signal
import sys
import threading

SIGNALS = {signal.SIGTERM, signal.SIGINT}
# A command that reports success must not do so when it is interrupted: a health check that is cut short knows nothing.
EXIT_CODE = int(any(word.startswith(("--setup", "--health", "--redrive")) for word in sys.argv))

if sys.platform != "win32":  # pragma: no branch - on Windows only types are checked

    def wait() -> None:
        """Wait for a signal, and end the process."""
        signal.sigwait(SIGNALS)
        os._exit(EXIT_CODE)

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=wait, daemon=True).start()
