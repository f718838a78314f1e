"""End the process at once on SIGTERM or SIGINT, whatever it is waiting for; nothing needs to be flushed.

Only the program imports this module, and before everything that takes time: in a container the program is process 1,
and the kernel drops signals that process 1 does not handle yet.
"""

import os
import signal
import sys
import threading

SIGNALS = {signal.SIGTERM, signal.SIGINT}
# A command whose exit code 0 means success must not exit with 0 if it is interrupted. For example, a health check that
# is cut short has not found out anything.
EXIT_CODE = int(any(word.startswith(("--setup", "--health", "--redrive")) for word in sys.argv))

if sys.platform != "win32":  # pragma: no branch - on Windows only types are checked

    def wait() -> None:
        """Wait for one of the signals, then end the process."""
        signal.sigwait(SIGNALS)
        os._exit(EXIT_CODE)

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=wait, daemon=True).start()
