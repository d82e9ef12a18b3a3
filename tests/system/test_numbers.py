"""What counts as a number, and the refusal of what does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ouro_edge.errors import RequestError
from ouro_edge.runtime.checks import check_number
from ouro_edge.system.numbers import is_number, is_whole

WHOLE = (0, -3, 10**400, np.int64(3), np.uint8(1))
REAL = (0.5, -1e308, math.inf, -math.inf, np.float32(2), np.float16(1))
NEITHER = (True, np.bool_(True), None, "3", [3], 1j, math.nan, np.float32("nan"), np.ones(1))


@pytest.mark.parametrize("value", [*WHOLE, *REAL, *NEITHER])
def test_kinds_are_told_apart(value: Any) -> None:
    assert is_whole(value) is any(value is one for one in WHOLE)
    assert is_number(value) is not any(value is one for one in NEITHER)


def test_a_limit_holds_for_both_signs() -> None:
    assert is_number(3, 3) and is_number(-3.0, 3)
    assert not is_number(4, 3) and not is_number(-3.5, 3) and not is_number(math.inf, 1e308)


@pytest.mark.parametrize("value", [0, 1.0, np.float32(0.5)])
def test_numbers_in_range_pass(value: Any) -> None:
    check_number("share", value, 0, 1, "0 to 1")


@pytest.mark.parametrize("value", [-0.1, 1.5, 10**400, -math.inf, *NEITHER])
def test_others_are_refused_in_one_line(value: Any) -> None:
    with pytest.raises(RequestError, match=r"^share is .*; expected 0 to 1$"):
        check_number("share", value, 0, 1, "0 to 1")
