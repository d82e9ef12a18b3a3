"""What distinguishes the models of one family, as data and a few functions. The table of families is `families`."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ouro_edge.arch.config import ModelConfig
    from ouro_edge.arch.stacks import LoopProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufKeys:
    """The keys of a family in a GGUF header, after the name of the architecture, and what they mean."""

    types: Mapping[str, type]  # key -> type of its value, int, float or bool; all are required
    read: Callable[[Mapping[str, Any]], dict[str, Any]]  # values by key -> fields of ModelConfig
    write: Callable[[ModelConfig], dict[str, Any]]  # the other way round


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What distinguishes the models of one `model_type`."""

    architecture: str  # the class name in config.json
    loops_field: str | None  # the field of config.json with the number of loops; None for a plain transformer
    loops_key: str | None  # the same in a GGUF header, after the name of the architecture
    model_type: str | None = None  # in config.json, if it differs from the key in the table
    variant: Callable[[Container[str]], str] | None = None  # the key, from the names of a checkpoint's tensors
    # config.json of the family with this key in the names of other families, and further fields of ModelConfig.
    translate: Callable[[str, Mapping[str, Any]], tuple[dict[str, Any], dict[str, Any]]] | None = None
    sandwich_norms: bool = False
    norms: str = "before"  # where layers have norms: see `ModelConfig.norms`
    qk_norm: bool = False  # norms of the whole rows of queries and keys, before their rotation
    rotates_pairs: bool = False  # checkpoints rotate adjacent dimensions; canonical weights have other rows
    adapter: bool = False  # a matrix that joins the two parts of a state row
    coda_norm: bool = False  # the final norm also precedes the coda
    most_loops: int | None = None  # loops that may be asked for; None for as many as it was trained for
    gate: bool = False  # an exit gate, and an exit threshold in config.json
    derives_head_dim: bool = True  # whether an absent head_dim is hidden_size / num_attention_heads
    exits: bool = True  # whether the model was trained to be read after fewer loops
    norm_weights: bool = True  # whether norms have weights
    attention_gate: bool = False  # a projection whose sigmoid multiplies the output of attention
    interleaved_gguf: bool = True  # whether GGUF files interleave the halves of the heads of Q and K
    skips_loop_norm: bool = False  # whether config.json may say that only the head sees normed states
    state_init: bool = False  # a tensor [C] that is part of the first state row
    stop_ids: frozenset[int] = frozenset()  # ends of an answer besides those in the config
    fields: frozenset[str] = frozenset()  # other fields of config.json that are read
    only_values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # fields -> values that are implemented
    defaults: Mapping[str, Any] = field(default_factory=dict)  # documented defaults of absent fields
    num_stacks: int = 0  # stacks of layers, if there are several
    num_cycles: int = 0  # numbers that say how often stacks are repeated
    # For families whose passes are not "all layers, R times": the program; fields of ModelConfig out of those of
    # config.json, and the other way round.
    program: Callable[[ModelConfig], LoopProgram] | None = None
    read: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    write: Callable[[ModelConfig], dict[str, Any]] | None = None
    has_gguf: bool = True  # whether there is a GGUF architecture for it
    gguf: GgufKeys | None = None
