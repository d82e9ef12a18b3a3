"""HRM-Text: two stacks of layers, L and H, and two states, zH and zL.

A state row is [zH | zL]. In each of H cycles, the stack L runs L times, zL = L(zL + zH), and then H once,
zH = H(zH + zL). Each stack ends with a norm; the head reads zH. Source: HrmTextForCausalLM of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ouro_edge.arch.family import Family, GgufKeys
from ouro_edge.arch.stacks import LoopPass, LoopProgram, Stack
from ouro_edge.errors import ConfigError

if TYPE_CHECKING:
    from ouro_edge.arch.config import ModelConfig

_MOST = 4096


def program(config: ModelConfig) -> LoopProgram:
    """The passes L, ..., L, H, repeated, each with a cache of its own; only after H there is a new state to read."""
    low, high = config.stack_layers
    h_cycles, l_cycles = config.cycles
    if h_cycles * (l_cycles + 1) != config.loops:
        raise ConfigError(f"{h_cycles} cycles of {l_cycles} + 1 passes are not the {config.loops} loops of the model")
    graphs = (["L"] * l_cycles + ["H"]) * h_cycles
    passes = tuple(LoopPass(graph, i, may_exit=graph == "H") for i, graph in enumerate(graphs))
    stacks = (Stack("L", range(low), "sum", "second"), Stack("H", range(low, low + high), "sum", "first"))
    return LoopProgram(passes, 2 * config.hidden_size, stacks, config.embedding_scale, "state_init")


def sizes(per_stack: Any, h_cycles: Any, l_cycles: Any) -> dict[str, Any]:
    """Fields of ModelConfig that follow from the layers of a stack and the cycles. ConfigError names a wrong value."""
    for name, value in (("layers per stack", per_stack), ("H cycles", h_cycles), ("L cycles", l_cycles)):
        if type(value) is not int or not 1 <= value <= _MOST:
            raise ConfigError(f"the number of {name} is {value!r}; expected a whole number from 1 to {_MOST}")
    return {
        "num_layers": 2 * per_stack,
        "stack_layers": (per_stack, per_stack),
        "cycles": (h_cycles, l_cycles),
        "loops": h_cycles * (l_cycles + 1),
    }


def _read(data: Mapping[str, Any]) -> dict[str, Any]:
    """Both published layouts: `num_hidden_layers` is the number per stack, or that of all passes together."""
    h_cycles, l_cycles, layers = data["H_cycles"], data["L_cycles"], data.get("num_hidden_layers")
    found = sizes(data.get("num_layers_per_stack", layers), h_cycles, l_cycles)
    per_stack, loops = found["num_layers"] // 2, found["loops"]
    if layers is not None and layers not in (per_stack, per_stack * loops):
        raise ConfigError(f"config.json has num_hidden_layers = {layers!r} and {per_stack} layers per stack; expected "
                          f"{per_stack * loops}, those of all {loops} passes")  # fmt: skip
    heads, kv_heads = data.get("num_attention_heads"), data.get("num_key_value_heads")
    if kv_heads is not None and kv_heads != heads:
        raise ConfigError(f"config.json has num_key_value_heads = {kv_heads!r} and {heads!r} heads; this family has "
                          "as many keys as queries")  # fmt: skip
    scale, spread = data.get("embedding_scale"), data.get("initializer_range")
    if scale is None:
        if not isinstance(spread, (int, float)) or spread <= 0:
            raise ConfigError("config.json lacks 'embedding_scale'; add it: the model cannot be run without")
        scale = 1 / spread
    if type(scale) is int:
        scale = float(scale)
    return {**found, "embedding_scale": scale, "prefix_lm": data["prefix_lm"]}


def _write(config: ModelConfig) -> dict[str, Any]:
    h_cycles, l_cycles = config.cycles
    return {
        "num_layers_per_stack": config.stack_layers[0],
        "num_hidden_layers": config.stack_layers[0] * config.loops,
        "H_cycles": h_cycles,
        "L_cycles": l_cycles,
        "embedding_scale": config.embedding_scale,
        "prefix_lm": config.prefix_lm,
    }


def _read_gguf(values: Mapping[str, Any]) -> dict[str, Any]:
    """`block_count` is the number of layers of all passes together."""
    found = sizes(values["hrm.layers_per_stack"], values["hrm.h_cycles"], values["hrm.l_cycles"])
    if values["block_count"] != (slots := found["num_layers"] // 2 * found["loops"]):
        raise ConfigError(
            f"hrm_text.block_count is {values['block_count']}; expected {slots}, the layers of all passes"
        )
    return {**found, "embedding_scale": values["embedding_scale"], "prefix_lm": values["hrm.prefix_lm"]}


def _write_gguf(config: ModelConfig) -> dict[str, Any]:
    h_cycles, l_cycles = config.cycles
    return {
        "block_count": config.stack_layers[0] * config.loops,
        "embedding_scale": config.embedding_scale,
        "hrm.layers_per_stack": config.stack_layers[0],
        "hrm.h_cycles": h_cycles,
        "hrm.l_cycles": l_cycles,
        "hrm.prefix_lm": config.prefix_lm,
    }


_KEYS: dict[str, type] = {
    "block_count": int, "embedding_scale": float, "hrm.layers_per_stack": int, "hrm.h_cycles": int,
    "hrm.l_cycles": int, "hrm.prefix_lm": bool,
}  # fmt: skip

HRM_TEXT = Family(
    architecture="HrmTextForCausalLM",
    loops_field=None,
    loops_key=None,
    derives_head_dim=False,
    exits=False,
    norm_weights=False,
    attention_gate=True,
    interleaved_gguf=False,
    state_init=True,
    num_stacks=2,
    num_cycles=2,
    fields=frozenset("H_cycles L_cycles L_bp_cycles num_layers_per_stack embedding_scale prefix_lm".split()),
    defaults={  # of the published class
        "H_cycles": 2,
        "L_cycles": 3,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "prefix_lm": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    program=program,
    read=_read,
    write=_write,
    gguf=GgufKeys(types=_KEYS, read=_read_gguf, write=_write_gguf),
)
