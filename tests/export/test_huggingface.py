"""Checkpoint directories: every form that is published, and every way in which one can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from models import GOLDEN, hf_config, hf_tensors, write_checkpoint
from safetensors.numpy import save_file

from ouro_edge.errors import CheckpointError, ConfigError
from ouro_edge.export.open_checkpoint import open_checkpoint


def write_shards(path, config, tensors, shards=3, index=None):
    """Write tensors over several files with an index; `index` changes the weight map."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for i in range(shards):
        part = {name: tensors[name] for name in sorted(tensors)[i::shards]}
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, path / file)
        weight_map |= dict.fromkeys(part, file)
    weight_map |= index or {}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def test_one_file_and_shards_are_the_same_model(tmp_path):
    config = hf_config()
    tensors = hf_tensors(config)
    single = open_checkpoint(write_checkpoint(tmp_path / "single"))
    sharded = open_checkpoint(write_shards(tmp_path / "sharded", config, tensors))
    assert single.config == sharded.config
    for name, values in single.weights.items():
        np.testing.assert_array_equal(values, sharded.weights[name])
    np.testing.assert_array_equal(
        single.weights["layers.1.ffn_norm"], tensors["model.layers.1.post_attention_layernorm.weight"]
    )
    np.testing.assert_array_equal(
        single.weights["layers.1.attn_post_norm"], tensors["model.layers.1.input_layernorm_2.weight"]
    )


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_widened_exactly(tmp_path, dtype):
    config = hf_config()
    tensors = {name: values.astype(dtype) for name, values in hf_tensors(config).items()}
    path = write_checkpoint(tmp_path / "half")
    save_file(tensors, path / "model.safetensors")
    weights = open_checkpoint(path).weights
    assert weights["layers.0.q_proj"].dtype == np.float32
    wanted = tensors["model.layers.0.self_attn.q_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(weights["layers.0.q_proj"], wanted)
    np.testing.assert_array_equal(weights.rows("layers.0.q_proj", 3, 7), wanted[3:7])


def test_a_tied_head_that_is_stored_anyway_is_ignored(tmp_path):
    config = hf_config(tie_word_embeddings=True)
    tensors = hf_tensors(config)
    path = write_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, path / "model.safetensors")
    weights = open_checkpoint(path).weights
    assert "head" not in weights.shapes
    np.testing.assert_array_equal(weights["head"], weights["embedding"])


def test_a_chat_template_inside_tokenizer_config_is_found(tmp_path):
    path = write_checkpoint(tmp_path / "model")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert open_checkpoint(path).files["chat_template.jinja"] == b"{{ messages }}"


def test_the_default_of_several_chat_templates_is_taken(tmp_path):
    path = write_checkpoint(tmp_path / "model")
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ messages }}"}]
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert open_checkpoint(path).files["chat_template.jinja"] == b"{{ messages }}"


def test_a_chat_template_that_is_no_unicode_is_refused(tmp_path):
    path = write_checkpoint(tmp_path / "model")
    (path / "tokenizer_config.json").write_text('{"chat_template": "\\ud800"}')
    with pytest.raises(CheckpointError, match="chat_template is not valid Unicode text"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_an_unreadable_file_is_not_called_missing(tmp_path, monkeypatch, name):
    path = write_checkpoint(tmp_path / "model")
    (path / name).touch()
    plain = Path.open

    def refuse(self, *args, **options):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: Permission denied; change"):
        open_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_is_not_opened(tmp_path, name):
    path = write_checkpoint(tmp_path / "model")
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
        open_checkpoint(path / name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_huge_text_file_is_not_read(tmp_path, name):
    path = write_checkpoint(tmp_path / "model")
    with (path / name).open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(CheckpointError, match=f"{name} has 67108865 bytes; expected at most"):
        open_checkpoint(path)


def test_pickles_are_never_opened(tmp_path):
    path = write_checkpoint(tmp_path / "model")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks norm"),
        (lambda t: t.pop("model.early_exit_gate.bias"), r"lacks exit_gate\.bias"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.zeros((1, 1), np.float32)}), "does not use"),
        (lambda t: t.update({"model.layers.00.mlp.up_proj.weight": np.zeros((1, 1), np.float32)}), "does not use"),
        (lambda t: t.update({"extra": np.zeros(3, np.float32)}), "does not use: extra"),
        (lambda t: t.update({"model.norm.weight": np.ones(47, np.float32)}), r"norm has shape \[47\]"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.copy()}), "head has shape"),
        (lambda t: t.update({"model.norm.weight": np.ones(48, np.int32)}), "I32"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, says):
    tensors = hf_tensors(hf_config())
    change(tensors)
    path = write_checkpoint(tmp_path / "model")
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named_when_read(tmp_path, value):
    tensors = hf_tensors(hf_config())
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = value
    path = write_checkpoint(tmp_path / "model")
    save_file(tensors, path / "model.safetensors")
    weights = open_checkpoint(path).weights
    with pytest.raises(CheckpointError, match=r"layers\.1\.down_proj"):
        weights["layers.1.down_proj"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0",
        lambda data: (1 << 62).to_bytes(8, "little") + data[8:],
        lambda data: data.replace(b'"F32"', b'"F33"', 1),
        lambda data: data.replace(b"[48]", b"[49]", 1),
        lambda data: data.replace(b"{", b"(", 1),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, damage):
    path = write_checkpoint(tmp_path / "model")
    file = path / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"model.norm.weight": "../model.safetensors"}, "only files beside"),
        ({"model.norm.weight": "/etc/passwd"}, "only files beside"),
        ({"model.norm.weight": "a\\b.safetensors"}, "only files beside"),
        ({"model.norm.weight": "C:x.safetensors"}, "only files beside"),
        ({"model.norm.weight": "\ud800"}, r"'\\ud800'; only files beside"),
        ({"model.norm.weight": "a\n\x1b[31m"}, r"'a\\n\\x1b\[31m'; only files beside"),
        ({"model.norm.weight": "x" * 300}, "cannot be read: File name too long|disagree|missing"),
        ({"model.norm.weight": ""}, "only files beside"),
        ({"model.norm.weight": "absent.safetensors"}, "disagree|missing"),
        ({"model.other.weight": "model-00001-of-00003.safetensors"}, "disagree"),
        ({"model.norm.weight": 3}, "weight_map"),
    ],
)
def test_a_lying_index_is_refused(tmp_path, entry, says):
    config = hf_config()
    path = write_shards(tmp_path / "model", config, hf_tensors(config), index=entry)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(path)


def test_paths_that_are_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        open_checkpoint(tmp_path / "file.txt")
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        open_checkpoint(tmp_path)


def test_the_golden_checkpoint_is_read():
    checkpoint = open_checkpoint(GOLDEN)
    assert checkpoint.name == "ouro-tiny"
    assert checkpoint.tensor_types == {"F32": 38}
