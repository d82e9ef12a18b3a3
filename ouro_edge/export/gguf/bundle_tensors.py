"""The tensors of a bundle as GGUF stores them. Knows the bundle and the repacking.

Codes are taken over wherever GGUF has their grid: symmetric blocks become Q4_0 or Q8_0, 4-bit ones with zero points
Q4_1, wide blocks several of 32. Only the scales are rounded, to float16. What has no grid in GGUF (8 bits with zero
points, blocks of 16) is quantised again to Q8_0, or to F16 where a row is no multiple of 32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Q
from gguf.quants import quantize
from numpy.typing import NDArray

from ouro_edge.arch.weights import fused_names, tensor_shapes
from ouro_edge.bundle.bundle import Bundle
from ouro_edge.bundle.manifest import StoredTensor
from ouro_edge.export.gguf.repack import BLOCK, store, stored_type
from ouro_edge.quant import dequantize
from ouro_edge.quant.packing import unpack


class BundleTensors:
    """A bundle's tensors for `gguf_writer.write_gguf`."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        shapes = tensor_shapes(bundle.config)
        self._homes: dict[str, tuple[str, int]] = {}  # our name -> the fused tensor, and its first row in there
        for home, parts in fused_names(bundle.config).items():
            start = 0
            for part in parts:
                self._homes[part] = home, start
                start += shapes[part][0]

    def kind(self, name: str) -> Q:
        """The type that a tensor is stored in."""
        tensor = self._tensor(name)
        if tensor.scheme is None:
            return Q.F32
        if tensor.shape[1] % BLOCK:
            return Q.F16
        return stored_type(tensor.scheme) or Q.Q8_0

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop: bytes, or float32 or float16 values."""
        home, first = self._homes[name]
        start, stop, tensor, kind = first + start, first + stop, self._tensor(name), self.kind(name)
        if tensor.scheme is None:
            return np.array(self._bundle.array(tensor.parts["values"])[start:stop], np.float32)
        whole = self._bundle.quantized(home)
        if stored_type(tensor.scheme) != kind:
            values: NDArray[Any] = quantize(dequantize(whole, start, stop), kind)
            return values
        zeros = whole.zero_points
        if zeros is not None:
            zeros = unpack(np.asarray(zeros[start:stop]), tensor.scheme.bits, whole.scales.shape[1])
        packed, scales = np.asarray(whole.packed[start:stop]), np.asarray(whole.scales[start:stop])
        block, size = GGML_QUANT_SIZES[kind]
        return store(packed, scales, zeros, kind)[:, : tensor.shape[1] // block * size]

    def type(self) -> Q:
        """The type that most weights have."""
        return self.kind("layers.0.o_proj")

    def changed(self) -> bool:
        """Whether some tensor had to be quantised again."""
        return any(
            tensor.scheme is not None and stored_type(tensor.scheme) != self.kind(name)
            for name, tensor in ((name, self._tensor(name)) for name in self._homes)
        )

    def _tensor(self, name: str) -> StoredTensor:
        return self._bundle.manifest.tensors[self._homes[name][0]]
