"""The event fetcher: VK's Bots Long Poll in, events on a Redis bus out."""

from . import signals  # noqa: F401  # first, so that a signal ends the process during the other imports, too

# isort: split

import argparse
import gc
import os
import sys
from typing import Any, Never

from . import __version__, config, logs
from .bus.bus import Bus
from .commands import redrive, setup, watch
from .core.relay import Relay
from .errors import FatalError, TransientError
from .logs import log
from .metrics import serve as serve_metrics
from .vk.api import Api
from .vk.entries import EntryBuilder
from .vk.longpoll import LongPoll

EXIT_FATAL, EXIT_SETTINGS, EXIT_BUG = 1, 2, 70


def main() -> int:
    """Do what the command line says and return the exit code: 0, 1 (failed), 2 (settings) or 70 (a bug of ours)."""
    parser = argparse.ArgumentParser(prog="event-fetcher", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    command = parser.add_mutually_exclusive_group().add_argument
    command("--demo", action="store_true", help="run on a simulated VK and a Redis server of its own")
    command("--setup", action="store_true", help="configure the community on VK and report what else is missing")
    command("--watch", action="store_true", help="print what arrives on the bus; read-only")
    command("--health", action="store_true", help="check that this host's fetcher polls VK")
    command("--redrive", nargs="?", default=False, metavar="GROUP", help="retry dead letters, or give back GROUP's")
    options = parser.parse_args()
    logs.to_stderr()
    try:
        return execute(options)
    except (FatalError, TransientError) as error:
        log.critical("%s", error)
        return EXIT_SETTINGS if isinstance(error, config.SettingsError) else EXIT_FATAL
    except Exception:
        log.critical("A bug in the fetcher; please report it", exc_info=True)
        return EXIT_BUG


def execute(options: argparse.Namespace) -> int:
    """Run the command with the settings that it needs, or the fetcher if no command is given."""
    if options.demo:
        from .commands.demo import demo

        return demo(run)
    if options.health:
        if Bus(config.read(os.environ, ["GROUPID"])).alive():
            return 0
        raise TransientError("No fetcher of this community on this host has polled VK lately")
    if options.setup:
        return setup.setup(config.read(os.environ, ["TOKEN"]))
    if options.watch:
        watch.watch(config.read(os.environ, []))
    if options.redrive is not False:  # `--redrive` without a group gives None
        needed = config.REQUIRED if options.redrive is None else []
        return redrive.redrive(config.read(os.environ, needed), options.redrive)
    return run(config.read(os.environ))


def run(settings: config.Config, simulated: Any = None) -> Never:
    """Fetch forever, from VK or, if `simulated` is its requests adapter, from a simulated VK.

    Raise FatalError for what only the operator can fix.
    """
    # Batches create thousands of objects but no cycles. A collection after every 700 allocations, the default of Python
    # 3.11 and 3.12, would cost a tenth of the CPU time.
    gc.set_threshold(10_000)
    logs.to_stderr(logs.WITH_TIME, settings.log_level)
    log.info("Event fetcher %s: community %s to bus %r", __version__, settings.group, settings.bus)
    metrics = serve_metrics(settings.metrics_port, __version__)
    api = Api(settings.token, metrics)
    if simulated:
        api.http.mount("https://", simulated)
    longpoll, bus = LongPoll(api, settings.group, settings.renew_after), Bus(settings)
    builder = EntryBuilder(api, bus, settings.group, settings.prefixes, settings.raw)
    Relay(longpoll, builder.build, bus, settings.poll_wait, metrics).run()


if __name__ == "__main__":
    sys.exit(main())
