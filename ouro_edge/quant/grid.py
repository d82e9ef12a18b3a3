"""The levels of a calibrated block, and the codes, scales and zero points (or minima) of a rounded matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.quant.blockwise import QuantizedTensor
from ouro_edge.quant.packing import pack
from ouro_edge.quant.scheme import Scheme

Zero = Literal["middle", "whole", "float"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels of a block: value = scale * (code - zero), or scale * code + minimum with `zero` "float"."""

    bits: int
    block_size: int
    zero: Zero

    @property
    def top(self) -> int:
        """The highest code."""
        return 2**self.bits - 1


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """Codes [N, K], scales [N, blocks], zero points (whole) or minima (float) [N, blocks]."""

    codes: NDArray[np.uint8]
    scales: Array
    zeros: Array

    def values(self, grid: Grid) -> Array:
        """The dequantised matrix [N, K]."""
        width, codes = self.codes.shape[1], self.codes.astype(np.float32)
        scales, zeros = (np.repeat(a, grid.block_size, 1)[:, :width] for a in (self.scales, self.zeros))
        return scales * codes + zeros if grid.zero == "float" else scales * (codes - zeros)

    def tensor(self, scheme: Scheme) -> QuantizedTensor:
        """The matrix in the layout of MatMulNBits; `scheme` is that of the grid, which has no minima."""
        rows, width = self.codes.shape
        blocks, size = self.scales.shape[1], scheme.block_size
        middle = 2 ** (scheme.bits - 1)
        zeros = np.full(self.scales.shape, middle, np.uint8) if scheme.symmetric else self.zeros.astype(np.uint8)
        codes = np.repeat(zeros, size, axis=1)  # an incomplete last block is padded with its zero point
        codes[:, :width] = self.codes
        packed = pack(codes.reshape(rows, blocks, size), scheme.bits)
        return QuantizedTensor(
            scheme, (rows, width), packed, self.scales, None if scheme.symmetric else pack(zeros, scheme.bits)
        )


def grid_of(scheme: Scheme) -> Grid:
    """The grid of a scheme."""
    return Grid(scheme.bits, scheme.block_size, "middle" if scheme.symmetric else "whole")
