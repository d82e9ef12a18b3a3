"""The features that a gate is fitted on: hidden states and next-token losses of every loop.

They come from the exported model itself, because quantisation moves the hidden states. Memory is R * (4 C + 9) bytes a
position, for as many positions as the pieces count; MOST_BYTES is what `fit-gate` allows. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import Array
from ouro_edge.errors import BundleError
from ouro_edge.fitting.gate_data import Piece
from ouro_edge.runtime.backend.kv import kv_bytes_per_token
from ouro_edge.runtime.model import Model
from ouro_edge.system.progress import Progress

MOST_BYTES = 512 << 20  # of features
_KV_BYTES = 512 << 20  # of keys and values of one piece of text
_HEAD_ROWS = 256  # rows of logits made at a time: 48 MiB at a vocabulary of 49152


@dataclass(frozen=True, slots=True)
class Features:
    """N positions, as every loop leaves them."""

    hidden: Array  # [R, N, C], after the norm that closes the loop: what the gate and the head read
    loss: NDArray[np.float64]  # [R, N], nats, of the token that really follows
    hits: NDArray[np.bool_]  # [R, N], whether the most probable token is that one

    def part(self, start: int, stop: int) -> Features:
        """Positions start..stop, as views."""
        return Features(self.hidden[:, start:stop], self.loss[:, start:stop], self.hits[:, start:stop])


def bytes_per_position(config: ModelConfig) -> int:
    """Memory of one position's features."""
    return config.loops * (4 * config.hidden_size + 9)


def window(config: ModelConfig) -> int:
    """Positions of a piece of long text: at most 1024, fewer where their keys and values would take too much memory."""
    return min(config.max_positions, max(64, min(1024, _KV_BYTES // kv_bytes_per_token(config, "fp32"))))


def collect(model: Model, pieces: Sequence[Piece], progress: Progress | None = None) -> Features:
    """Run all loops over each piece and keep the states and losses of its counted tokens, in order.

    BundleError when the model computes something that is not finite.
    """
    config, sequence = model.config, model.new_sequence()
    total = sum(len(piece.counted) for piece in pieces)
    hidden = np.empty((config.loops, total, config.hidden_size), np.float32)
    loss = np.empty((config.loops, total))
    hits = np.empty((config.loops, total), bool)
    done = 0
    for piece in pieces:
        mine = slice(done, done + len(piece.counted))
        at = piece.counted - 1  # the positions that predict the counted tokens
        hidden[:, mine] = model.states(piece.ids[: int(at[-1]) + 1], sequence=sequence).hidden[:, at]
        labels = np.tile(np.array(piece.ids)[piece.counted], config.loops)
        rows = hidden[:, mine].reshape(-1, config.hidden_size)
        parts = [slice(i, i + _HEAD_ROWS) for i in range(0, len(rows), _HEAD_ROWS)]
        scores = [_score(model.logits(rows[part]), labels[part]) for part in parts]
        loss[:, mine] = np.concatenate([values for values, _ in scores]).reshape(config.loops, -1)
        hits[:, mine] = np.concatenate([values for _, values in scores]).reshape(config.loops, -1)
        done = mine.stop
        if progress is not None:
            progress(done, total, "")
    if not np.isfinite(loss).all() or not np.isfinite(hidden).all():
        raise BundleError(f"{model.text.path} computes values that are not finite: run ouro-edge verify on it")
    return Features(hidden, loss, hits)


def _score(logits: Array, labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Cross-entropy [T] and top-1 hits [T] of logits [T, V]."""
    top = logits.max(axis=1)
    mass = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    own = logits[np.arange(len(labels)), labels]
    return np.log(mass) + top.astype(np.float64) - own, logits.argmax(axis=1) == labels
