"""Calibrated rounding of a checkpoint: text runs through the block, layer by layer, in plain NumPy.

First all loops run with the original weights, which gives the states that each loop starts from. Then the layers are
walked once: the rows of all loops pass a layer together, because they use the same weights, and its matrices are
rounded on the way (`layer_walk`). A loop of the rounded stream starts from the original states of that loop. Where a
model has several stacks of layers, they are walked one after the other, each with the rows of its own passes.

After each layer its matrices and both streams are saved, so that a calibration that was killed continues there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import LoopProgram, Stack, loop_program
from ouro_edge.arch.reference import entry, exit_probabilities, written
from ouro_edge.arch.reference import gate as exit_gate
from ouro_edge.arch.weights import Array, Weights
from ouro_edge.errors import RequestError
from ouro_edge.fitting.layer_walk import Moments, Streams, run_layer, walk_layer
from ouro_edge.fitting.saved_streams import resume, save
from ouro_edge.quant import Grid, Objective, Rounded, Scheme, dequantize, quantize, round_matrix
from ouro_edge.runtime.text.tokenizer import Tokenizer
from ouro_edge.system.files import atomic_write
from ouro_edge.system.progress import Progress

ROUNDING = "calibrated rounding"  # what the first call of a progress callback says
_WINDOW = 512  # tokens per sequence, as in the evaluation
_MIN_ROWS = 1024  # per matrix, over all loops: fewer do not determine a Hessian
_MIN_USE = 0.05  # weight of a loop that is hardly ever used
_MIN_TOKENS = 64


@dataclass(frozen=True, slots=True)
class WeightCalibration:
    """Settings of calibrated rounding."""

    text: str | None = None  # None: the built-in mix of prose, code, conversations and reasoning
    rows: int = 16384  # positions times loops, at most
    memory: float | None = None  # GB that the calibration may take; fewer rows if needed
    codes: bool = True  # choose codes and scales of blocks; False only scales channels, see `equalize`
    optional: bool = False  # leave out what is not possible, or not worth its time

    def __post_init__(self) -> None:
        if self.text is not None and not isinstance(self.text, str):
            raise RequestError(f"the calibration text is a {type(self.text).__name__}; expected a str or None")
        if type(self.rows) is not int or self.rows < _MIN_ROWS:
            raise RequestError(f"rows is {self.rows!r}; expected a whole number of at least {_MIN_ROWS}")
        for name in ("codes", "optional"):
            if type(value := getattr(self, name)) is not bool:
                raise RequestError(f"{name} is {value!r}; expected True or False")
        if self.memory is not None and not (isinstance(self.memory, (int, float)) and self.memory > 0):
            raise RequestError(f"memory is {self.memory!r}; expected a number of gigabytes above 0")


def built_in_mix() -> str:
    """About 6000 tokens of prose, code, conversations, tables and reasoning."""
    return resources.files("ouro_edge.fitting").joinpath("calibration_mix.txt").read_text(encoding="utf-8")


def memory_needed(config: ModelConfig, rows: int) -> int:
    """Bytes at the peak of a calibration, about."""
    c, f, q = config.hidden_size, config.intermediate_size, config.q_size
    states = 4 * rows * (2 * c + max(2 * q, f))
    layer = 4 * 2 * (2 * c * q + 2 * c * config.kv_size + 3 * c * f)
    solving = 8 * 5 * max(c, f) ** 2 + 4 * 24 * 1024 * max(c, f)
    return states + layer + solving + (200 << 20)


def least_memory(config: ModelConfig) -> int:
    """Bytes at the peak of the shortest calibration."""
    return memory_needed(config, _MIN_ROWS)


def calibration_windows(
    config: ModelConfig, tokenizer: Tokenizer | None, settings: WeightCalibration
) -> NDArray[np.int64]:
    """The windows [n, S] of token ids to run; random ids without a tokenizer.

    RequestError when the text is too short or the memory does not suffice.
    """
    most = settings.rows // config.loops
    if settings.memory is not None:
        while most * config.loops >= _MIN_ROWS and memory_needed(config, most * config.loops) > settings.memory * 1e9:
            most -= _WINDOW
        if most * config.loops < _MIN_ROWS:
            raise RequestError(f"calibrated rounding of this model needs {least_memory(config) / 1e9:.1f} GB; --memory "
                               f"allows {settings.memory:g} GB")  # fmt: skip
    if tokenizer is None:
        if settings.text is not None:
            raise RequestError("this model has no tokenizer, so it is calibrated on random ids: leave the text out")
        ids = np.random.default_rng(0).integers(0, config.vocab_size, most).tolist()
    else:
        ids = tokenizer.encode_text(built_in_mix() if settings.text is None else settings.text)
    if len(ids) < _MIN_TOKENS:
        raise RequestError(f"the calibration text has {len(ids)} tokens; expected some thousands")
    length = min(_WINDOW, config.max_positions, len(ids))
    count = max(1, min(most, len(ids)) // length)
    return np.array(ids[: count * length], np.int64).reshape(count, length)


def round_weights(
    weights: Weights,
    windows: NDArray[np.int64],
    embedding: Scheme | None,
    grid_of: Callable[[str], Grid | None],
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """Round every matrix of the block for which `grid_of` has a grid; the result is in `folder`, for `RoundedFiles`.

    Args:
        weights: The original weights.
        windows: Token ids [n, S].
        embedding: The format of the embedding in the exported model.
        grid_of: The grid of a matrix by name; None leaves it as it is.
        folder: Where layers are saved. It must belong to this model and these settings; layers that an earlier call
            has finished there are kept.
        progress: Called as `Progress` says.
    """
    config = weights.config
    folder.mkdir(parents=True, exist_ok=True)
    program = loop_program(config)
    run = sum(len(program.stack(step.graph).layers) for step in program.usual_steps)
    total = run + 4 * config.num_layers
    if progress:
        progress(0, total, ROUNDING)
    if any(resume(folder, stack) is None for stack in program.stacks):
        for stack, streams in _starts(weights, windows, embedding, progress, total):
            save(folder, stack, stack.layers.start, streams)
    for stack in program.stacks:
        state = resume(folder, stack)
        assert state is not None
        first, streams = state
        for i in range(first, stack.layers.stop):
            if progress:
                progress(run + 4 * i, total, f"layer {i + 1} of {config.num_layers}")
            _round_layer(weights, i, streams, grid_of, folder)
            save(folder, stack, i + 1, streams)
    if progress:
        progress(total, total, "")


class RoundedFiles(Mapping[str, Rounded]):
    """The rounded matrices in a folder of `round_weights`, read on demand."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for file in sorted(folder.glob("layer-*.npz")):
            with np.load(file) as stored:
                self._files |= {key.removesuffix("/codes"): file for key in stored if key.endswith("/codes")}

    def __getitem__(self, name: str) -> Rounded:
        with np.load(self._files[name]) as stored:
            return Rounded(*(stored[f"{name}/{part}"] for part in ("codes", "scales", "zeros")))

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _round_layer(
    weights: Weights, i: int, streams: Streams, grid_of: Callable[[str], Grid | None], folder: Path
) -> None:
    prefix, layer = f"layers.{i}.", _layer(weights, i)
    found: dict[str, Rounded] = {}

    def round_(names: tuple[str, ...], moments: Moments) -> dict[str, Array]:
        objective, rounded = None, {}
        for name in names:
            grid = grid_of(prefix + name)
            if grid is None:
                continue
            if objective is None:
                objective = Objective(moments.hessian)
            target = objective.target(layer[name], moments.outputs(layer[name]))
            found[prefix + name] = result = round_matrix(target, objective, grid)
            rounded[name] = result.values(grid)
        return rounded

    walk_layer(weights.config, layer, streams, round_)
    arrays = {f"{name}/{part}": getattr(r, part) for name, r in found.items() for part in ("codes", "scales", "zeros")}
    with atomic_write(folder / f"layer-{i:04}.npz", sync=False) as file:
        np.savez(file, **arrays)


def _layer(weights: Weights, i: int) -> dict[str, Array]:
    """The tensors of a layer by their short names, read once."""
    prefix = f"layers.{i}."
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def _starts(
    weights: Weights, windows: NDArray[np.int64], embedding: Scheme | None, progress: Progress | None, total: int
) -> list[tuple[Stack, Streams]]:
    """The states [passes * n, S, C] that enter each stack, pass after pass, weighted by how often a pass is used."""
    config, program = weights.config, loop_program(weights.config)
    second = None if program.second is None else weights[program.second]
    starts: dict[str, list[Array]] = {stack.name: [] for stack in program.stacks}
    use: dict[str, list[float]] = {stack.name: [] for stack in program.stacks}
    rows, left, done = _state_rows(program, embedding_rows(weights, windows), second), 1.0, 0
    gates: list[NDArray[np.float64]] = []
    for number, step in enumerate(program.usual_steps, start=1):
        stack = program.stack(step.graph)
        states = entry(config, weights, stack, rows).copy()
        starts[step.graph].append(states.copy())
        use[step.graph].append(max(_MIN_USE, left))
        if number == len(program.usual_steps):
            break
        for i in stack.layers:
            if progress:
                progress(done, total, f"original weights, loop {number}")
            run_layer(config, _layer(weights, i), states)
            done += 1
        rows = written(config, weights, stack, rows, states)
        if config.has_gate:
            gates.append(exit_gate(weights, rows.reshape(-1, rows.shape[-1])))
            p = exit_probabilities(np.stack(gates, axis=1), config.loops)
            left = float((1 - p[:, :number].sum(axis=1)).mean())
    found = []
    for stack in program.stacks:
        exact = np.concatenate(starts.pop(stack.name))
        own = exact.copy()
        if stack.name == program.passes[0].graph:
            rows = _state_rows(program, _embedded(weights, windows, embedding), second)
            own[: len(windows)] = entry(config, weights, stack, rows)
        uses = np.array(use[stack.name], np.float32)
        found.append((stack, Streams(exact, own, np.repeat(uses, len(windows)))))
    return found


def _state_rows(program: LoopProgram, embedded: Array, second: Array | None) -> Array:
    """First state rows [n, S, W] of embedding rows [n, S, C]."""
    return np.stack([program.first_rows(rows, second) for rows in embedded])


def embedding_rows(weights: Weights, windows: NDArray[np.int64]) -> Array:
    """Embedding rows [n, S, C] of the windows, read in pieces."""
    count, width = weights.shapes["embedding"]
    out = np.empty((*windows.shape, width), np.float32)
    step = max(1, (16 << 20) // width)
    for start in range(0, count, step):
        here = (windows >= start) & (windows < start + step)
        if here.any():
            out[here] = weights.rows("embedding", start, min(count, start + step))[windows[here] - start]
    return out


def _embedded(weights: Weights, windows: NDArray[np.int64], scheme: Scheme | None) -> Array:
    """The same rows as the exported model reads them."""
    rows = embedding_rows(weights, windows)
    if scheme is None:
        return rows
    flat = rows.reshape(-1, rows.shape[-1])
    return dequantize(quantize(flat, scheme)).reshape(rows.shape)
