"""How long to wait before the next try."""

import random


def backoff(failures: int, base: float, cap: float) -> float:
    """Return the seconds to wait: `base`, doubled with each failure in a row up to `cap`, less up to half at random."""
    longest: float = min(cap, base * 2 ** min(failures, 30))  # in a long outage 2 ** failures outgrows a float
    return longest * random.uniform(0.5, 1)
