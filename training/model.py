"""The looped transformer in torch, exactly Ouro's: sandwich norms, one block applied R times, a norm after every loop.

Knows the architecture and its tensor names. Refuses to know about data, losses, exits and files.
Alphabet of shapes: B batch, T positions, C width, H heads, D head dim, F feed-forward width, V vocab, R loops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of a looped model; the names are those of Ouro's config.json."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 352
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    total_ut_steps: int = 4
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, raw: dict) -> ModelConfig:
        """Read config.json of a checkpoint; a missing field is an error, other fields are not needed for training."""
        missing = [f.name for f in fields(cls) if f.name not in raw]
        if missing:
            raise KeyError(f"config.json lacks {missing}")
        config = cls(**{f.name: raw[f.name] for f in fields(cls)})
        if raw["num_key_value_heads"] != config.num_attention_heads or raw["head_dim"] != config.head_dim:
            raise ValueError("only multi-head attention with head_dim = hidden_size / heads is trained here")
        return config

    def to_hf(self, bos: int, eos: int, pad: int) -> dict:
        """Every field that Ouro's config.json has."""
        return asdict(self) | {
            "architectures": ["OuroForCausalLM"],
            "model_type": "ouro",
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.head_dim,
            "rope_scaling": None,
            "attention_dropout": 0.0,
            "layer_types": ["full_attention"] * self.num_hidden_layers,
            "use_sliding_window": False,
            "sliding_window": None,
            "use_cache": True,
            "early_exit_threshold": 1.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "torch_dtype": "float32",
        }


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config.hidden_size
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(c, c, bias=False) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, C); cos, sin (B, 1, T, D); mask (B, 1, T, T), True where a query may look."""
        b, t, c = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(b, t, self.heads, self.head_dim).transpose(1, 2)

        def rotate(y: Tensor) -> Tensor:
            low, high = y.chunk(2, -1)
            return y * cos + torch.cat((-high, low), -1) * sin

        q, k, v = rotate(split(self.q_proj(x))), rotate(split(self.k_proj(x))), split(self.v_proj(x))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, c))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, f = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = nn.Linear(c, f, bias=False), nn.Linear(c, f, bias=False)
        self.down_proj = nn.Linear(f, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(config), MLP(config)
        for name in ("input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2"):
            setattr(self, name, RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        h = h + self.input_layernorm_2(self.self_attn(self.input_layernorm(h), cos, sin, mask))
        return h + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(h)))


class Body(nn.Module):
    """Everything under the prefix `model.` of a checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.early_exit_gate = nn.Linear(config.hidden_size, 1)

    def loop(self, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """One application of the shared block, (B, T, C) -> (B, T, C); the norm belongs to the loop."""
        for layer in self.layers:
            h = layer(h, cos, sin, mask)
        return self.norm(h)


class Ouro(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def init_weights(self, generator: torch.Generator, post_norm_gain: float = 0.2, gate_bias: float = -1.1) -> None:
        """Small post-norm gains keep the first loops near the identity; the gate's bias spreads the exits evenly."""
        for name, p in self.named_parameters():
            with torch.no_grad():
                if "layernorm_2" in name:
                    p.fill_(post_norm_gain)
                elif name == "model.early_exit_gate.bias":
                    p.fill_(gate_bias)
                elif name == "model.early_exit_gate.weight":
                    p.zero_()
                elif p.ndim == 2:
                    std = 0.5 if "embed" in name else 0.02 if "lm_head" in name else p.shape[1] ** -0.5
                    p.normal_(0.0, std, generator=generator)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (B, T) -> cos, sin (B, 1, T, D), half-split as in Hugging Face's rotate_half."""
        d = self.config.head_dim
        frequencies = self.config.rope_theta ** (-torch.arange(0, d, 2, dtype=torch.float32) / d)
        angles = positions[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()

    def states(
        self, ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None, loop: Callable | None = None
    ) -> list[Tensor]:
        """ids (B, T) -> R normed states, each (B, T, C). `loop` may be a compiled `self.model.loop`."""
        b, t = ids.shape
        if positions is None:
            positions = torch.arange(t).expand(b, t)
        if mask is None:
            mask = torch.ones(t, t, dtype=torch.bool).tril().expand(b, 1, t, t)
        cos, sin = self.rope(positions)
        h = self.model.embed_tokens(ids)
        out = []
        for _ in range(self.config.total_ut_steps):
            h = (loop or self.model.loop)(h, cos, sin, mask)
            out.append(h)
        return out

    def read(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Normed states (..., C) -> logits (..., V) and gate logits (...)."""
        return self.lm_head(h), self.model.early_exit_gate(h).squeeze(-1)


def exit_probabilities(gate_logits: Tensor) -> Tensor:
    """Gate logits (..., R) -> p (..., R): p_r = lambda_r prod_{j<r} (1 - lambda_j), the last takes what is left."""
    stay = torch.cumprod(torch.sigmoid(-gate_logits[..., :-1]), -1)
    before = torch.cat((torch.ones_like(stay[..., :1]), stay), -1)
    leave = torch.cat((torch.sigmoid(gate_logits[..., :-1]), torch.ones_like(stay[..., :1])), -1)
    return before * leave
