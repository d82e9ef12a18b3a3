"""benchmarks/peers.py without the peers: the models it writes, how it times a program, what its tables say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peers
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from peer_models.random_gguf import Shape, write_gguf

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def outcome(test: str, contender: str, rate: float, round_: int = 0, section: str = "decode") -> dict[str, object]:
    about = {"section": section, "test": test, "contender": contender, "round": round_}
    rest = {"load": 1.5, "resident": 10**9, "peak": 2 * 10**9, "others": 0.04, "memory_read": 2e10, "at": 0.0}
    return about | {"rate": rate} | rest


def test_a_looped_file_holds_each_layer_once_and_says_how_often(tmp_path):
    write_gguf(tmp_path / "looped.gguf", Shape(2, 256, 512, 4, 4, 64, 96, loops=4))
    reader = GGUFReader(tmp_path / "looped.gguf")
    assert reader.fields["general.architecture"].contents() == "nanbeige"
    assert reader.fields["nanbeige.num_loops"].contents() == 4
    assert reader.fields["nanbeige.block_count"].contents() == 2
    tensors = {t.name: t for t in reader.tensors}
    assert len(tensors) == 3 + 2 * 9
    assert tensors["blk.1.ffn_down.weight"].shape.tolist() == [512, 256]
    assert tensors["blk.1.ffn_down.weight"].tensor_type == GGMLQuantizationType.Q4_0
    assert tensors["output.weight"].tensor_type == GGMLQuantizationType.Q6_K
    assert [p.name for p in tmp_path.iterdir()] == ["looped.gguf"]


def test_a_dense_file_is_a_qwen3_with_tied_embeddings(tmp_path):
    write_gguf(tmp_path / "dense.gguf", Shape(1, 256, 512, 4, 2, 64, 96, tied=True))
    reader = GGUFReader(tmp_path / "dense.gguf")
    tensors = {t.name: t for t in reader.tensors}
    assert "output.weight" not in tensors and "qwen3.num_loops" not in reader.fields
    assert tensors["token_embd.weight"].tensor_type == GGMLQuantizationType.Q6_K
    assert tensors["blk.0.attn_k.weight"].shape.tolist() == [256, 128]
    assert tensors["blk.0.attn_q_norm.weight"].shape.tolist() == [64]


def test_a_program_is_timed_with_its_memory_and_output():
    command: list[str | Path] = [sys.executable, BENCHMARKS / "peer_models" / "process.py", sys.executable, "-c"]
    done = subprocess.run([*command, "x = b'1' * (80 << 20); print('hello')"], capture_output=True, check=True)
    report = json.loads(done.stdout)
    assert report["output"] == "hello\n" and report["peak"] > 80 << 20 and report["seconds"] > 0
    assert subprocess.run([*command, "raise SystemExit(3)"], capture_output=True, check=False).returncode == 3


def test_ratios_are_of_the_same_round_and_of_our_better_kv_type():
    done = [outcome("decode 64", "ouro-edge", r, i) for i, r in enumerate((4.0, 2.0, 6.0))]
    done += [outcome("decode 64", "ouro-edge, int8 KV", r, i) for i, r in enumerate((5.0, 1.0, 3.0))]
    done += [outcome("decode 64", "OpenVINO, int8 KV", r, i) for i, r in enumerate((2.0, 2.0, 2.0))]
    lines = peers.report(done).splitlines()
    [theirs] = [line for line in lines if "OpenVINO" in line]
    assert theirs.split(" | ")[2:5] == ["2", "2-2", "2.50 times (1.00-3.00)"]
    [ours] = [line for line in lines if "| ouro-edge |" in line]
    assert ours.split(" | ")[2:6] == ["4", "2-6", "", "1.50"]
    assert lines[-1] == "Memory read meanwhile: 20.0-20.0 GB/s, median 20.0."


def test_several_sequences_have_no_time_and_memory_of_a_process():
    unknown = {"load": None, "resident": None, "peak": None}
    done = [outcome("batched 8", name, rate, section="batched") | unknown
            for name, rate in (("ouro-edge", 16.0), ("llama.cpp, f16 KV", 12.0))]  # fmt: skip
    [theirs] = [line for line in peers.report(done).splitlines() if "llama.cpp" in line]
    assert theirs.split(" | ")[2:8] == ["12", "12-12", "1.33 times (1.33-1.33)", "-", "-", "-"]


def test_another_model_is_compared_with_itself():
    done = [outcome("decode 128", name, rate, section="nanbeige")
            for name, rate in (("ouro-edge, Nanbeige", 6.0), ("Nanbeige in llama.cpp", 4.0))]  # fmt: skip
    [theirs] = [line for line in peers.report(done).splitlines() if "llama.cpp" in line]
    assert "1.50 times (1.50-1.50)" in theirs


def test_half_a_loop_is_every_other_token():
    names = {"ouro-edge, depth 2, int8 KV": 12.0, "ouro-edge, depth 3, int8 KV": 6.0, "dense 4B in llama.cpp": 4.0}
    done = [outcome("decode 64", name, rate, section="dense") for name, rate in names.items()]
    assert peers.report(done).splitlines()[-1] == "Mean depth 2.5, decode 64: 8 tokens/s, 2.00 times the dense 4B."
    assert list(peers.mixture(done[1:])) == []


def test_who_takes_part():
    everyone = [c.name for c in peers.contenders_of("decode", peers.PEERS)]
    assert everyone == ["ouro-edge", "OpenVINO, int8 KV", "llama.cpp, f16 KV"]
    assert len(peers.contenders_of("long-decode", peers.PEERS)) == 5
    batched = [c.name for c in peers.contenders_of("batched", peers.PEERS)]
    assert batched == ["ouro-edge", "ouro-edge, int8 KV", "llama.cpp, f16 KV"]
    assert [c.depth for c in peers.contenders_of("dense", ("ouro-edge", "dense"))] == [4, 4, 3, 2]
    nanbeige = [c.name for c in peers.contenders_of("nanbeige", peers.PEERS)]
    assert nanbeige == ["ouro-edge, Nanbeige", "Nanbeige in llama.cpp"]
    assert [c.name for c in peers.contenders_of("decode", ("llama.cpp",))] == ["llama.cpp, f16 KV"]


@pytest.mark.parametrize("arguments", [["--only", "everything"], ["--peers", "ollama"], ["--rounds", "x"]])
def test_bad_options_are_refused_before_anything_is_fetched(arguments):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "peers.py", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
