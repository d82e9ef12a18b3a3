"""One layer of the block over the rows of all loops, for calibrated rounding: inputs of its matrices, then its output.

Two streams go through the layer: `exact` with the original weights, `own` with the rounded ones. Each matrix is rounded
when the inputs that it will see, those of `own`, are known; its targets are the outputs of `exact`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.reference import add_part, block_layer, gated_values, mixed_values, norm, rope_tables
from ouro_edge.arch.weights import Array

# Names of matrices with the same inputs, their statistics -> the rounded matrices, dequantised.
Round = Callable[[tuple[str, ...], "Moments"], Mapping[str, Array]]


@dataclass(slots=True)
class Streams:
    """States of all windows before a layer, [windows, S, C] each; the weight of each window in all sums."""

    exact: Array
    own: Array
    weights: Array  # [windows], by how often the loop of the window is used


class Moments:
    """Means over all rows: of own^T own, the Hessian, and of left^T own, the cross moment.

    `left` are the exact inputs of the matrices, or, with `outputs`, the exact outputs of the one matrix that they are
    for: the moment that its target needs, which is smaller than that of the inputs.
    """

    def __init__(self, width: int, outputs: int | None = None) -> None:
        self.hessian = np.zeros((width, width), np.float32)
        self._cross = np.zeros((width if outputs is None else outputs, width), np.float32)
        self._direct = outputs is not None
        self._rows = 0.0

    def add(self, left: Array, own: Array, weight: float) -> None:
        """Add rows [S, K] of both streams."""
        if weight != 1:
            left, own = (rows * np.float32(weight**0.5) for rows in (left, own))
        self.hessian += own.T @ own
        self._cross += left.T @ own
        self._rows += weight * len(own)

    def mean(self) -> Moments:
        """Divided by the number of rows, in place."""
        for total in (self.hessian, self._cross):
            total /= np.float32(max(self._rows, 1e-30))
        return self

    def outputs(self, weights: Array) -> Array:
        """The mean of outputs^T own [N, K], where outputs are those of `weights` [N, K] on the exact inputs."""
        return self._cross if self._direct else weights @ self._cross


def walk_layer(config: ModelConfig, layer: Mapping[str, Array], streams: Streams, round_: Round) -> None:
    """Round the matrices of one layer, and take both streams through it, in place. `layer` has short names."""
    windows = len(streams.exact)
    tables = rope_tables(config, streams.exact.shape[1])
    own = dict(layer)

    def normed(stream: Array, name: str, window: int) -> Array:
        return stream[window] if config.norms == "after the branch" else norm(config, stream[window], layer, name)

    def both(name: str, window: int) -> tuple[Array, Array]:
        return normed(streams.exact, name, window), normed(streams.own, name, window)

    def add(stream: Array, window: int, out: Array, post_norm: str) -> None:
        stream[window] = add_part(config, layer, post_norm, stream[window], out)

    def measure(inputs: Callable[[int], tuple[Array, Array]], width: int, name: str = "", post: str = "") -> Moments:
        """Statistics of a matrix's inputs; of one that writes, `name`, also add the exact outputs to their stream."""
        moments = Moments(width, len(layer[name]) if name else None)
        for window in range(windows):
            left, mine = inputs(window)
            if name:  # a norm follows, so the error counts in relation to the length of what it normalises
                out, alone = left @ layer[name].T, config.norms in ("sandwich", "after the branch")
                length = np.sqrt(np.square(out if alone else out + streams.exact[window]).mean(axis=1))
                left, mine = (rows / (length[:, None] + np.float32(1e-6)) for rows in (out, mine))
                add(streams.exact, window, out, post)
            moments.add(left, mine, float(streams.weights[window]))
        return moments.mean()

    names = ("q_proj", "k_proj", "v_proj", *(("attn_gate_proj",) if config.family.attention_gate else ()))
    own |= round_(names, measure(lambda w: both("attn_norm", w), config.hidden_size))
    shape = (windows, streams.exact.shape[1], config.q_size)
    mixed = [np.empty(shape, np.float32), np.empty(shape, np.float32)]  # exact, own
    for window in range(windows):
        for values, rows, weights in zip(mixed, both("attn_norm", window), (layer, own), strict=True):
            values[window] = mixed_values(config, rows, weights, *tables)
    own |= round_(("o_proj",), measure(lambda w: (mixed[0][w], mixed[1][w]), config.q_size, "o_proj", "attn_post_norm"))
    for window in range(windows):
        add(streams.own, window, mixed[1][window] @ own["o_proj"].T, "attn_post_norm")
    mixed.clear()  # the next pair of matrices needs the memory

    own |= round_(("gate_proj", "up_proj"), measure(lambda w: both("ffn_norm", w), config.hidden_size))

    kept = np.empty((windows, streams.exact.shape[1], config.intermediate_size), np.float32)

    def gated(window: int) -> tuple[Array, Array]:
        rows = both("ffn_norm", window)
        kept[window] = gated_values(rows[1], own)
        return gated_values(rows[0], layer), kept[window]

    own |= round_(("down_proj",), measure(gated, config.intermediate_size, "down_proj", "ffn_post_norm"))
    for window in range(windows):
        add(streams.own, window, kept[window] @ own["down_proj"].T, "ffn_post_norm")


def run_layer(config: ModelConfig, layer: Mapping[str, Array], states: Array) -> None:
    """Take states [windows, S, C] through a layer, in place."""
    tables = rope_tables(config, states.shape[1])
    for window in states:
        window[:] = block_layer(config, layer, window, *tables)
