"""The tensors of an exported directory in GGUF's types.

Codes are copied when GGUF has the same grid: symmetric blocks become Q4_0 or Q8_0, 4-bit blocks with zero points become
Q4_1, and a wide block becomes several blocks of 32. Only the scales are rounded, to float16. Other tensors (8 bits with
zero points, blocks of 16) are quantised again to Q8_0, or to F16 when the row width is not a multiple of 32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Q
from gguf.quants import quantize
from numpy.typing import NDArray

from ouro_edge.arch.weights import fused_rows
from ouro_edge.bundle.directory import DirectoryBundle
from ouro_edge.bundle.manifest import StoredTensor
from ouro_edge.export.gguf.blocks.repack import BLOCK_SIZE, store, stored_type
from ouro_edge.quant import dequantize
from ouro_edge.quant.packing import unpack


class BundleTensors:
    """Tensor source for `writer.write_gguf`."""

    def __init__(self, bundle: DirectoryBundle) -> None:
        self._bundle = bundle
        self._rows = fused_rows(bundle.config)

    def kind(self, name: str) -> Q:
        """The type of a tensor in the file."""
        tensor = self._tensor(name)
        if tensor.scheme is None:
            return Q.F32
        if tensor.shape[1] % BLOCK_SIZE:
            return Q.F16
        return stored_type(tensor.scheme) or Q.Q8_0

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop: bytes, or float32 or float16 values."""
        fused, first, _ = self._rows[name]
        start, stop, tensor, kind = first + start, first + stop, self._tensor(name), self.kind(name)
        if tensor.scheme is None:
            return np.array(self._bundle.array(tensor.parts["values"])[start:stop], np.float32)
        whole = self._bundle.quantized(fused)
        if stored_type(tensor.scheme) != kind:
            values: NDArray[Any] = quantize(dequantize(whole, start, stop), kind)
            return values
        zeros = whole.zero_points
        if zeros is not None:
            zeros = unpack(np.asarray(zeros[start:stop]), tensor.scheme.bits, whole.scales.shape[1])
        packed, scales = np.asarray(whole.packed[start:stop]), np.asarray(whole.scales[start:stop])
        block, size = GGML_QUANT_SIZES[kind]
        return store(packed, scales, zeros, kind)[:, : tensor.shape[1] // block * size]

    def main_type(self) -> Q:
        """The type of most weights."""
        return self.kind("layers.0.o_proj")

    def changed(self) -> bool:
        """Whether any tensor is quantised again."""
        schemes = {name: self._tensor(name).scheme for name in self._rows}
        return any(scheme is not None and stored_type(scheme) != self.kind(name) for name, scheme in schemes.items())

    def _tensor(self, name: str) -> StoredTensor:
        return self._bundle.manifest.tensors[self._rows[name].tensor]
