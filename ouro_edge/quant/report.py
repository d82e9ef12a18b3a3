"""The error of dequantised values, accumulated over chunks. Independent of the number format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.errors import RequestError

_CHUNK_VALUES = 1 << 16  # values converted to float64 at a time


@dataclass(frozen=True, slots=True)
class TensorError:
    """Maximum and root-mean-square error, and the signal-to-noise ratio (inf for an exact result)."""

    max_error: float
    rms_error: float
    snr_db: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; a ratio that is not finite becomes None."""
        snr = self.snr_db if math.isfinite(self.snr_db) else None
        return {"max_error": self.max_error, "rms_error": self.rms_error, "snr_db": snr}


class ErrorMeter:
    """Accumulates errors over any number of chunks, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._max = 0.0
        self._noise = 0.0
        self._signal = 0.0

    def add(self, original: NDArray[np.floating], restored: NDArray[np.floating]) -> None:
        """Add two arrays of the same shape. RequestError when the shapes differ."""
        if original.shape != restored.shape:
            raise RequestError(f"cannot compare {list(original.shape)} with {list(restored.shape)}")
        before, after = original.reshape(-1), restored.reshape(-1)
        for at in range(0, before.size, _CHUNK_VALUES):
            signal = before[at : at + _CHUNK_VALUES].astype(np.float64)
            noise = after[at : at + _CHUNK_VALUES].astype(np.float64) - signal
            self._max = float(max(self._max, np.abs(noise).max()))
            self._noise += float(np.square(noise).sum())
            self._signal += float(np.square(signal).sum())
        self._count += before.size

    def result(self) -> TensorError:
        """Error of all values added so far. RequestError when there are none."""
        if not self._count:
            raise RequestError("the error of no values is undefined; add values first")
        if not self._noise:
            snr = math.inf
        else:
            snr = 10 * math.log10(self._signal / self._noise) if self._signal else -math.inf
        return TensorError(self._max, math.sqrt(self._noise / self._count), snr)
