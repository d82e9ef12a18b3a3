"""Ouro for transformers 4.57, for export by optimum-intel; copied into a checkpoint, not imported here.

A Llama with additional norms after attention and after the feed-forward, whose layers run `total_ut_steps` times. Every
pass has separate keys and values, and ends with the final norm. The exit gate is omitted, because exporters run all
loops for every token.
"""

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel, LlamaRMSNorm


class OuroConfig(LlamaConfig):
    """Llama's fields and the number of loops."""

    model_type = "ouro"

    def __init__(self, total_ut_steps=4, **fields):
        self.total_ut_steps = total_ut_steps
        super().__init__(**fields)


class OuroLayer(LlamaDecoderLayer):
    """One layer with sandwich norms."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.input_layernorm_2 = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm_2 = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden, slot, **attention):
        self.self_attn.layer_idx = slot
        mixed, _ = self.self_attn(hidden_states=self.input_layernorm(hidden), **attention)
        hidden = hidden + self.input_layernorm_2(mixed)
        return hidden + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(hidden)))


class OuroModel(LlamaModel):
    """The looped stack."""

    config_class = OuroConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(OuroLayer(config, i) for i in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
                cache_position=None, use_cache=None, **rest):  # fmt: skip
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if cache_position is None:
            cache_position = torch.arange(seen, seen + hidden.shape[1], device=hidden.device)
        if position_ids is None:
            position_ids = cache_position.unsqueeze(0)
        mask = create_causal_mask(config=self.config, input_embeds=hidden, attention_mask=attention_mask,
                                  cache_position=cache_position, past_key_values=past_key_values,
                                  position_ids=position_ids)  # fmt: skip
        rope = self.rotary_emb(hidden, position_ids)
        for loop in range(self.config.total_ut_steps):
            for i, layer in enumerate(self.layers):
                hidden = layer(hidden, loop * len(self.layers) + i, attention_mask=mask, position_embeddings=rope,
                               past_key_values=past_key_values, cache_position=cache_position)  # fmt: skip
            hidden = self.norm(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class OuroForCausalLM(LlamaForCausalLM):
    """The looped stack with its head."""

    config_class = OuroConfig
    _keys_to_ignore_on_load_unexpected = [r"early_exit_gate"]  # noqa: RUF012 (as transformers has it)

    def __init__(self, config):
        super().__init__(config)
        self.model = OuroModel(config)
        self.post_init()
