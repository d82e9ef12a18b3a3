"""Exported float32 models of every family against the oracle at random sizes: heads, widths, layers, loops, ties."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from models import hf_config, hf_tensors
from safetensors.numpy import save_file

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.arch.programs import raven_reference
from ouro_edge.export.open_checkpoint import open_checkpoint

FAMILIES = ("ouro", "nanbeige", "llama", "hrm_text", "huginn", "retrofit", "retrofit-olmo")
LENGTH = 11


def sizes(rng):
    """Sizes that all families have; widths and vocabularies are odd, heads need not fill the width."""
    kv_heads, group = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 5])
    return {
        "hidden_size": rng.choice([33, 36, 50, 64]), "intermediate_size": rng.choice([17, 40, 99]),
        "vocab_size": rng.choice([61, 97, 131]), "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads, "head_dim": rng.choice([6, 8, 12, 20, 34]),
        "rms_norm_eps": rng.choice([1e-6, 1e-5]), "rope_theta": rng.choice([1e4, 7e7]),
        "tie_word_embeddings": rng.random() < 0.4,
    }  # fmt: skip


def block_model(rng, family):
    """Ouro, Nanbeige and plain transformers: one block, 1 to 8 times."""
    data = hf_config(model_type="llama" if family == "nanbeige" else family, **sizes(rng))
    data["num_hidden_layers"] = rng.randint(1, 4)
    tensors = hf_tensors(data, rng.randrange(1000))
    if family == "ouro":
        data["total_ut_steps"] = rng.randint(1, 8)
    if family == "nanbeige":
        data |= {"model_type": family, "num_loops": rng.randint(1, 8), "kv_channels": data["head_dim"],
                 "skip_loop_final_norm": rng.random() < 0.4}  # fmt: skip
    if rng.random() < 0.5:  # as transformers 5 writes it
        data["rope_parameters"] = {"rope_type": "default", "rope_theta": data.pop("rope_theta")}
        data["dtype"] = "float32"
    return data, tensors


def hrm_model(rng):
    """One to three layers per stack, 1 to 3 cycles of 1 to 4 + 1 passes."""
    data, layers = sizes(rng), rng.randint(1, 3)
    high, low = rng.randint(1, 3), rng.randint(1, 4)
    heads = data["num_key_value_heads"] = data["num_attention_heads"]
    data |= {"model_type": "hrm_text", "H_cycles": high, "L_cycles": low, "num_hidden_layers": layers,
             "prefix_lm": rng.random() < 0.7, "hidden_act": "silu", "max_position_embeddings": 128}  # fmt: skip
    data |= rng.choice([{"embedding_scale": 3.5}, {"initializer_range": 0.125}])
    if rng.random() < 0.5:
        data |= {"num_layers_per_stack": layers, "num_hidden_layers": layers * high * (low + 1)}
    c, f, q = data["hidden_size"], data["intermediate_size"], heads * data["head_dim"]
    shapes = {"model.embed_tokens.weight": (data["vocab_size"], c), "model.z_L_init": (c,)}
    for layer in (f"model.{stack}_module.layers.{i}." for stack in "LH" for i in range(layers)):
        shapes |= {layer + "attn.gqkv_proj.weight": (4 * q, c), layer + "attn.o_proj.weight": (c, q),
                   layer + "mlp.gate_up_proj.weight": (2 * f, c), layer + "mlp.down_proj.weight": (c, f)}  # fmt: skip
    return data, filled(rng, shapes, "lm_head.weight", data["tie_word_embeddings"])


def raven_model(rng, kind):
    """Stacks of 1 to 3 layers; Huginn's layers, or those of the two kinds of retrofits."""
    huginn, common = kind == "huginn", sizes(rng)
    heads, dim = common["num_attention_heads"], common["head_dim"]
    kv_heads = heads if huginn else common["num_key_value_heads"]
    stacks, c, f = [rng.randint(1, 3) for _ in range(3)], heads * dim, common["intermediate_size"]
    tied, bias = common["tie_word_embeddings"], huginn and rng.random() < 0.6
    data = {
        "model_type": "huginn_raven", "n_embd": c, "n_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": f, "padded_vocab_size": common["vocab_size"], "norm_eps": common["rms_norm_eps"],
        "nonlin_name": "SiLU", "tie_embeddings": tied, "mean_recurrence": rng.randint(1, 8), "qk_bias": bias,
        "block_size": 128, "rope_base": common["rope_theta"],
        "init_values": {"std": 0.1, "embed_scale": rng.choice([1.0, 2.5])},
    }  # fmt: skip
    names = ("n_layers_in_prelude", "n_layers_in_recurrent_block", "n_layers_in_coda")
    data |= dict(zip(names, stacks, strict=True))
    if not huginn:
        data["rope_theta"] = 1e4
        data["rope_scaling"] = rng.choice([None, {"rope_type": "linear", "factor": 2.0}])
    shapes = {"transformer.wte.weight": (common["vocab_size"], c), "transformer.adapter.weight": (c, 2 * c),
              "transformer.ln_f.weight": (c,)}  # fmt: skip
    for stack, layers in zip(("prelude", "core_block", "coda"), stacks, strict=True):
        for layer in (f"transformer.{stack}.{i}." for i in range(layers)):
            shapes |= {layer + "attn.Wqkv.weight": ((heads + 2 * kv_heads) * dim, c)}
            shapes |= {layer + "attn.proj.weight": (c, c), layer + "mlp.proj.weight": (c, f)}
            shapes |= {layer + "mlp.fc.weight": (2 * f, c)}
            shapes |= {f"{layer}norm_{n}.weight": (c,) for n in range(1, 5 if huginn else 3)}
            if bias:
                shapes[layer + "attn.qk_bias"] = (2, 1, heads, dim)
            if kind == "retrofit-olmo":
                shapes |= {layer + "attn.q_norm.weight": (c,), layer + "attn.k_norm.weight": (kv_heads * dim,)}
    return data, filled(rng, shapes, "lm_head.weight", tied)


def filled(rng, shapes, head, tied):
    """Random tensors: gains around 1, matrices that keep the size of what they multiply."""
    if not tied:
        shapes[head] = next(iter(shapes.values()))
    normal = np.random.default_rng(rng.randrange(1000)).standard_normal
    return {
        name: (normal(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.2) + ("norm" in name or "ln_f" in name))
        .astype(np.float32) for name, shape in shapes.items()
    }  # fmt: skip


def model_of(family, seed):
    rng = random.Random(f"{family} {seed}")
    if family == "hrm_text":
        return hrm_model(rng)
    return block_model(rng, family) if family in ("ouro", "nanbeige", "llama") else raven_model(rng, family)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_equal_the_oracle(tmp_path, family, seed):
    data, tensors = model_of(family, seed)
    (tmp_path / "config.json").write_text(json.dumps(data))
    save_file(tensors, tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path)
    config, weights = opened.config, dict(opened.weights)
    weights.setdefault("head", weights["embedding"])
    ids = np.random.default_rng(seed).integers(config.vocab_size, size=LENGTH)
    wanted = {}  # logits by depth and prefix
    if config.model_type.startswith("huginn"):
        states = raven_reference.core_states(config, weights, ids, 8)
        for depth in (1, 3, 8):
            wanted[depth, 0] = reference.head(weights, raven_reference.coda(config, weights, states[depth - 1]))
    else:
        for prefix in (0, 5) if config.prefix_lm else (0,):
            hidden = reference.run(config, weights, ids, prefix).hidden
            depths = [config.loops] if family == "hrm_text" else range(1, config.loops + 1)
            wanted |= {(depth, prefix): reference.logits(config, weights, hidden[depth - 1]) for depth in depths}
    model_path = ouro_edge.export(tmp_path, tmp_path / "out", precision="fp32").path
    with ouro_edge.load(model_path, kv="fp32") as model:
        for (depth, prefix), logits in wanted.items():
            found = model.forward(ids.tolist(), exit=ouro_edge.FixedDepth(depth, force=True), prefix=prefix).logits
            np.testing.assert_allclose(found, logits, atol=1e-3)


def test_the_seeds_draw_what_makes_a_difference():
    drawn = [model_of(family, seed)[0] for family in FAMILIES for seed in (0, 1, 2)]
    for one in (
        lambda d: d.get("tie_word_embeddings"), lambda d: d.get("tie_embeddings"), lambda d: d.get("qk_bias"),
        lambda d: d.get("skip_loop_final_norm"), lambda d: d.get("prefix_lm") is False, lambda d: "dtype" in d,
        lambda d: d.get("num_layers_per_stack"), lambda d: (d.get("rope_scaling") or {}).get("factor"),
        lambda d: d.get("num_key_value_heads") not in (None, d.get("num_attention_heads", d.get("n_heads"))),
    ):  # fmt: skip
        assert {bool(one(data)) for data in drawn} == {False, True}
