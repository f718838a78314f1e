"""Run `python -m fetcher`; if it cannot start here, print a sentence that says why in place of a traceback."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # older versions run this file, too
    sys.exit("event-fetcher: Python 3.11 or later is needed, this is Python %s.%s" % sys.version_info[:2])  # noqa: UP031

try:
    from fetcher.__main__ import main
except ModuleNotFoundError as error:
    install = "python3 -m venv .venv && .venv/bin/pip install '.[demo]' && .venv/bin/python main.py"
    # Not an f-string, which Python 2 would report as a syntax error instead of printing the sentence above.
    sys.exit("event-fetcher: the package %s is not installed here; install and run: %s" % (error.name, install))  # noqa: UP031

sys.exit(main())
