"""Times number formats and thread counts on this machine. Knows the block's graph and the runtime's sessions.

What is timed is a block of two layers of Ouro-1.4B's shapes: 103 million weights, more than most caches hold, as with a
whole model. Everything that is compared takes turns, call by call, so that a slow moment falls on all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import fused_names, tensor_shapes
from ouro_edge.bundle.bundle import GraphInMemory
from ouro_edge.bundle.tensors import DTYPES, ArraySpec, TensorSpec
from ouro_edge.export.graphs.block_graph import block_graph
from ouro_edge.export.graphs.builder import GraphBuilder
from ouro_edge.export.graphs.prefill_graph import PrefillBuilder
from ouro_edge.quant import Scheme
from ouro_edge.runtime.backend.session import open_session

SHAPES = ModelConfig(
    model_type="ouro", vocab_size=1, hidden_size=2048, intermediate_size=5632, num_layers=2, num_heads=16,
    num_kv_heads=16, head_dim=128, loops=1, max_positions=128, rope_theta=1e6, rms_norm_eps=1e-6,
    tie_word_embeddings=True, sandwich_norms=True, has_gate=False, exit_threshold=1.0, bos_token_id=None,
    eos_token_ids=(), pad_token_id=None,
)  # fmt: skip
MANY = 128  # rows of a call, as when a prompt is read
DEFAULT_BLOCK = 128
_ENOUGH = 1.1  # the default stays unless something else is so many times as fast
_MOST_ROUNDS, _FEWEST_ROUNDS, _SECONDS = {1: 25, MANY: 9}, 3, 6.0


@dataclass(frozen=True, slots=True)
class Format:
    """How the block's matrices are stored and multiplied."""

    name: str
    block_size: int | None  # of int4; None: int8 with a scale a column, the copy that `--prefill fast` makes
    builder: type[GraphBuilder] = GraphBuilder


class _FloatActivations(GraphBuilder):
    """As onnxruntime computes where the CPU has no kernel with 8-bit activations."""

    accuracy_level = 0


FORMATS = (
    *(Format(f"int4, block {size}", size) for size in (32, 64, DEFAULT_BLOCK)),
    Format(f"int4, block {DEFAULT_BLOCK}, float activations", DEFAULT_BLOCK, _FloatActivations),
    Format("int8, as --prefill fast", None, PrefillBuilder),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """What one format gave with one thread count; medians."""

    format: Format
    threads: int
    weight_bytes: int
    one_row: float  # seconds
    prefill_copy: float  # seconds for MANY
    cpu_share: float  # of the CPU time that the threads could have had; threads spin while they wait for each other


def thread_counts(cpus: int) -> list[int]:
    """At most eight counts from 1 to `cpus`, evenly."""
    return sorted({max(1, cpus * part // 8) for part in range(1, 9)})


def time_formats(formats: Sequence[Format], threads: Sequence[int]) -> Iterator[str | Trial]:
    """Time every format with every thread count; yields what it is about to do as text, then one Trial each."""
    yield "preparing"
    sessions: dict[tuple[Format, int], Any] = {}
    sizes: dict[Format, int] = {}
    for format_ in formats:
        graph = _graph(format_)
        sizes[format_] = sum(array.nbytes for array in graph.arrays.values())
        sessions |= {(format_, count): open_session(graph, count) for count in threads}
    calls: dict[int, Any] = {rows: {key: [] for key in sessions} for rows in (1, MANY)}
    for rows, taken in calls.items():
        feeds, began = _feeds(rows), time.perf_counter()
        for turn in range(_MOST_ROUNDS[rows] + 1):
            if turn > _FEWEST_ROUNDS and time.perf_counter() - began > _SECONDS:
                break
            for (format_, count), session in sessions.items():
                yield f"{format_.name}, {count} threads, {rows} rows"
                start, cpu = time.perf_counter(), time.process_time()
                session.run(["hidden_out"], feeds)
                if turn:  # the first one warms up
                    taken[format_, count].append((time.perf_counter() - start, time.process_time() - cpu))
    for key in sessions:
        one, many = (median(wall for wall, _ in taken[key]) for taken in calls.values())
        wall, cpu = (
            sum(times) for times in zip(*(call for taken in calls.values() for call in taken[key]), strict=True)
        )
        yield Trial(*key, sizes[key[0]], one, many, cpu / (wall * key[1]))


def best_format(trials: Sequence[Trial]) -> Trial:
    """The int4 format that decodes fastest with int8 activations; the default unless another is clearly faster."""
    blocks = [t for t in trials if t.format.builder is GraphBuilder]
    default = next(t for t in blocks if t.format.block_size == DEFAULT_BLOCK)
    fastest = min(blocks, key=lambda trial: trial.one_row)
    return fastest if fastest.one_row * _ENOUGH < default.one_row else default


def best_threads(trials: Sequence[Trial]) -> Trial:
    """The most threads that decode about as fast as any: memory bounds decoding, but prompts want all cores."""
    fastest = min(trial.one_row for trial in trials)
    return max((t for t in trials if t.one_row <= fastest * _ENOUGH), key=lambda trial: trial.threads)


def _graph(format_: Format) -> GraphInMemory:
    """The block; its weights are all alike, because no kernel's time depends on them."""
    shapes, tensors, arrays = tensor_shapes(SHAPES), {}, {}
    for name, parts in fused_names(SHAPES).items():
        if name == "embedding":
            continue
        rows, width = sum(shapes[part][0] for part in parts), shapes[parts[0]][1:]
        scheme = Scheme(4, format_.block_size or DEFAULT_BLOCK) if width else None
        stored: dict[str, tuple[str, tuple[int, ...]]] = {"values": ("float32", (rows, *width))}
        if scheme is not None and format_.block_size is not None:
            stored = scheme.parts((rows, *width))
        elif scheme is not None:
            stored = {"columns": ("int8", (*width, rows)), "column_scales": ("float32", (rows,))}
        tensors[name] = TensorSpec((rows, *width), scheme, {k: ArraySpec(*at) for k, at in stored.items()})
        for part, (dtype, shape) in stored.items():
            arrays[f"{name}.{part}"] = np.full(shape, 0.01 if dtype == "float32" else 0x37, DTYPES[dtype])
    model = block_graph(SHAPES, tensors, builder=format_.builder)
    return GraphInMemory(Path("the block that --tune times"), model.SerializeToString(), arrays)


def _feeds(rows: int) -> dict[str, Any]:
    """The inputs of a call on the first `rows` positions."""
    rope = np.ones((MANY, SHAPES.head_dim // 2), np.float32)
    past = np.zeros((1, SHAPES.num_kv_heads, MANY, SHAPES.head_dim), np.float32)
    feeds = {f"past.{i}.{part}": past for i in range(SHAPES.num_layers) for part in ("key", "value")}
    return feeds | {
        "hidden": np.ones((1, rows, SHAPES.hidden_size), np.float32),
        "seqlens_k": np.array([rows - 1], np.int32),
        "total_length": np.array(rows, np.int32),
        "cos_cache": rope,
        "sin_cache": rope,
    }
