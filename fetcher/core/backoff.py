"""How long to wait before the next try."""

import random


def backoff(failures: int, base: float, cap: float) -> float:
    """Return the seconds to wait after this many failures in a row.

    This is `base`, doubled once for each failure but at most `cap`, and then reduced at random by up to a half.
    """
    return random.uniform(0.5, 1) * min(cap, base * 2.0 ** min(failures, 30))  # 2 ** 1024 would overflow in an outage
