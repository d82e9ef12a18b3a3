"""The families of models: what their config.json calls the number of loops, their norms, gate and exits.

A family that computes the same kind of layer is one entry here, one with another order of passes has a file of its own.
Readers, writers and the runtime use the entry and have no cases of their own. `arch.hf_fields` checks the fields that
an entry names.
"""

from __future__ import annotations

from collections.abc import Mapping

from ouro_edge.arch.family import Family
from ouro_edge.arch.programs import raven
from ouro_edge.arch.programs.hrm_text import HRM_TEXT

# Features of later Nanbeige models, which have other weights or another order of layers. Absent means off.
_NANBEIGE_OFF = (
    "enable_double_loop_split loop_middle_layers loop_share_kv enable_hyper_connection enable_mhc "
    "enable_depth_attention qk_layernorm emb_neighbor_num insert_ngram_layer_idx ngram_insert_all_layers "
    "loop_loss_weights"
).split()

FAMILIES: Mapping[str, Family] = {
    # Ouro's class has defaults that differ from the checkpoints. Its published configs name only stop id 0, but chats
    # end with 2.
    "ouro": Family(
        architecture="OuroForCausalLM",
        loops_field="total_ut_steps",
        loops_key="num_loops",
        sandwich_norms=True,
        gate=True,
        stop_ids=frozenset((0, 2)),
        fields=frozenset(("total_ut_steps", "early_exit_threshold")),
    ),
    "nanbeige": Family(
        architecture="NanbeigeForCausalLM",
        loops_field="num_loops",
        loops_key="num_loops",
        derives_head_dim=False,
        exits=False,
        skips_loop_norm=True,
        fields=frozenset(("num_loops", "kv_channels", "skip_loop_final_norm")),
        only_values={name: (False, 0, []) for name in _NANBEIGE_OFF},
    ),
    "hrm_text": HRM_TEXT,
    **raven.FAMILIES,
    "llama": Family(
        architecture="LlamaForCausalLM",
        loops_field=None,
        loops_key=None,
        defaults={
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
    ),
}


def family_names(gguf: bool = False) -> str:
    """The model types of all families, or of those that have a GGUF architecture, for error messages."""
    return ", ".join(repr(name) for name, family in FAMILIES.items()
                     if family.model_type is None and (family.has_gguf or not gguf))  # fmt: skip
