"""Scales of channels that make the inputs of matrices easier to round, without a change of the function.

Activations are rounded to eight bits in blocks with one scale, so a large channel costs its neighbours precision. A
channel of a matrix's inputs is divided by s, and the column of the matrix multiplied by it (SmoothQuant, arXiv
2211.10438, with root mean squares and the exponent 1/2):

    q, k, v and gate, up    the gain of the norm before them is divided
    down                    the rows of up are divided

s is a power of 2**(1/4), so that it can be recognised in an exported model (`evaluation.sensitivity`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.arch.reference import add_part, attention, entry, gated_values, rms_norm, rope_tables, written
from ouro_edge.arch.weights import Array, TensorReader, Weights
from ouro_edge.fitting.calibrate_weights import embedding_rows
from ouro_edge.system.progress import Progress

Add = Callable[[str, Array], None]  # name, rows of inputs

_EXPONENT = 0.5
_WINDOWS = 4  # of 512 tokens, divided by the number of loops
_STEPS = 4  # per power of two
_MOST = 5.0  # of log2 s, either way
_READERS = {"attn_norm": ("q_proj", "k_proj", "v_proj"), "ffn_norm": ("gate_proj", "up_proj")}


def equalized(weights: Weights, windows: NDArray[np.int64], progress: Progress | None = None) -> Weights:
    """The weights with scaled channels, read lazily; measured over all loops on some of the windows [n, S] of ids.

    Norms without gains have nothing to divide, so the weights of such a model stay as they are.
    """
    if "layers.0.attn_norm" not in weights:
        return weights
    windows = windows[: max(1, _WINDOWS // weights.config.loops)]
    readers: dict[str, TensorReader] = {name: weights.reader(name) for name in weights}
    for name, (rows, columns) in _scales(weights, windows, progress).items():
        readers[name] = Scaled(weights, name, rows, columns)
    return Weights(weights.config, readers)


@dataclass(frozen=True, slots=True)
class Scaled:
    """A tensor that is multiplied by rows [N] and columns [K] as it is read; a norm has rows only."""

    weights: Weights
    name: str
    rows: Array | None
    columns: Array | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weights.shapes[self.name]

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop of the first axis."""
        values = self.weights.rows(self.name, start, stop)
        if self.rows is not None:
            values = values * self.rows[start:stop].reshape(-1, *[1] * (values.ndim - 1))
        if self.columns is not None:
            values = values * self.columns
        return values


def _scales(
    weights: Weights, windows: NDArray[np.int64], progress: Progress | None
) -> dict[str, tuple[Array | None, Array | None]]:
    """Name -> factors of its rows and of its columns."""
    config, squares = weights.config, _squares(weights, windows, progress)
    found: dict[str, tuple[Array | None, Array | None]] = {}
    for i in range(config.num_layers):
        layer = f"layers.{i}."
        down = _powers(squares[layer + "down_proj"])
        for norm, names in _READERS.items():
            by = _powers(squares[layer + norm])
            found[layer + norm] = np.reciprocal(by), None
            found |= {layer + name: (np.reciprocal(down) if name == "up_proj" else None, by) for name in names}
        found[layer + "down_proj"] = None, down
    return found


def _powers(squares: NDArray[np.float64]) -> Array:
    """The factor of each column, from the mean squares of its inputs."""
    sizes = np.log2(np.maximum(squares, max(float(squares.mean()), 1e-30) * 1e-9)) / 2
    octaves = np.clip(_EXPONENT * (sizes - sizes.mean()), -_MOST, _MOST)
    return np.exp2(np.rint(_STEPS * octaves) / _STEPS).astype(np.float32)


def _squares(weights: Weights, windows: NDArray[np.int64], progress: Progress | None) -> dict[str, NDArray[np.float64]]:
    """Sums of squares of the inputs of matrices, over all loops: by the norm before them, or the name of `down`."""
    config = weights.config
    program, tables = loop_program(config), rope_tables(config, windows.shape[1])
    second = None if program.second is None else weights[program.second]
    rows = [program.first_rows(window, second) for window in embedding_rows(weights, windows)]
    total, done = sum(len(program.stack(step.graph).layers) for step in program.usual_steps), 0
    found: dict[str, NDArray[np.float64]] = {}

    def add(name: str, inputs: Array) -> None:
        found[name] = found.get(name, 0) + np.square(inputs, dtype=np.float64).sum(axis=0)

    for step in program.usual_steps:
        stack = program.stack(step.graph)
        states = [entry(config, weights, stack, window) for window in rows]
        for i in stack.layers:
            if progress:
                progress(done, total, f"inputs of layer {i + 1}")
            done, prefix = done + 1, f"layers.{i}."
            layer = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
            states = [_layer(config, prefix, layer, h, tables, add) for h in states]
        rows = [written(config, weights, stack, window, h) for window, h in zip(rows, states, strict=True)]
    return found


def _layer(
    config: ModelConfig, prefix: str, layer: Mapping[str, Array], h: Array, tables: tuple[Array, Array], add: Add
) -> Array:
    """Rows [S, C] after a layer; `add` gets the inputs of its matrices."""
    eps = config.rms_norm_eps
    rows = rms_norm(h, layer["attn_norm"], eps)
    add(prefix + "attn_norm", rows)
    out = attention(config, rows, layer, *tables)
    h = add_part(config, layer, "attn_post_norm", h, out)
    rows = rms_norm(h, layer["ffn_norm"], eps)
    add(prefix + "ffn_norm", rows)
    rows = gated_values(rows, layer)
    add(prefix + "down_proj", rows)
    return add_part(config, layer, "ffn_post_norm", h, rows @ layer["down_proj"].T)
