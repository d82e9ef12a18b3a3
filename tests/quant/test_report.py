"""The error report against figures worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ouro_edge.errors import RequestError
from ouro_edge.quant import ErrorMeter


def test_sums_over_chunks() -> None:
    meter = ErrorMeter()
    meter.add(np.float32([[3, 4]]), np.float32([[3, 4]]))
    meter.add(np.float32([[5, 0]]), np.float32([[4, -2]]))
    error = meter.result()
    assert error.max_error == 2
    assert error.rms_error == pytest.approx(math.sqrt(5 / 4))
    assert error.snr_db == pytest.approx(10 * math.log10(50 / 5))
    assert error.to_dict() == {"max_error": 2.0, "rms_error": error.rms_error, "snr_db": error.snr_db}


def test_long_arrays_are_summed_to_the_end() -> None:
    original = np.zeros(200_000, np.float32)
    restored = original.copy()
    restored[-1] = 3
    meter = ErrorMeter()
    meter.add(original, restored)
    assert meter.result().max_error == 3
    assert meter.result().rms_error == pytest.approx(3 / math.sqrt(200_000))


def test_sums_do_not_overflow_float32() -> None:
    meter = ErrorMeter()
    meter.add(np.float32([1e30]), np.float32([0.9e30]))
    assert meter.result().snr_db == pytest.approx(20)


@pytest.mark.parametrize(("original", "restored", "snr"), [(1, 1, math.inf), (0, 0, math.inf), (0, 1, -math.inf)])
def test_a_ratio_without_a_figure_is_null_in_json(original: float, restored: float, snr: float) -> None:
    meter = ErrorMeter()
    meter.add(np.float32([original]), np.float32([restored]))
    assert meter.result().snr_db == snr
    assert json.loads(json.dumps(meter.result().to_dict(), allow_nan=False))["snr_db"] is None


def test_refuses_nothing_and_mismatch() -> None:
    with pytest.raises(RequestError, match="no values"):
        ErrorMeter().result()
    with pytest.raises(RequestError, match=r"\[2\] with \[3\]"):
        ErrorMeter().add(np.zeros(2), np.zeros(3))
