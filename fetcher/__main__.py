"""The event fetcher: VK's Bots Long Poll in, events on a Redis bus out."""

import os
import signal
import sys
import threading

SIGNALS = {signal.SIGTERM, signal.SIGINT}


def end_on_signals() -> None:
    """End the process at SIGTERM or SIGINT, at once and with code 0: whatever it waits for, nothing needs flushing."""
    if sys.platform == "win32":
        for number in SIGNALS:
            signal.signal(number, lambda *of_signal: os._exit(0))
    else:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

        def wait() -> None:
            signal.sigwait(SIGNALS)
            os._exit(0)

        threading.Thread(target=wait, daemon=True).start()


end_on_signals()  # before the imports that take time: the kernel keeps no signal from process 1 that it does not expect

import argparse  # noqa: E402
import gc  # noqa: E402
import logging  # noqa: E402

from requests.adapters import BaseAdapter  # noqa: E402

from . import __version__, config, logs, metrics  # noqa: E402
from .bus.bus import Bus  # noqa: E402
from .bus.cache import NameCache  # noqa: E402
from .bus.connection import redis_errors  # noqa: E402
from .core.entries import EntryBuilder  # noqa: E402
from .core.names import Directory  # noqa: E402
from .core.relay import Relay  # noqa: E402
from .errors import FatalError, TransientError  # noqa: E402
from .fastjson import event_to_json  # noqa: E402
from .vk.api import Api  # noqa: E402
from .vk.builders import BUILDERS, command_pattern  # noqa: E402
from .vk.longpoll import LongPoll  # noqa: E402
from .vk.lookups import Lookups  # noqa: E402
from .vk.updates import Updates  # noqa: E402

EXIT_FATAL, EXIT_SETTINGS, EXIT_BUG = 1, 2, 70

log = logging.getLogger("fetcher")


def main() -> int:
    """Run what the command line says and return the exit code: 0, 1 (fatal), 2 (settings) or 70 (a bug of ours)."""
    parser = argparse.ArgumentParser(prog="event-fetcher", description=__doc__)
    parser.add_argument("--demo", action="store_true", help="run on a simulated VK and a Redis server of its own")
    parser.add_argument("--watch", action="store_true", help="print what flows on the bus, and send nothing")
    parser.add_argument(
        "--health", action="store_true", help="tell whether this host's fetcher is polling and Redis answers"
    )
    parser.add_argument("--setup", action="store_true", help="make the community ready and report what is missing")
    text = "publish the dead letters that are events now; with GROUP, give that consumer group's back to it"
    parser.add_argument("--redrive", nargs="?", const="", metavar="GROUP", help=text)
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args()
    if options.demo:
        from .commands.demo import demo

        return demo(run)
    try:
        needed = (
            ()
            if options.watch or options.redrive
            else ("TOKEN",)
            if options.setup
            else ("GROUPID",)
            if options.health
            else config.REQUIRED
        )
        settings = config.read(os.environ, needed)
    except ValueError as error:
        return fail(str(error), EXIT_FATAL if options.health else EXIT_SETTINGS)
    if options.health:
        return health(settings)
    if options.setup or options.redrive is not None:
        return execute(options, settings)
    if options.watch:
        return watch_bus(settings)
    return run(settings)


def execute(options: argparse.Namespace, settings: config.Config) -> int:
    """Run --setup or --redrive and return the exit code."""
    logs.to_stderr(settings.log_level, settings.secrets())
    try:
        if options.setup:
            from .commands.setup import setup

            return setup(settings)
        from .commands.redrive import redrive

        return redrive(settings, options.redrive or None)
    except (TransientError, FatalError) as error:
        return fail(str(error))


def run(settings: config.Config, simulated: BaseAdapter | None = None) -> int:
    """Fetch for ever, from what is simulated or from VK; return the exit code if that ends."""
    gc.set_threshold(10_000)  # batches are thousands of objects without a circle: a search each 700 costs a tenth
    logs.to_stderr(settings.log_level, settings.secrets())
    log.info("Event fetcher %s: community %s to bus %r", __version__, settings.group, settings.bus)
    try:
        serve_metrics(settings.metrics_port)
        api = Api(settings.token)
        if simulated:
            api.http.mount("https://", simulated)
        longpoll = LongPoll(api, settings.group, settings.renew_after, BUILDERS)
        lookups, bus = Lookups(api), bus_of(settings)
        updates = Updates(lookups, command_pattern(settings.group, settings.prefixes), settings.raw)
        directory = Directory(NameCache(bus, settings.names_ttl), lookups)
        entries = EntryBuilder(updates, directory, event_to_json)
        Relay(longpoll, entries, bus, settings.poll_wait, metrics.METRICS).run()
    except FatalError as error:
        log.critical("%s", error)
        return EXIT_FATAL
    except Exception:
        log.critical("A bug of the fetcher; please report it", exc_info=True)
        return EXIT_BUG


def serve_metrics(port: int | None) -> None:
    """Answer on this port, if there is one; raise FatalError if that cannot be."""
    try:
        if port:
            metrics.serve(port, __version__)
    except OSError as error:
        raise FatalError(f"METRICS_PORT {port} cannot be used ({type(error).__name__}): choose another one") from None
    except ImportError:
        raise FatalError("METRICS_PORT needs prometheus-client: pip install 'event-fetcher[metrics]'") from None


def watch_bus(settings: config.Config) -> int:
    """Print what flows on the bus until Ctrl-C; return 0, or 1 if only the operator can let it go on."""
    from .commands.watch import watch

    logs.to_stderr(settings.log_level, settings.secrets())
    try:
        with redis_errors():
            return watch(settings.redis_url, settings.bus, settings.group or None, sys.stdout)
    except FatalError as error:
        return fail(str(error))


def health(settings: config.Config) -> int:
    """Return 0 while this host's fetcher of this community is polling and Redis answers, else 1 and say what is not."""
    try:
        if bus_of(settings).alive():
            return 0
        return fail("No fetcher of this community on this host has polled VK lately")
    except (TransientError, FatalError) as error:
        return fail(str(error))


def fail(sentence: str, code: int = EXIT_FATAL) -> int:
    """Say what is wrong, and return the exit code for that."""
    print(f"event-fetcher: {sentence}", file=sys.stderr)
    return code


def bus_of(settings: config.Config) -> Bus:
    """Return the bus of these settings."""
    alive_ttl = settings.poll_wait + 30
    return Bus(settings.redis_url, settings.bus, settings.group, settings.stream_maxlen, alive_ttl)


if __name__ == "__main__":
    sys.exit(main())
