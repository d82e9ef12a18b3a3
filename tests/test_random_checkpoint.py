"""The generator of random checkpoints: published shapes and names, files that safetensors and our own reader accept."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ouro_edge.arch.config import from_hf
from ouro_edge.export.open_checkpoint import open_checkpoint

SOURCE = Path(__file__).parents[1] / "benchmarks" / "random_checkpoint.py"
PUBLISHED = {
    "1.4b": (1_434_652_673, 269),
    "2.6b": (2_667_974_657, 533),
    "nanbeige4.2-3b": (4_169_800_704, 201),
    "hrm-text-1b": (1_182_795_264, 131),
}


@pytest.fixture(scope="module")
def random_checkpoint() -> ModuleType:
    spec = importlib.util.spec_from_file_location("random_checkpoint", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def load(folder: Path) -> dict[str, np.ndarray]:
    pytest.importorskip("ml_dtypes")
    from safetensors.numpy import load_file

    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


@pytest.mark.parametrize("shape", PUBLISHED)
def test_sizes_are_the_published_ones(random_checkpoint: ModuleType, shape: str) -> None:
    sizes = random_checkpoint.tensors(random_checkpoint.SHAPES[shape])
    assert (sum(map(math.prod, sizes.values())), len(sizes)) == PUBLISHED[shape]


def test_recurrent_llama_has_the_published_sizes(random_checkpoint: ModuleType) -> None:
    shape = random_checkpoint.SHAPES["recurrent-llama-1b"]
    config = from_hf(random_checkpoint.hf_config(shape), "huginn_raven_llama")
    assert (config.stack_layers, config.num_kv_heads, config.head_dim, config.vocab_size) == ((4, 6, 4), 8, 64, 128256)
    assert sum(map(math.prod, random_checkpoint.tensors(shape).values())) == 1_385_228_288  # 5.54 GB in float32


@pytest.mark.parametrize("shape", ["1.4b", "2.6b", "tiny"])
def test_config_is_read_strictly(random_checkpoint: ModuleType, shape: str) -> None:
    config = from_hf(random_checkpoint.hf_config(random_checkpoint.SHAPES[shape]))
    assert (config.loops, config.has_gate, config.exit_threshold, config.eos_token_ids) == (4, True, 1.0, (0,))
    assert config.num_layers == {"1.4b": 24, "2.6b": 48, "tiny": 3}[shape]


def test_configs_of_other_families(random_checkpoint: ModuleType) -> None:
    names = ("nanbeige4.2-3b", "hrm-text-1b")
    nanbeige, hrm = (from_hf(random_checkpoint.hf_config(random_checkpoint.SHAPES[name])) for name in names)
    assert (nanbeige.loops, nanbeige.num_kv_heads, nanbeige.q_size, nanbeige.rope_theta) == (2, 8, 6144, 7e7)
    assert (hrm.loops, hrm.stack_layers, hrm.prefix_lm, hrm.stop_token_ids) == (8, (16, 16), True, (11,))


@pytest.mark.parametrize("family", ["nanbeige", "hrm_text"])
def test_small_checkpoints_of_other_families_can_be_opened(
    random_checkpoint: ModuleType, tmp_path: Path, family: str
) -> None:
    kv = 2 if family == "nanbeige" else None
    shape = replace(random_checkpoint.SHAPES["tiny"], family=family, kv_heads=kv, vocab=200_000 if kv else 384)
    checkpoint = open_checkpoint(random_checkpoint.write(tmp_path / "a", shape))
    assert checkpoint.config.model_type == family
    assert np.isfinite(checkpoint.weights["layers.0.o_proj"]).all()


def test_single_file(random_checkpoint: ModuleType, tmp_path: Path) -> None:
    tiny, calls = random_checkpoint.SHAPES["tiny"], []
    out = random_checkpoint.write(tmp_path / "a", tiny, progress=lambda *counts: calls.append(counts))
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    found = load(out)
    assert {name: array.shape for name, array in found.items()} == random_checkpoint.tensors(tiny)
    assert {array.dtype.name for array in found.values()} == {"bfloat16"}
    total = sum(array.nbytes for array in found.values())
    assert calls[-1] == (total, total)
    matrix = found["model.embed_tokens.weight"].astype(np.float32)
    assert abs(matrix.mean()) < 1e-3 and abs(matrix.std() - 0.02) < 1e-3
    assert abs(found["model.layers.2.post_attention_layernorm_2.weight"].astype(np.float32).mean() - 1) < 0.1
    gate = found["model.early_exit_gate.weight"].astype(np.float32)
    assert 1.0 < np.linalg.norm(gate) < 2.0  # the spread of gate logits over unit-variance states


def test_shards_hold_the_same_values(random_checkpoint: ModuleType, tmp_path: Path) -> None:
    tiny = random_checkpoint.SHAPES["tiny"]
    whole = load(random_checkpoint.write(tmp_path / "whole", tiny))
    sharded = random_checkpoint.write(tmp_path / "sharded", tiny, shard_bytes=100_000)
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 1 and all(file.stat().st_size < 110_000 for file in files)
    index = json.loads((sharded / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    assert set(index["weight_map"]) == set(whole) and set(index["weight_map"].values()) == {f.name for f in files}
    parts = load(sharded)
    assert all(parts[name].tobytes() == array.tobytes() for name, array in whole.items())


def test_seed_decides_the_bytes(random_checkpoint: ModuleType, tmp_path: Path) -> None:
    tiny = random_checkpoint.SHAPES["tiny"]
    outs = [random_checkpoint.write(tmp_path / str(i), tiny, seed=seed) for i, seed in enumerate((0, 0, 1))]
    first, again, other = ((out / "model.safetensors").read_bytes() for out in outs)
    assert first == again and first != other and len(first) == len(other)


def test_bf16_rounds_to_nearest_even(random_checkpoint: ModuleType) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(0).standard_normal(100_000, np.float32)
    values[:2] = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)  # ties: one goes down, one up
    assert np.array_equal(random_checkpoint.to_bf16(values), values.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_refuses_what_is_in_the_way(random_checkpoint: ModuleType, tmp_path: Path) -> None:
    tiny = random_checkpoint.SHAPES["tiny"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(random_checkpoint.CheckpointExists, match="not empty"):
        random_checkpoint.write(tmp_path / "full", tiny)
    (tmp_path / "cut.partial").mkdir()
    with pytest.raises(random_checkpoint.CheckpointExists, match="interrupted"):
        random_checkpoint.write(tmp_path / "cut", tiny)
    (tmp_path / "empty").mkdir()
    assert (random_checkpoint.write(tmp_path / "empty", tiny) / "model.safetensors").exists()


def test_a_failure_leaves_nothing(random_checkpoint: ModuleType, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        random_checkpoint.write(tmp_path / "out", random_checkpoint.SHAPES["tiny"], progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_travels_and_sets_the_vocabulary(random_checkpoint: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    tokenizer = {"model": {"vocab": {"a": 0, "b": 399}}, "added_tokens": [{"id": 400}]}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (source / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    tiny = random_checkpoint.SHAPES["tiny"]
    out = random_checkpoint.write(tmp_path / "dir", tiny, tokenizer=source)
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}"
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["vocab_size"] == 401
    assert load(out)["lm_head.weight"].shape == (401, 64)
    out = random_checkpoint.write(tmp_path / "file", tiny, tokenizer=source / "tokenizer.json")
    assert {p.name for p in out.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        random_checkpoint.write(tmp_path / "none", tiny, tokenizer=tmp_path / "file" / "config.json")


def test_command_line(random_checkpoint: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["random_checkpoint.py", str(out), "--shape", "tiny", "--shard-gb", "0.0001"])
    assert random_checkpoint.main() == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert (out / "model.safetensors.index.json").exists()
    assert random_checkpoint.main() == 1
    assert capsys.readouterr().err.startswith(f"error: {out} is not empty")
