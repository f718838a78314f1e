"""Run the program with VK's addresses led to the VK of the tests: `python -m tests.run [its arguments]`.

VK_URL says where that VK is. CONSTANTS, a JSON object, gives other values to named constants of the product:
{"fetcher.core.relay:NAME": 0.1}. With COVERAGE_PROCESS_START the coverage of the process is kept.
"""

import importlib
import json
import operator
import os
import sys
from typing import Any
from urllib.parse import urlsplit

HOSTS = {"api.vk.ru", "api.vk.com", "lp.vk.ru", "lp.vk.com"}
NOWHERE = "http://127.0.0.1:1"  # without VK_URL: never the real VK


def lead_vk_to(url: str) -> None:
    """Send to the given address whatever is meant for VK.

    In the adapters' own send(), so that adapters of the product keep their place and their timeouts.
    """
    from requests.adapters import HTTPAdapter  # not above: the program comes first, as in real life

    send = HTTPAdapter.send

    def send_there(self: Any, request: Any, *arguments: Any, **more: Any) -> Any:
        if urlsplit(request.url).hostname in HOSTS:
            request.url = url.rstrip("/") + request.path_url
        return send(self, request, *arguments, **more)

    HTTPAdapter.send = send_there  # type: ignore[method-assign]


def set_constants(constants: dict[str, Any]) -> None:
    """Set module:NAME, or module:Class.NAME, to another value; one that does not exist is an error."""
    for address, value in constants.items():
        module, _, path = address.partition(":")
        owner, _, name = path.rpartition(".")
        holder: Any = importlib.import_module(module)
        holder = operator.attrgetter(owner)(holder) if owner else holder
        getattr(holder, name)
        setattr(holder, name, value)


def keep_coverage() -> None:
    """Measure coverage and keep it at the end, also when the product leaves by os._exit()."""
    import coverage

    coverage.process_startup()  # does nothing when the interpreter has started it already
    leave = os._exit

    def keep_and_leave(status: int) -> None:
        if measured := coverage.Coverage.current():
            measured.stop()
            measured.save()
        leave(status)

    os._exit = keep_and_leave  # type: ignore[assignment]


if __name__ == "__main__":
    if os.environ.get("COVERAGE_PROCESS_START"):
        keep_coverage()
    program = importlib.import_module("fetcher.__main__")  # not above: importing it blocks signals
    lead_vk_to(os.environ.get("VK_URL", NOWHERE))
    set_constants(json.loads(os.environ.get("CONSTANTS", "{}")))
    sys.argv[0] = "event-fetcher"
    sys.exit(program.main())
