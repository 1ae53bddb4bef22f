"""Which numbers a setting may be, and the one line for people where it is another."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ovbridge.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`, the ends included unless open."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.low_open else self.low <= value
        below = value < self.high if self.high_open or self.high == math.inf else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.low_open else 'at least'} {self.low}"
        start = "above" if self.low_open else "from"
        return f"{start} {self.low} to {'below ' if self.high_open else ''}{self.high}"


COUNT = Range(1)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, low_open=True)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, high_open=True)
SEED = Range(0, 2**64 - 1)
"""What every source of randomness takes."""


def require_ranges(config: object, where: str, **allowed: Range) -> None:
    """Raise ConfigError for the first field of `config` outside its range; None passes, a tuple is checked one by one.

    Args:
        config: What has the fields.
        where: Dotted path of `config` in a run's settings, with a dot at the end; "" where it has several.
        allowed: Range of each field.
    """
    for name, numbers in allowed.items():
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if any(one is not None and one not in numbers for one in values):
            shown = ",".join(map(str, values))
            raise ConfigError(f"{where}{name} is {shown}: it must be {numbers}")
