"""`python main.py` is `python -m fetcher`, with a sentence in place of a traceback if it cannot start here."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # this file is read by older ones, too
    sys.exit("event-fetcher: Python 3.11 or later is needed, this is Python %s.%s" % sys.version_info[:2])  # noqa: UP031

try:
    from fetcher.__main__ import main
except ModuleNotFoundError as error:
    install = "python3 -m venv .venv && .venv/bin/pip install '.[demo]' && .venv/bin/python main.py"
    # No f-string: Python 2 would report it as a syntax error, before it could print the sentence above.
    sys.exit("event-fetcher: the package %s is not installed here; install and run: %s" % (error.name, install))  # noqa: UP031

sys.exit(main())
