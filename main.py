"""The event fetcher: VK's Bots Long Poll in, events on a Redis bus out."""

import argparse
import gc
import logging
import os
import signal
import sys
import threading

from requests.adapters import BaseAdapter

from fetcher import __version__, config, logs
from fetcher.builders import BUILDERS, command_pattern
from fetcher.bus import Bus
from fetcher.demo import demo
from fetcher.errors import Fatal, Trouble
from fetcher.relay import Relay
from fetcher.vk import VK

EXIT_FATAL, EXIT_SETTINGS, EXIT_BUG = 1, 2, 70

log = logging.getLogger("fetcher")


def main() -> int:
    """Run what the command line says and return the exit code: 0, 1 (fatal), 2 (settings) or 70 (a bug of ours)."""
    parser = argparse.ArgumentParser(prog="event-fetcher", description=__doc__)
    parser.add_argument("--demo", action="store_true", help="run on a simulated VK and a Redis server of its own")
    parser.add_argument(
        "--health", action="store_true", help="tell whether this host's fetcher is polling and Redis answers"
    )
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args()
    if options.demo:
        end_on_signals()
        return demo(run)
    try:
        settings = config.read(os.environ, token_needed=not options.health)
    except ValueError as error:
        print(f"event-fetcher: {error}", file=sys.stderr)
        return EXIT_FATAL if options.health else EXIT_SETTINGS
    if options.health:
        return health(settings)
    end_on_signals()
    return run(settings)


def run(settings: config.Config, simulated: BaseAdapter | None = None) -> int:
    """Fetch for ever, from what is simulated or from VK; return the exit code if that ends."""
    gc.set_threshold(10_000)  # batches are thousands of objects without a circle: a search each 700 costs a tenth
    logs.to_stderr(settings.log_level, settings.secrets())
    log.info("Event fetcher %s: community %s to bus %r", __version__, settings.group, settings.bus)
    vk = VK(settings.token, settings.group, settings.renew_after, BUILDERS)
    if simulated:
        vk.api.http.mount("https://", simulated)
    try:
        Relay(vk, bus(settings), command_pattern(settings.group, settings.prefixes), settings.poll_wait).run()
    except Fatal as error:
        log.critical("%s", error)
        return EXIT_FATAL
    except Exception:
        log.critical("A bug of the fetcher; please report it", exc_info=True)
        return EXIT_BUG


def health(settings: config.Config) -> int:
    """Return 0 while this host's fetcher of this community is polling and Redis answers, else 1 and say what is not."""
    try:
        if bus(settings).alive():
            return 0
        problem = "No fetcher of this community on this host has polled VK lately"
    except (Trouble, Fatal) as error:
        problem = str(error)
    print(f"event-fetcher: {problem}", file=sys.stderr)
    return EXIT_FATAL


def bus(settings: config.Config) -> Bus:
    """Return the bus of these settings."""
    alive_ttl = settings.poll_wait + 30
    return Bus(settings.redis_url, settings.bus, settings.group, settings.stream_maxlen, settings.names_ttl, alive_ttl)


def end_on_signals() -> None:
    """End the process at SIGTERM or SIGINT, at once and with code 0.

    Whatever the main thread waits for, nothing needs flushing.
    """
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def wait() -> None:
        signal.sigwait(signals)
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
