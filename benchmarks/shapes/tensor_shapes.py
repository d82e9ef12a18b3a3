"""Names and shapes of the tensors of every family, as published."""

from __future__ import annotations

from shapes.sizes import Shape


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of every tensor, in the order of the model's modules."""
    if shape.family in ("hrm_text", "huginn_raven"):
        return {"hrm_text": _hrm_tensors, "huginn_raven": _raven_tensors}[shape.family](shape)
    c, f, q = shape.hidden, shape.intermediate, shape.heads * shape.head_dim
    kv, ouro = (shape.kv_heads or shape.heads) * shape.head_dim, shape.family == "ouro"
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, c)}
    for i in range(shape.layers):
        parts = {f"self_attn.{name}_proj": (q if name == "q" else kv, c) for name in "qkv"}
        parts["self_attn.o_proj"] = (c, q)
        parts |= {"mlp.gate_proj": (f, c), "mlp.up_proj": (f, c), "mlp.down_proj": (c, f)}
        found |= {f"model.layers.{i}.{name}.weight": size for name, size in parts.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{i}.{norm}.weight"] = (c,)
            if ouro:
                found[f"model.layers.{i}.{norm}_2.weight"] = (c,)
    found["model.norm.weight"] = (c,)
    if ouro:
        found["model.early_exit_gate.weight"], found["model.early_exit_gate.bias"] = (1, c), (1,)
    found["lm_head.weight"] = (shape.vocab, c)
    return found


def _raven_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    c, f, q = shape.hidden, shape.intermediate, shape.heads * shape.head_dim
    kv = (shape.kv_heads or shape.heads) * shape.head_dim
    found: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (shape.vocab, c)}
    for stack, layers in zip(("prelude", "core_block", "coda"), shape.stacks, strict=True):
        for i in range(layers):
            layer = f"transformer.{stack}.{i}."
            found |= {f"{layer}attn.Wqkv.weight": (q + 2 * kv, c), f"{layer}attn.proj.weight": (c, q)}
            found |= {f"{layer}mlp.fc.weight": (2 * f, c), f"{layer}mlp.proj.weight": (c, f)}
            found |= {f"{layer}norm_{n}.weight": (c,) for n in (1, 2)}
    found |= {"transformer.adapter.weight": (c, 2 * c), "transformer.ln_f.weight": (c,)}
    return found | {"lm_head.weight": (shape.vocab, c)}


def _hrm_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Two stacks of layers without norms; attention and feed-forward matrices are fused."""
    c, f, q = shape.hidden, shape.intermediate, shape.heads * shape.head_dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, c), "model.z_L_init": (c,)}
    parts = {
        "attn.gqkv_proj": (4 * q, c),
        "attn.o_proj": (c, q),
        "mlp.gate_up_proj": (2 * f, c),
        "mlp.down_proj": (c, f),
    }
    for stack in "LH":
        for i in range(shape.layers):
            found |= {f"model.{stack}_module.layers.{i}.{name}.weight": size for name, size in parts.items()}
    found["lm_head.weight"] = (shape.vocab, c)
    return found
