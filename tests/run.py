"""Run the program with its requests to VK redirected to the tests' VK: `python -m tests.run [its arguments]`.

VK_URL is the address of that VK. CONSTANTS, a JSON object, gives named constants of the program other values:
{"fetcher.core.relay:NAME": 0.1}. With COVERAGE_PROCESS_START, the coverage of the process is saved.
"""

import importlib
import json
import operator
import os
import sys
from typing import Any
from urllib.parse import urlsplit

HOSTS = {"api.vk.ru", "api.vk.com", "lp.vk.ru", "lp.vk.com"}
NOWHERE = "http://127.0.0.1:1"  # used without VK_URL, so that the real VK is never reached


def redirect_vk_to(url: str) -> None:
    """Redirect all requests for VK to this address.

    This replaces HTTPAdapter.send(), so that adapters of the program keep their place and their timeouts.
    """
    from requests.adapters import HTTPAdapter  # imported here, so that the program comes first, as in production

    send = HTTPAdapter.send

    def send_there(self: Any, request: Any, *arguments: Any, **more: Any) -> Any:
        if urlsplit(request.url).hostname in HOSTS:
            request.url = url.rstrip("/") + request.path_url
        return send(self, request, *arguments, **more)

    HTTPAdapter.send = send_there  # type: ignore[method-assign]


def set_constants(constants: dict[str, Any]) -> None:
    """Set module:NAME, or module:Class.NAME, to another value; raise AttributeError if it does not exist."""
    for address, value in constants.items():
        module, _, path = address.partition(":")
        owner, _, name = path.rpartition(".")
        holder: Any = importlib.import_module(module)
        holder = operator.attrgetter(owner)(holder) if owner else holder
        getattr(holder, name)
        setattr(holder, name, value)


def save_coverage() -> None:
    """Measure coverage and save it at the end, even if the program leaves by os._exit()."""
    import coverage

    coverage.process_startup()  # does nothing if the interpreter has already started it
    leave = os._exit

    def save_and_exit(status: int) -> None:
        if measured := coverage.Coverage.current():
            measured.stop()
            measured.save()
        leave(status)

    os._exit = save_and_exit  # type: ignore[assignment]


if __name__ == "__main__":
    if os.environ.get("COVERAGE_PROCESS_START"):
        save_coverage()
    program = importlib.import_module("fetcher.__main__")  # imported here, because importing it blocks signals
    redirect_vk_to(os.environ.get("VK_URL", NOWHERE))
    set_constants(json.loads(os.environ.get("CONSTANTS", "{}")))
    sys.argv[0] = "event-fetcher"
    sys.exit(program.main())
