"""Run VK in a process of its own: python -m tests.vk [--port N] [--ts N] ..."""

import argparse
import contextlib
import threading

from tests.vk.server import TOKEN, VK
from tests.vk.updates import GROUP


def main() -> None:
    """Be VK until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.vk", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--group", type=int, default=GROUP)
    parser.add_argument("--token", default=TOKEN)
    parser.add_argument("--ts", type=int, default=1000, help="number of the latest update")
    parser.add_argument("--kept", type=int, default=256, help="updates that are kept")
    parser.add_argument("--batch", type=int, default=100, help="the most updates in one answer")
    parser.add_argument("--latency", type=float, default=0, help="seconds that an answer of the API takes")
    parser.add_argument("--rps", type=int, default=0, help="the most requests of the API in a second, 0: no limit")
    options = vars(parser.parse_args())
    vk = VK(options.pop("group"), options.pop("token"), **options)
    with vk, contextlib.suppress(KeyboardInterrupt):
        print(vk.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
