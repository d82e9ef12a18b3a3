"""The model in plain NumPy: the specification, and the oracle of the tests. Must not import anything faster.

Shapes: T positions, C width, W columns of a state row, H heads, KV key heads, D head dim, V vocabulary, R passes. The
semantics are those of the published modelling code (Ouro: modeling_ouro.py, arXiv 2510.25741): one block of layers is
applied R times, the final norm closes every loop, and its output is the input of the next loop, the exit gate and the
head. Families with other passes are described by their loop program. `weights` is any mapping from the names of
`ouro_edge.arch.weights` to float32 arrays; each tensor is looked up when its layer is computed, so a lazy mapping keeps
one layer in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.exit_gate import exit_depths as exit_depths
from ouro_edge.arch.exit_gate import exit_probabilities as exit_probabilities
from ouro_edge.arch.exit_gate import sigmoid
from ouro_edge.arch.loop_program import Stack, loop_program
from ouro_edge.arch.rope import attention_factor, inverse_frequencies
from ouro_edge.arch.weights import Array

# Keys and values [T, KV, D] of new positions -> those of all positions so far, [S, KV, D].
Extend = Callable[[Array, Array], tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class Steps:
    """The output of every pass at every position."""

    hidden: Array  # [R, T, W], after the norm that closes the pass
    gate_logits: NDArray[np.float64]  # [T, R]; empty [T, 0] without a gate


def rope_tables(config: ModelConfig, length: int) -> tuple[Array, Array]:
    """cos and sin [length, D/2], computed in float32 as in the published code, whose rounding is part of the model."""
    frequencies = inverse_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None, :]
    factor = np.float32(attention_factor(config.rope_scaling))
    return np.cos(angles) * factor, np.sin(angles) * factor


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x * rsqrt(mean(x^2) + eps) * weight over the last axis."""
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return (x / np.sqrt(mean_square + np.float32(eps)) * weight).astype(np.float32)


def norm(config: ModelConfig, x: Array, weights: Mapping[str, Array], name: str) -> Array:
    """`rms_norm` with the weights of this name, or without weights in families that have none."""
    weight = weights[name] if config.family.norm_weights else np.ones(1, np.float32)
    return rms_norm(x, weight, config.rms_norm_eps)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary positions, half-split form: the pair of dimension i is i + D/2. x [T, heads, D], tables [T, D/2]."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(
    config: ModelConfig,
    x: Array,
    layer: Mapping[str, Array],
    cos: Array,
    sin: Array,
    extend: Extend | None = None,
    prefix: int = 0,
) -> Array:
    """Grouped-query attention over x [T, C], before any norm of its output; `extend` adds earlier positions.

    A position sees itself and those before it; the first `prefix` positions of the sequence also see each other.
    """
    return mixed_values(config, x, layer, cos, sin, extend, prefix) @ layer["o_proj"].T


def mixed_values(
    config: ModelConfig,
    x: Array,
    layer: Mapping[str, Array],
    cos: Array,
    sin: Array,
    extend: Extend | None = None,
    prefix: int = 0,
) -> Array:
    """The input of the output projection [T, H * D]: the values that each head attends to."""
    length = len(x)
    q, k, v = (x @ layer[f"{part}_proj"].T for part in "qkv")
    if config.qkv_bias:
        biases = np.split(layer["qkv_bias"], (config.q_size, config.q_size + config.kv_size))
        q, k, v = (row + bias for row, bias in zip((q, k, v), biases, strict=True))
    if config.family.qk_norm:
        q, k = (rms_norm(row, layer[f"{part}_norm"], config.rms_norm_eps) for row, part in ((q, "q"), (k, "k")))
    q = rotate(q.reshape(length, config.num_heads, config.head_dim), cos, sin)
    k = rotate(k.reshape(length, config.num_kv_heads, config.head_dim), cos, sin)
    v = v.reshape(length, config.num_kv_heads, config.head_dim)
    if extend is not None:
        k, v = extend(k, v)
    total = len(k)
    k, v = (np.repeat(a, config.num_heads // config.num_kv_heads, axis=1) for a in (k, v))
    q, k, v = (a.swapaxes(0, 1) for a in (q, k, v))  # [heads, positions, D]
    scores = q @ k.swapaxes(1, 2) * np.float32(config.head_dim**-0.5)
    seen = np.tri(length, total, total - length, dtype=bool)
    seen[: max(0, prefix - (total - length)), :prefix] = True
    scores = np.where(seen, scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = (scores @ v).swapaxes(0, 1).reshape(length, config.q_size).astype(np.float32)
    return mixed * sigmoid(x @ layer["attn_gate_proj"].T) if config.family.attention_gate else mixed


def feed_forward(x: Array, layer: Mapping[str, Array]) -> Array:
    """down(silu(gate(x)) * up(x))."""
    return gated_values(x, layer) @ layer["down_proj"].T


def gated_values(x: Array, layer: Mapping[str, Array]) -> Array:
    """The input of the down projection [T, F]: silu(gate(x)) * up(x)."""
    gate = x @ layer["gate_proj"].T
    with np.errstate(over="ignore"):  # far below zero the exponential is infinite, and the quotient 0
        return gate / (1 + np.exp(-gate)) * (x @ layer["up_proj"].T)


def run_pass(
    config: ModelConfig,
    weights: Mapping[str, Array],
    stack: Stack,
    rows: Array,
    cos: Array,
    sin: Array,
    extends: Sequence[Extend] | None = None,
    prefix: int = 0,
) -> Array:
    """One pass of state rows [T, W] through a stack. `extends` holds the earlier positions by layer of the stack."""
    h = entry(config, weights, stack, rows)
    for i, number in enumerate(stack.layers):
        extend = None if extends is None else extends[i]
        h = block_layer(config, _Layer(weights, number), h, cos, sin, extend, prefix)
    return written(config, weights, stack, rows, h)


def entry(config: ModelConfig, weights: Mapping[str, Array], stack: Stack, rows: Array) -> Array:
    """What enters the first layer of a stack [..., C], of state rows [..., W]."""
    first, second = rows[..., : config.hidden_size], rows[..., config.hidden_size :]
    if stack.reads == "sum":
        h = first + second
    elif stack.reads == "adapter":
        h = np.concatenate([second, first], axis=-1) @ weights["adapter"].T
    else:
        h = second if stack.reads == "second" else first
    return norm(config, h, weights, "norm") if stack.opening_norm else h


def written(config: ModelConfig, weights: Mapping[str, Array], stack: Stack, rows: Array, h: Array) -> Array:
    """State rows [..., W] after a pass: `rows` were those before it, h [..., C] is the output of the last layer."""
    first, second = rows[..., : config.hidden_size], rows[..., config.hidden_size :]
    out = norm(config, h, weights, "norm") if stack.closing_norm else h
    parts = {"row": [out], "first": [out, second], "second": [first, out], "both": [h, out]}[stack.writes]
    return np.concatenate(parts, axis=-1)


def block_layer(
    config: ModelConfig,
    layer: Mapping[str, Array],
    h: Array,
    cos: Array,
    sin: Array,
    extend: Extend | None = None,
    prefix: int = 0,
) -> Array:
    """One layer over rows h [T, C]: attention, then the feed-forward part, each added to its input."""
    has_input_norms = config.norms != "after the branch"
    x = norm(config, h, layer, "attn_norm") if has_input_norms else h
    h = add_part(config, layer, "attn_post_norm", h, attention(config, x, layer, cos, sin, extend, prefix))
    x = norm(config, h, layer, "ffn_norm") if has_input_norms else h
    return add_part(config, layer, "ffn_post_norm", h, feed_forward(x, layer))


def add_part(config: ModelConfig, layer: Mapping[str, Array], post_norm: str, h: Array, mixed: Array) -> Array:
    """h [T, C] with the output of one part of a layer added, and the norm behind it where `ModelConfig.norms` says."""
    if config.norms == "before":
        return h + mixed
    if config.norms == "after the sum":
        return norm(config, h + mixed, layer, post_norm)
    return h + norm(config, mixed, layer, post_norm)


def gate(weights: Mapping[str, Array], hidden: Array) -> NDArray[np.float64]:
    """Exit logits [T] of normed states [T, C]."""
    logits: Array = hidden @ weights["exit_gate.weight"][0] + weights["exit_gate.bias"][0]
    return logits.astype(np.float64)


def run(config: ModelConfig, weights: Mapping[str, Array], ids: NDArray[np.integer], prefix: int = 0) -> Steps:
    """All passes over token ids [T], of which the first `prefix` see each other in both directions.

    In a model with a coda: the usual loops, and after each the rows behind the coda if all positions exit there.
    """
    cos, sin = rope_tables(config, len(ids))
    program = loop_program(config)
    rows = program.first_rows(weights["embedding"][ids], weights[program.second] if program.second else None)
    hidden, gates = [], []
    for number, step in enumerate(program.passes[: program.step_of(config.loops)], start=1):
        rows = run_pass(config, weights, program.stack(step.graph), rows, cos, sin, prefix=prefix)
        if number <= program.first_loop:
            continue
        if program.coda is None:
            hidden.append(rows)
        else:
            hidden.append(run_pass(config, weights, program.stack(program.coda.graph), rows, cos, sin))
        if config.has_gate:
            gates.append(gate(weights, rows))
    gate_logits = np.stack(gates, axis=-1) if gates else np.zeros((len(ids), 0))
    return Steps(np.stack(hidden), gate_logits)


def logits(config: ModelConfig, weights: Mapping[str, Array], rows: Array) -> Array:
    """Logits [..., V] of normed state rows [..., W]."""
    return head(weights, loop_program(config).output(rows, config.hidden_size))


def head(weights: Mapping[str, Array], hidden: Array) -> Array:
    """Logits [..., V] of normed hidden states [..., C]."""
    return hidden @ weights["head"].T


class _Layer(Mapping[str, Array]):
    """The tensors of one layer by their short names."""

    def __init__(self, weights: Mapping[str, Array], index: int) -> None:
        self._weights, self._prefix = weights, f"layers.{index}."

    def __getitem__(self, name: str) -> Array:
        return self._weights[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._weights if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
