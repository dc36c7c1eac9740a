"""How long to wait before the next try: a pure function of how many tries have failed."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Capped exponential backoff with jitter.

    The jitter only shortens a delay (by up to `jitter` of it): `cap` is a promise of how late a retry comes at worst,
    and a herd of clients that failed together still comes back spread out.
    """

    first: float
    """Seconds before the first retry."""
    cap: float
    """Seconds that no delay exceeds."""
    jitter: float = 0.3

    def delay(self, failures: int, *, random: Callable[[], float] = random.random) -> float:
        """Seconds to wait after this many failures in a row (1 or more)."""
        exponent = min(failures - 1, 32)  # 2**32 × any first delay is beyond every cap, and floats stay finite
        return min(self.cap, self.first * 2**exponent) * (1 - self.jitter * random())
