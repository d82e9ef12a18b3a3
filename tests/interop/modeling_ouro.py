"""Ouro for transformers, as small as it gets: the modelling code inside a test checkpoint, loaded by trust_remote_code.

Written for these tests from the model's description, with the published names of modules, so that published tensors
load, and a KV slot for every loop and layer. Every token runs all loops; the gate is loaded and left alone.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class OuroConfig(PretrainedConfig):
    model_type = "ouro"

    def __init__(self, use_cache: bool = True, **fields):
        super().__init__(**fields)  # keeps whatever config.json says
        self.use_cache = use_cache


class RMSNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        width, queries = config.hidden_size, config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, queries, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(queries, width, bias=False)
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.is_causal = True

    def forward(self, x, angles, mask, cache: Cache, slot: int):
        def heads(y):  # [B, T, H*D] -> [B, H, T, D]
            return y.view(*y.shape[:2], -1, self.config.head_dim).transpose(1, 2)

        q, k = rotate(heads(self.q_proj(x)), angles), rotate(heads(self.k_proj(x)), angles)
        k, v = cache.update(k, heads(self.v_proj(x)), slot)
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        mixed, _ = attend(self, q, k, v, mask, scaling=self.config.head_dim**-0.5)
        return self.o_proj(mixed.flatten(2))


def rotate(x, angles):
    """Rotary positions, halves split: x [B, H, T, D], angles [B, T, D/2]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), MLP(config)
        self.input_layernorm, self.input_layernorm_2 = RMSNorm(config), RMSNorm(config)
        self.post_attention_layernorm, self.post_attention_layernorm_2 = RMSNorm(config), RMSNorm(config)

    def forward(self, x, *attention):
        x = x + self.input_layernorm_2(self.self_attn(self.input_layernorm(x), *attention))
        return x + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(x)))


class OuroPreTrainedModel(PreTrainedModel):
    config_class = OuroConfig
    base_model_prefix = "model"
    _supports_sdpa = True


class OuroModel(OuroPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)
        self.early_exit_gate = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, input_ids, attention_mask, position_ids, cache: Cache):
        x = self.embed_tokens(input_ids)
        past = cache.get_seq_length()
        positions = torch.arange(past, past + x.shape[1], device=x.device)
        if position_ids is None:
            position_ids = positions[None]
        mask = create_causal_mask(self.config, x, attention_mask, positions, cache, position_ids)
        half = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32) / self.config.head_dim
        angles = position_ids[..., None].float() * self.config.rope_theta**-half
        for loop in range(self.config.total_ut_steps):
            for i, layer in enumerate(self.layers):
                x = layer(x, angles, mask, cache, loop * len(self.layers) + i)
            x = self.norm(x)
        return x


class OuroForCausalLM(OuroPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = OuroModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        **kwargs,
    ):
        cache, slots = past_key_values, self.config.total_ut_steps * self.config.num_hidden_layers
        if cache is None or len(cache.layers) < slots:  # generate prepares one slot a layer
            cache = DynamicCache()
        hidden = self.model(input_ids, attention_mask, position_ids, cache)
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=cache)
