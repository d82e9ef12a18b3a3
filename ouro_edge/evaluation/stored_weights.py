"""A bundle's weights under the names of `ouro_edge.arch.weights`, dequantised: the input of a fair reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ouro_edge.arch.weights import Array, fused_names, tensor_shapes
from ouro_edge.bundle.bundle import Bundle


class StoredWeights(Mapping[str, Array]):
    """Reads a tensor when it is asked for; the siblings that it is fused with are kept for the next question."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._shapes = tensor_shapes(bundle.config)
        self._home = {part: (name, parts) for name, parts in fused_names(bundle.config).items() for part in parts}
        self._last: tuple[str, Array] | None = None

    def __getitem__(self, name: str) -> Array:
        if name == "head" and name not in self._shapes:
            return self._bundle.values("head" if "head" in self._bundle.manifest.tensors else "embedding")
        home, parts = self._home[name]
        if self._last is None or self._last[0] != home:
            self._last = None  # let go of the old one first
            self._last = home, self._bundle.values(home)
        start = sum(self._shapes[part][0] for part in parts[: parts.index(name)])
        return self._last[1][start : start + self._shapes[name][0]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
