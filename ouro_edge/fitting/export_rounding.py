"""Calibrated rounding as a step of an export: which grids, where the work is saved, and when it is removed.

The folder of a calibration is in the user's cache, under a name that depends on the source and on all settings. An
export that was interrupted finds its layers there; a finished one removes it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ouro_edge.arch.config import ModelConfig
from ouro_edge.errors import RequestError
from ouro_edge.export.checkpoint import Checkpoint
from ouro_edge.fitting.calibrate_weights import (
    RoundedFiles,
    WeightCalibration,
    calibration_windows,
    least_memory,
    round_weights,
)
from ouro_edge.fitting.equalize import equalized
from ouro_edge.quant import Grid, Recipe, Rounded, Scheme, grid_of
from ouro_edge.runtime.text.tokenizer import Tokenizer
from ouro_edge.system.cache_dir import cache_directory
from ouro_edge.system.file_lock import file_lock
from ouro_edge.system.hub import Resolved
from ouro_edge.system.memory import available_memory
from ouro_edge.system.progress import WAITING, Progress, stages
from ouro_edge.version import __version__

Grids = Callable[[str], Grid | None]  # name of a matrix -> its grid, or None if it is not rounded

_USABLE_MEMORY = 0.8  # of the free memory
_GGUF_GRIDS = {
    "int4": Grid(4, 32, "middle"), "q4_0": Grid(4, 32, "middle"), "q4_1": Grid(4, 32, "float"),
    "int8": Grid(8, 32, "middle"), "q8_0": Grid(8, 32, "middle"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rounding:
    """A checkpoint, perhaps with scaled channels, its rounded matrices by name, and what a manifest records of them."""

    checkpoint: Checkpoint
    matrices: Mapping[str, Rounded]
    record: Mapping[str, Any]


def scheme_grids(recipe: Recipe) -> Grids:
    """The grids of a recipe. RequestError when it stores the block in float32."""
    if recipe.attention is None and recipe.feed_forward is None:
        raise RequestError("fp32 rounds nothing: leave the calibrated rounding out, or use int4 or int8")

    def grid(name: str) -> Grid | None:
        scheme = recipe.scheme_for(name)
        return None if scheme is None else grid_of(scheme)

    return grid


def gguf_grids(config: ModelConfig, precision: str) -> Grids:
    """The grids of a GGUF type. RequestError when it has no codes, or when rows are not whole blocks."""
    grid = _GGUF_GRIDS.get(precision)
    if grid is None:
        raise RequestError(f"{precision} cannot be calibrated; expected one of {', '.join(_GGUF_GRIDS)}")
    if not _fills_blocks(config):
        raise RequestError("the rows of this model are not whole blocks of 32 weights, so they stay in F16: leave the "
                           "calibrated rounding out")  # fmt: skip
    return lambda name: grid


def gguf_bits(config: ModelConfig, precision: str) -> int | None:
    """The bits of the codes that a GGUF type gives this model; None where its weights stay floats."""
    grid = _GGUF_GRIDS.get(precision)
    return grid.bits if grid is not None and _fills_blocks(config) else None


def _fills_blocks(config: ModelConfig) -> bool:
    """Whether the rows of all matrices of the block are whole blocks of GGUF's types."""
    return not any(n % 32 for n in (config.hidden_size, config.q_size, config.intermediate_size))


def settle(
    settings: WeightCalibration | None, config: ModelConfig, tokenizer: Tokenizer | None, bits: int | None
) -> tuple[WeightCalibration | None, tuple[str, ...]]:
    """What an optional calibration of codes with `bits` comes to, or None with a line that says why.

    Eight bits get scaled channels but nearest codes, because their error is mostly that of activations. The free memory
    limits the amount of text.
    """
    if settings is None or not settings.optional:
        return settings, ()
    if bits is None:
        return None, ()
    free, needed = available_memory() * _USABLE_MEMORY, least_memory(config)
    if tokenizer is None:
        why = "this model has no tokenizer, so there is no text to calibrate on"
    elif free < needed:
        why = f"a calibration needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB can be used"
    else:
        memory = settings.memory or free / 1e9
        return replace(settings, memory=memory, codes=bits == 4, optional=False), ()
    return None, (f"weights are rounded to the nearest value, without a calibration: {why}",)


@contextmanager
def calibrated(
    found: Resolved, checkpoint: Checkpoint, tokenizer: Tokenizer | None, embedding: Scheme | None, grid: Grids,
    settings: WeightCalibration, progress: Progress | None = None,
) -> Iterator[Rounding]:  # fmt: skip
    """Round a checkpoint's block; the files are removed at the end of the block, unless it fails.

    Channels are scaled for eight bits only. Four-bit codes that are calibrated make up for uneven channels by
    themselves, and on random weights they are better without the scales.
    """
    windows = calibration_windows(checkpoint.config, tokenizer, settings)
    matrices = {name: grid(name) for name in checkpoint.weights if name.endswith("_proj")}
    rounding = progress
    if not any(at is not None and at.bits == 4 for at in matrices.values()):
        measuring, rounding = stages(progress, 1, 9) if settings.codes else (progress, None)
        checkpoint = replace(checkpoint, weights=equalized(checkpoint.weights, windows, measuring))
    record = {
        "method": "calibrated" if settings.codes else "scaled channels",
        "text": "built-in" if settings.text is None else "given",
        "tokens": int(windows.size),
        "loops": checkpoint.config.loops,
    }
    if not settings.codes:
        yield Rounding(checkpoint, {}, record)
        return
    grids = list(map(repr, matrices.values()))
    folder = cache_directory() / _key(found, [checkpoint.config.to_dict(), windows.tolist(), grids, repr(embedding)])

    def waiting() -> None:
        if progress:
            progress(0, 1, WAITING)

    with file_lock(folder.with_name(f".{folder.name}.lock"), waiting):  # of two equal exports, the second one waits
        round_weights(checkpoint.weights, windows, embedding, grid, folder, rounding)
        yield Rounding(checkpoint, RoundedFiles(folder), record)
        shutil.rmtree(folder, ignore_errors=True)


def _key(found: Resolved, settings: object) -> str:
    path = found.path.resolve()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr((__version__, str(path), stats, settings)).encode()).hexdigest()[:12]
    return f"{path.stem}-rounding-{digest}"
