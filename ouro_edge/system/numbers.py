"""What counts as a number in arguments and in files, NumPy's scalars included."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of Python or NumPy; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any, limit: float = math.inf) -> bool:
    """Whether it is a whole or floating-point number of a size of at most `limit`; NaN is not."""
    return (is_whole(value) or isinstance(value, (float, np.floating))) and bool(abs(value) <= limit)
