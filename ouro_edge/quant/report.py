"""What a number format cost: the error of restored values, summed over chunks. Knows no format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.errors import RequestError

_CHUNK = 1 << 16  # values in float64 at once


@dataclass(frozen=True, slots=True)
class TensorError:
    """Largest and root-mean-square difference, and the signal-to-noise ratio (inf when nothing was lost)."""

    max_error: float
    rms_error: float
    snr_db: float

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold: a ratio that is not finite becomes None."""
        snr = self.snr_db if math.isfinite(self.snr_db) else None
        return {"max_error": self.max_error, "rms_error": self.rms_error, "snr_db": snr}


class ErrorMeter:
    """Sums over any number of chunks, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._max = 0.0
        self._noise = 0.0
        self._signal = 0.0

    def add(self, original: NDArray[np.floating], restored: NDArray[np.floating]) -> None:
        """Two arrays of one shape. RequestError when the shapes differ."""
        if original.shape != restored.shape:
            raise RequestError(f"cannot compare {list(original.shape)} with {list(restored.shape)}")
        before, after = original.reshape(-1), restored.reshape(-1)
        for at in range(0, before.size, _CHUNK):
            signal = before[at : at + _CHUNK].astype(np.float64)
            noise = after[at : at + _CHUNK].astype(np.float64) - signal
            self._max = float(max(self._max, np.abs(noise).max()))
            self._noise += float(np.square(noise).sum())
            self._signal += float(np.square(signal).sum())
        self._count += before.size

    def result(self) -> TensorError:
        """Error of everything added so far. RequestError when that is nothing."""
        if not self._count:
            raise RequestError("the error of no values is undefined; add values first")
        if not self._noise:
            snr = math.inf
        else:
            snr = 10 * math.log10(self._signal / self._noise) if self._signal else -math.inf
        return TensorError(self._max, math.sqrt(self._noise / self._count), snr)
