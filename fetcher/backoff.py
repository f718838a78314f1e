"""How long to wait before trying again."""

import random


def backoff(failures: int, base: float, cap: float) -> float:
    """Return the seconds to wait after so many failures: exponential, half of it random, so that clients spread out."""
    longest: float = min(cap, base * 2.0 ** min(failures, 100))  # a greater power outgrows a float
    return longest / 2 + random.uniform(0, longest / 2)
