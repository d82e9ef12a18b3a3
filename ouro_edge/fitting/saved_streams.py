"""The streams of a calibration on disk, so that one that was killed continues with the layer after the last."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ouro_edge.arch.stacks import BLOCK, Stack
from ouro_edge.fitting.layer_walk import Streams
from ouro_edge.system.files import atomic_write


def _file(folder: Path, stack: Stack) -> Path:
    return folder / ("streams.npz" if stack.name == BLOCK else f"streams-{stack.name}.npz")


def save(folder: Path, stack: Stack, layers: int, streams: Streams) -> None:
    """Save the streams of a stack before layer number `layers` of the model."""
    with atomic_write(_file(folder, stack), sync=False) as file:
        np.savez(file, layers=layers, exact=streams.exact, own=streams.own, weights=streams.weights)


def resume(folder: Path, stack: Stack) -> tuple[int, Streams] | None:
    """What an interrupted calibration has saved of a stack: the next layer and the streams."""
    try:
        with np.load(_file(folder, stack)) as stored:
            at = int(stored["layers"])
            finished = range(stack.layers.start, at)
            if at in (*stack.layers, stack.layers.stop) and all(
                (folder / f"layer-{i:04}.npz").is_file() for i in finished
            ):
                return at, Streams(stored["exact"], stored["own"], stored["weights"])
    except (OSError, ValueError, KeyError, EOFError):
        pass
    return None
