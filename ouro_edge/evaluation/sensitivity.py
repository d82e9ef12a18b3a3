"""Which loop and which tensor of an exported model costs how much: KL from the original when only it is rounded.

Everything else keeps the original weights, and activations are not rounded, so the figures add up only roughly. All
runs use the NumPy reference, which reads weights when it needs them: one run per loop and one per tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.arch.reference import logits, rope_tables, run_pass
from ouro_edge.arch.weights import Array, fused_names, tensor_shapes
from ouro_edge.evaluation.distances import kl_divergence, log_softmax
from ouro_edge.system.progress import Progress

Weights = Mapping[str, Array]

_STEPS = 4  # factors of channels per power of two


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Mean KL in nats a token, at full depth."""

    loops: tuple[float, ...]  # all matrices of the block rounded in this loop alone
    tensors: Mapping[str, float]  # this tensor rounded in all loops; fused names


class Matched(Mapping[str, Array]):
    """Original weights with the channel scales of an exported model, so that single tensors can be exchanged.

    An export may scale channels by powers of 2**(1/4), see `fitting.equalize`: norms against the matrices that read
    them, up against down. The factors follow from the norms, which are stored in float32, and from the lengths of the
    rows of up.
    """

    def __init__(self, config: ModelConfig, original: Weights, stored: Weights) -> None:
        self._original, self._factors = original, dict[str, tuple[Array, Array]]()  # of rows and columns
        scaled_layers = [i for i in range(config.num_layers) if f"layers.{i}.attn_norm" in original]
        for i in scaled_layers:
            layer = f"layers.{i}."
            one = np.ones(1, np.float32)
            read, fed = (_powers(original[layer + n], stored[layer + n]) for n in ("attn_norm", "ffn_norm"))
            up, scaled = original[layer + "up_proj"] * fed, stored[layer + "up_proj"]
            made = _powers(*(np.linalg.norm(values, axis=1) for values in (up, scaled)))
            found = {
                "attn_norm": (np.reciprocal(read), one),
                "ffn_norm": (np.reciprocal(fed), one),
                "down_proj": (one, made),
            }
            found |= {f"{part}_proj": (one, read) for part in "qkv"}
            found |= {"gate_proj": (one, fed), "up_proj": (np.reciprocal(made), fed)}
            self._factors |= {layer + name: factors for name, factors in found.items()}

    def __getitem__(self, name: str) -> Array:
        return self.scaled(name, self._original[name])

    def scaled(self, name: str, values: Array, start: int = 0) -> Array:
        """Rows of an original tensor, from `start` on, with the scales of the exported model."""
        rows, columns = self._factors.get(name, (None, None))
        if rows is None or columns is None:
            return values
        rows = rows[start : start + len(values)] if len(rows) > 1 else rows
        return values * rows if values.ndim == 1 else values * rows[:, None] * columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._original)

    def __len__(self) -> int:
        return len(self._original)


def _powers(original: Array, stored: Array) -> Array:
    """The power of 2**(1/4) nearest to each ratio; 1 where one side is zero."""
    usable = (original != 0) & (stored != 0)
    ratio = np.abs(np.where(usable, original, 1) / np.where(usable, stored, 1))
    return np.exp2(np.rint(_STEPS * np.log2(ratio)) / _STEPS).astype(np.float32)


class Replaced(Mapping[str, Array]):
    """Weights of which some are taken from another model."""

    def __init__(self, weights: Weights, other: Weights, names: Iterable[str]) -> None:
        self._weights, self._other, self._names = weights, other, frozenset(names)

    def __getitem__(self, name: str) -> Array:
        return (self._other if name in self._names else self._weights)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def sensitivity(
    config: ModelConfig,
    original: Weights,
    stored: Weights,
    windows: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure every loop and every tensor on the second halves of `windows` (token ids)."""
    original = Matched(config, original, stored)
    groups = {name: parts for name, parts in fused_names(config).items() if len(tensor_shapes(config)[parts[0]]) == 2}
    groups.pop("exit_gate.weight", None)
    if config.tie_word_embeddings:
        groups["head"] = ("head",)
    block = [part for parts in groups.values() for part in parts if part.startswith("layers.")]
    total, done = config.loops + len(groups) + 1, 0

    def of_windows(weights: Callable[[int], Weights], what: str) -> list[Array]:
        nonlocal done
        if progress:
            progress(done, total, what)
        done += 1
        return [_logits(config, weights, np.asarray(ids)) for ids in windows]

    base = [log_softmax(rows) for rows in of_windows(lambda loop: original, "original weights")]

    def distance(weights: Callable[[int], Weights], what: str) -> float:
        pairs = zip(base, of_windows(weights, what), strict=True)
        return float(np.concatenate([kl_divergence(p, log_softmax(rows)) for p, rows in pairs]).mean())

    def loop_distance(chosen: int) -> float:
        rounded = Replaced(original, stored, block)
        return distance(lambda loop: rounded if loop == chosen else original, f"loop {chosen + 1}")

    def tensor_distance(name: str, parts: tuple[str, ...]) -> float:
        rounded = Replaced(original, stored, parts)
        return distance(lambda loop: rounded, name)

    loops = tuple(loop_distance(loop) for loop in range(config.loops))
    found = Sensitivity(loops, {name: tensor_distance(name, parts) for name, parts in groups.items()})
    if progress:
        progress(total, total, "")
    return found


def _logits(config: ModelConfig, weights: Callable[[int], Weights], ids: NDArray[np.int64]) -> Array:
    """Logits of the second half of a window, with the weights of each loop, or of the loop nearest to a pass."""
    program, tables = loop_program(config), rope_tables(config, len(ids))
    second = None if program.second is None else weights(0)[program.second]
    rows = program.first_rows(weights(0)["embedding"][ids], second)
    for number, step in enumerate(program.usual_steps):
        loop = min(max(number - program.first_loop, 0), config.loops - 1)
        rows = run_pass(config, weights(loop), program.stack(step.graph), rows, *tables)
    return logits(config, {"head": weights(config.loops - 1)["head"]}, rows[len(ids) // 2 : -1])
