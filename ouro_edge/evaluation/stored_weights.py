"""A bundle's weights, dequantised, under the names of `ouro_edge.arch.weights`: the input of the NumPy reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ouro_edge.arch.weights import Array, fused_rows, head_tensor, tensor_shapes
from ouro_edge.bundle.bundle import Bundle


class StoredWeights(Mapping[str, Array]):
    """Reads tensors on demand; the last fused tensor is kept, since its other parts are usually read next."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._shapes = tensor_shapes(bundle.config)
        self._rows = fused_rows(bundle.config)
        self._last: tuple[str, Array] | None = None

    def __getitem__(self, name: str) -> Array:
        if name == "head" and name not in self._shapes:
            return self._bundle.values(head_tensor(self._bundle.tensors))
        fused, first, last = self._rows[name]
        if self._last is None or self._last[0] != fused:
            self._last = None  # release the old one first
            self._last = fused, self._bundle.values(fused)
        return self._last[1][first:last]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
