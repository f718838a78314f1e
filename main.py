"""`python main.py` is `python -m fetcher`."""

from fetcher.__main__ import main

raise SystemExit(main())
