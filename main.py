"""`python main.py` is `python -m fetcher`, with a sentence in place of a traceback if it cannot start here."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # this file is read by older ones, too
    sys.exit("event-fetcher: Python 3.11 or later is needed, this is Python %s.%s" % sys.version_info[:2])  # noqa: UP031

try:
    from fetcher.__main__ import main
except ModuleNotFoundError as error:
    install = "python3 -m venv .venv && .venv/bin/pip install '.[demo]' && .venv/bin/python main.py"
    sys.exit(f"event-fetcher: the package {error.name} is not installed here; install and run: {install}")

sys.exit(main())
