"""How long to wait before the next try."""

import random


def backoff(failures: int, base: float, cap: float) -> float:
    """Return the seconds to wait after so many failures in a row: doubling from `base` to `cap`, half at random."""
    longest: float = min(cap, base * 2 ** min(failures, 30))  # 2 ** failures outgrows a float when an outage lasts
    return longest * random.uniform(0.5, 1)
