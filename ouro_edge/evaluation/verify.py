"""Checks an exported model: its files, its arithmetic against the reference, its weights against the checkpoint.

Uses export and runtime. The reference gets the bundle's dequantised weights, so that the comparison covers packing,
kernels and the runtime's loops. Quantisation errors are measured separately, for each tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch import reference
from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import Array, Weights, fused_rows
from ouro_edge.bundle.bundle import Bundle
from ouro_edge.bundle.directory import DirectoryBundle, check_files, graph_files, open_bundle
from ouro_edge.errors import ContextOverflowError, RequestError
from ouro_edge.evaluation.sensitivity import Matched
from ouro_edge.evaluation.stored_weights import StoredWeights
from ouro_edge.export.float_activations import FloatActivations
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.quant import ErrorMeter
from ouro_edge.runtime.open_model import open_model
from ouro_edge.system.hub import resolve
from ouro_edge.system.memory import available_memory
from ouro_edge.system.progress import Progress

# Limits of the relative error. Float kernels differ from the reference by the order of sums, which loops amplify. 8-bit
# activations differ by their rounding: 0.24 in SmolLM2 (int4 in blocks of 128), whose activations have large outliers,
# and 0.6 if whole rows were rounded with one scale. Unrelated outputs have an error of 1.4.
_FLOAT_LIMIT_PER_LOOP = 1e-4
_ROUNDED_LIMIT = 0.5
_ROUNDED_EXIT_LIMIT = 0.15  # of exit probabilities
_MIN_REFERENCE_RMS = 1e-12  # lower bound of the divisor, for references of zeros
# By bits: limit for the worst tensor. Correct rounding of normally distributed weights gives 18 (int4) and 42 (int8).
_MIN_SNR_DB = {32: 120.0, 8: 30.0, 4: 10.0}
_DEFAULT_TOKENS = 24
_PIECE_VALUES = 16 << 20  # values compared per step


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    found: float
    expected: float
    unit: str
    passed: bool


def verify(
    model: str | os.PathLike[str],
    against: str | os.PathLike[str] | Weights | None = None,
    *,
    tokens: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Check]:
    """Check an exported model: its files, its weights, and its arithmetic against a plain reference in NumPy.

    Arithmetic is compared at every depth: the RMS of the difference of the logits over the RMS of the reference's, and
    the exit probabilities. Quantised models are compared twice: with activations in float32, which shows any error of
    packing, and as they run, with activations rounded to 8 bits. One tensor at a time is in memory.

    Args:
        model: An exported directory, or the hub id of one.
        against: The checkpoint that it was made of, by directory, .gguf file or hub id: compares every weight.
        tokens: How many random ids to run. Default: 24, or what the context holds.
        seed: Seed of the ids.
        threads: CPU threads. Default: as for `load`.
        progress: Called while a hub id is downloaded, and before and after the reference is computed.

    Yields:
        A Check after each comparison; `passed` is False for a failure.

    Raises:
        BundleError: `model` is not an exported directory, or a file is missing or damaged.
        RequestError: The context or the memory has no room for so many tokens.
        HubError, ConfigError, CheckpointError: `against` cannot be found or read.
    """
    if against is not None and not isinstance(against, Weights):
        against = open_checkpoint(resolve(against, progress=progress).path).weights
    bundle = open_bundle(resolve(model, progress=progress).path)
    tokens = _affordable(bundle.config, tokens)
    check_files(bundle.path, bundle.manifest)
    for stack, kv in graph_files(bundle.config).values():  # the comparison below opens one of each stack
        bundle.block_graph(kv, stack=stack)
    yield Check("checksums of all files", 0, 0, "wrong", True)
    if against is not None:
        yield from _fidelity(bundle, against)
    yield from _arithmetic(bundle, tokens, seed, threads, progress)
    if progress:
        progress(1, 1, "")


def _affordable(config: ModelConfig, tokens: int | None) -> int:
    """The number of ids to compare. ContextOverflowError or RequestError when context or memory is too small."""
    if tokens is None:
        return min(_DEFAULT_TOKENS, config.max_positions)
    if tokens > config.max_positions:
        raise ContextOverflowError(f"{tokens} tokens do not fit this model's context of {config.max_positions}")
    # The reference has three copies of a layer's attention scores, and logits in float32 and float64.
    need, free = 12 * config.num_heads * tokens**2 + 24 * config.vocab_size * tokens, available_memory()
    if need > free:
        raise RequestError(f"the reference needs about {need / 1e9:.2g} GB for {tokens} tokens, {free / 1e9:.2g} GB "
                           "are free: ask for fewer")  # fmt: skip
    return tokens


@np.errstate(all="ignore")  # non-finite values fail their check
def _arithmetic(
    bundle: Bundle, tokens: int, seed: int, threads: int | None, progress: Progress | None
) -> Iterator[Check]:
    """Logits of every loop beside the reference's: with float activations, and as the model runs if it rounds them."""
    config = bundle.config
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, tokens)
    weights = StoredWeights(bundle)
    if progress:
        progress(0, 1, f"reference: {config.loops} loops over {config.num_layers} layers in NumPy")
    prefix = tokens // 2 if config.prefix_lm else 0  # both kinds of attention
    steps = reference.run(config, weights, ids, prefix)
    head = {"head": weights["head"]}
    logits = [reference.logits(config, head, hidden) for hidden in steps.hidden]
    oracle = _Oracle(ids.tolist(), prefix, logits, steps.gate_logits)
    if all(_bits(bundle, name) == 32 for name in bundle.tensors):
        yield from _compare(bundle, oracle, threads)
        return
    yield from _compare(FloatActivations(bundle), oracle, threads, "float activations")
    yield from _compare(bundle, oracle, threads, "8-bit activations", rounded=True)


@dataclass(frozen=True, slots=True)
class _Oracle:
    """What the reference makes of some ids."""

    ids: list[int]
    prefix: int
    logits: list[Array]  # by loop, [T, V]
    gate_logits: NDArray[np.float64]


def _compare(
    bundle: Bundle, oracle: _Oracle, threads: int | None, kind: str = "", *, rounded: bool = False
) -> Iterator[Check]:
    config, suffix = bundle.config, kind and f", {kind}"
    limits = [_ROUNDED_LIMIT if rounded else loop * _FLOAT_LIMIT_PER_LOOP for loop in range(1, config.loops + 1)]
    with open_model(bundle, threads=threads, kv="fp32", gate="original") as model:
        found = model.states(oracle.ids, prefix=oracle.prefix)
        for loop, limit in enumerate(limits):
            if model.backend.program.may_exit(loop + 1):
                error = _relative(model.logits(found.hidden[loop]), oracle.logits[loop])
                yield _limit(f"logits after loop {loop + 1}{suffix}", error, limit)
    if config.has_gate:
        found_p = reference.exit_probabilities(found.gate_logits, config.loops)
        expected_p = reference.exit_probabilities(oracle.gate_logits, config.loops)
        worst = float(np.abs(found_p - expected_p).max())
        yield _limit(f"exit probabilities (worst){suffix}", worst, _ROUNDED_EXIT_LIMIT if rounded else limits[-1])


def _fidelity(bundle: DirectoryBundle, weights: Weights) -> Iterator[Check]:
    """The worst signal-to-noise ratio against the checkpoint, for each kind of format in the bundle."""
    if bundle.config != weights.config:
        yield Check("config equals the checkpoint's", 1, 0, "differences", False)
        return
    stored, positions = StoredWeights(bundle), fused_rows(bundle.config)
    # Some exports scale channels, which keeps the function.
    scaled = bundle.manifest.rounding.get("method") == "scaled channels"
    scales = Matched(bundle.config, weights, stored) if scaled else None
    worst: dict[int, tuple[float, str]] = {}
    for name in weights:
        meter = ErrorMeter()
        for start, original in _pieces(weights, name):
            if scales is not None:
                original = scales.scaled(name, original, start)
            meter.add(original, stored[name][start : start + len(original)])
        snr = meter.result().snr_db
        bits = _bits(bundle, positions[name].tensor)
        worst[bits] = min(worst.get(bits, (np.inf, name)), (snr, name))
    for bits, (snr, name) in sorted(worst.items()):
        kind = "fp32" if bits == 32 else f"int{bits}"
        passed = snr >= _MIN_SNR_DB[bits]
        yield Check(f"worst {kind} tensor, {name}", snr, _MIN_SNR_DB[bits], "dB at least", passed)


def _pieces(weights: Weights, name: str) -> Iterator[tuple[int, Array]]:
    rows, *columns = weights.shapes[name]
    step = max(1, _PIECE_VALUES // max(1, *columns)) if columns else rows
    for start in range(0, rows, step):
        yield start, weights.rows(name, start, min(rows, start + step))


def _bits(bundle: Bundle, name: str) -> int:
    scheme = bundle.tensors[name].scheme
    return 32 if scheme is None else scheme.bits


def _limit(name: str, found: float, expected: float) -> Check:
    return Check(name, found, expected, "at most", found <= expected)


def _relative(found: Array, expected: Array) -> float:
    difference = np.sqrt(np.mean(np.square(found - expected, dtype=np.float64)))
    return float(difference / np.maximum(np.sqrt(np.mean(np.square(expected, dtype=np.float64))), _MIN_REFERENCE_RMS))
