"""What the tests share: a VK that answers, servers that die, the fetcher as a process."""

import contextlib
import itertools
import os
import random
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

HOST = "127.0.0.1"


def _every_port() -> Iterator[int]:
    """Yield the ports of this worker in an endless loop, so that one comes again only after all others."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(20000 + worker, 32000, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))
    first = random.SystemRandom().randrange(len(ports))
    return itertools.cycle([*ports[first:], *ports[:first]])


_ports = _every_port()


def free_port() -> int:
    """Return a free port of loopback, which no other pytest worker gets.

    Below the ports that the kernel gives to clients: a client that tries again and again to connect to
    a closed port above them is sooner or later given that very port, and is connected to itself.
    """
    while True:
        port = next(_ports)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port


class Loopback(socketserver.ThreadingTCPServer):
    """Serve every connection to a port of loopback in a thread, and can drop them all."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, port: int, handler: Callable[..., Any]) -> None:
        self.connections: set[Any] = set()
        super().__init__((HOST, port), handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # Without socketserver's polite shutdown: it would send FIN before the RST of a reset.
        self.connections.discard(request)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that has left is expected here
            super().handle_error(request, client_address)

    def disconnect(self) -> None:
        """Drop all connections; new ones are welcome."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening, then drop all connections."""
        self.shutdown()
        self.server_close()
        self.disconnect()
