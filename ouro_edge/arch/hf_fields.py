"""Which fields of a Hugging Face config.json matter. Imports `errors`, `families`, `rope_fields`.

A field that can change the computation is strict: it is read, or has a value that changes nothing, or is an error.
Every other field (training, generation, bookkeeping) is ignored; `unknown_fields` names those that no list here has, so
that a note can. transformers adds private fields with a leading underscore, which never describe the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ouro_edge.arch.families import FAMILIES
from ouro_edge.arch.family import Family
from ouro_edge.arch.rope_fields import read_rope
from ouro_edge.errors import ConfigError

READ_FIELDS = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads head_dim num_key_value_heads "
    "max_position_embeddings rope_theta rms_norm_eps tie_word_embeddings model_type hidden_act layer_types "
    "rope_scaling rope_parameters bos_token_id eos_token_id pad_token_id".split()
)
# Fields that could change the computation, with the values that do not. Null means absent.
_ONLY_VALUES: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "attention_bias": (False,),
    "attn_bias": (False,),
    "early_exit_step": (),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1,),
    "position_embedding_type": ("rope", "rotary", "absolute"),  # "absolute" is a base class's default, not in use
    "quantization_config": (),
    "rope_interleaved": (False,),  # a different rotary layout
    "use_sliding_window": (False,),
    "use_weighted_exit": (False,),
}
# Fields that are known to mean nothing here although a name may look like computation: no note for them.
_USUAL = frozenset(
    "architectures auto_map bad_words_ids begin_suppress_tokens chunk_size chunk_size_feed_forward "
    "cross_attention_hidden_size do_sample dtype finetuning_task forced_bos_token_id forced_eos_token_id id2label "
    "is_decoder is_encoder_decoder is_llama_config label2id max_length max_sequence_length max_window_layers "
    "model_max_length n_positions num_return_sequences prefix problem_type pruned_heads remove_invalid_values "
    "renormalize_logits "
    "return_dict scale_attn_weights sep_token_id sliding_window task_specific_params temperature tf_legacy_loss "
    "tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config typical_p "
    "unk_token_id use_bfloat16 use_cache".split()
)
# Words in the name of a field about training, speed or bookkeeping: never about the computation.
_OTHER = re.compile(
    r"dropout|drop(?=_|$)|loss|decay|warmup|learning_rate|train|gradient|epoch|seed|optim|version|flash|sdpa|"
    r"implementation|initializ|init_(std|method|device)|output_(attentions|hidden|scores)|checkpoint|dtype|unsloth|"
    r"dataset|deterministic|parallel_size|efficient|mem_eff|xformers|fused|triton|cuda|cache|classifier|^summary_|"
    r"penalty|beam|ngram|validation"
)
# Words in the name of a field that can change the computation.
_COMPUTES = re.compile(
    r"(^|_)act(ivation|_|\d|$)|alibi|attn|attention|bias|blocks?(?=_|$)|cap(ping)?(?=_|$)|causal|clip|compress|conv|depth|"
    r"dilat|emb(?=_|$)|embed|expert|ffn|gate|glu|head|hidden|kernel|kv|latent|layer|linear|logit|lora|loop|mamba|mixer|"
    r"mlp|moe|mu_?p(?=_|$)|multiplier|norm|parallel|pos(?=_|$)|position|qk|quant|query|rank|recurren|residual|rms|rope|"
    r"rot|router|scal|shared|sink|skip|softcap|softmax|sparse|ssm|theta|tie(?=_|$)|tying|window|weight"
)
# Fields that are on in every model that the runtime computes: switched off, they change it.
_ALWAYS_ON = re.compile(r"(use_|is_|do_)?(rms_?norm|rope|rotary\w*|swiglu|glu|gated_mlp|pre_?norm|causal)")


def checked_fields(data: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The fields to read, with defaults. ConfigError names a field or value that the runtime does not implement."""
    only_values = {**_ONLY_VALUES, **family.only_values}
    found = {name: value for name, value in data.items() if value is not None}
    known = READ_FIELDS | family.fields
    for name in sorted(found.keys() & only_values.keys()):
        value, neutral = found[name], only_values[name]
        if not any(value == one and isinstance(value, str) == isinstance(one, str) for one in neutral):
            shown = " or ".join(map(repr, neutral)) or "null"
            raise ConfigError(f"config.json has {name} = {value!r}; only {shown} is implemented")
    for name in sorted(found.keys() - known - only_values.keys() - _USUAL):
        if _may_compute(name) and not _is_neutral(name, found[name]):
            raise ConfigError(f"config.json has {name} = {found[name]!r}, an unknown field that may change what the "
                              "model computes; remove it if it has no effect")  # fmt: skip
    layers = found.get("layer_types")
    if layers is not None and not (isinstance(layers, list) and all(kind == "full_attention" for kind in layers)):
        raise ConfigError(f"config.json has layer_types = {layers!r}; only a list of full_attention is implemented")
    read_rope(found, family.defaults.get("max_position_embeddings"))
    if family.defaults:
        heads = {"num_key_value_heads": found["num_attention_heads"]} if "num_attention_heads" in found else {}
        found = {**family.defaults, **heads, **found}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # old configs write -1 for a token that is not there
        if isinstance(ids := found.get(name), list):
            found[name] = [i for i in ids if type(i) is not int or i != -1]
        elif type(ids) is int and ids == -1:
            del found[name]
    return found


def unknown_fields(data: Mapping[str, Any]) -> list[str]:
    """Fields that are ignored although nothing is known about them."""
    known = READ_FIELDS.union(_ONLY_VALUES, _USUAL, *((*f.fields, *f.only_values) for f in FAMILIES.values()))
    return sorted(name for name, value in data.items() if name not in known and value is not None
                  and not name.startswith("_") and not _OTHER.search(name))  # fmt: skip


def _may_compute(name: str) -> bool:
    return not name.startswith("_") and not _OTHER.search(name) and _COMPUTES.search(name) is not None


def _is_neutral(name: str, value: Any) -> bool:
    """Whether an unknown field has a value that switches off what it names, or a factor that changes nothing."""
    if _ALWAYS_ON.fullmatch(name):
        return value is True
    if isinstance(value, (bool, list, dict)):
        return not value
    factor = re.search(r"multiplier|scal(e|ing)|factor", name) is not None
    return isinstance(value, (int, float)) and value == (1 if factor else 0)
