"""Writing GGUF: what is written is what the gguf package quantises, readable by others, and all or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles
from gguf import GGUFReader, quants
from gguf.constants import GGMLQuantizationType as Q
from models import GOLDEN, write_checkpoint
from tokenizers import Tokenizer
from toy_text import TEMPLATE, add_tokenizer

from ouro_edge.arch.weights import fused_names
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.errors import CheckpointError, ExportError, RequestError
from ouro_edge.export.gguf.header import read_header
from ouro_edge.export.gguf.reader import GgufReader, gguf_name, open_gguf
from ouro_edge.export.gguf.text.tokenizer import tokenizer_json
from ouro_edge.export.gguf.write_file import bundle_to_gguf, checkpoint_to_gguf
from ouro_edge.export.gguf.writer import QuantizedWeights
from ouro_edge.export.open_checkpoint import open_checkpoint

WIDE = {"hidden_size": 64, "intermediate_size": 96}  # rows are whole blocks, so that every matrix is quantised


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer, a template and generation defaults."""
    path = add_tokenizer(write_checkpoint(tmp_path_factory.mktemp("talker") / "Talker-1M", vocab_size=300, **WIDE))
    (path / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.7, "top_k": 20, "eos_token_id": [2, 0]})
    )
    return path


@pytest.mark.parametrize("precision", ["q4_0", "q4_1", "q8_0", "f16", "f32"])
def test_read_back_equals_what_was_quantised(tmp_path: Path, talker: Path, precision: str) -> None:
    checkpoint = open_checkpoint(talker)
    out, notes = checkpoint_to_gguf(checkpoint, tmp_path / "x.gguf", precision)
    assert notes == ()
    found = open_gguf(out)
    assert found.config == replace(checkpoint.config, eos_token_ids=(0, 2))  # with generation_config.json's
    for name, shape in checkpoint.weights.shapes.items():
        wide = len(shape) == 2 and not name.startswith("exit_gate")
        main = Q.Q8_0 if name in ("embedding", "head") and precision[0] == "q" else Q[precision.upper()]
        kind = main if wide else Q.F32
        stored = quants.quantize(checkpoint.weights[name], kind)
        reader = found.weights.reader(name)
        np.testing.assert_array_equal(found.weights[name], quants.dequantize(stored, kind), err_msg=name)
        if isinstance(reader, GgufReader):
            assert reader.type == kind
            np.testing.assert_array_equal(reader.raw(0, shape[0]), stored.reshape(-1, stored.shape[-1]).view(np.uint8))


def test_aliases_and_a_name_of_its_own(tmp_path: Path, talker: Path) -> None:
    checkpoint = open_checkpoint(talker)
    assert checkpoint_to_gguf(checkpoint, tmp_path, "int4")[0] == tmp_path / "Talker-1M-Q4_0.gguf"
    new = tmp_path / "models"  # not there yet
    assert checkpoint_to_gguf(checkpoint, new, "int8")[0] == new / "Talker-1M-Q8_0.gguf"
    assert (new / "Talker-1M-Q8_0.gguf").is_file()
    assert open_gguf(tmp_path / "Talker-1M-Q4_0.gguf").tensor_types["Q4_0"] == 14
    with pytest.raises(RequestError, match="precision is 'q5_k'; a GGUF file takes q4_0, q4_1"):
        checkpoint_to_gguf(checkpoint, tmp_path, "q5_k")


@pytest.mark.skipif(find_spec("gguf.scripts.gguf_dump") is None, reason="this gguf package comes without gguf-dump")
@pytest.mark.parametrize("precision", ["q4_0", "q4_1", "q8_0", "f16", "f32"])
def test_gguf_dump_shows_it(tmp_path: Path, talker: Path, precision: str) -> None:
    out, _ = checkpoint_to_gguf(open_checkpoint(talker), tmp_path / "x.gguf", precision)
    command = [sys.executable, "-m", "gguf.scripts.gguf_dump", "--json", "--json-array", str(out)]
    dump = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(dump["tensors"]) == dump["metadata"]["GGUF.tensor_count"]["value"] == 2 * 11 + 3  # all but the gate
    assert dump["tensors"]["blk.1.ffn_down.weight"] | {"index": 0, "offset": 0} == {
        "index": 0, "offset": 0, "shape": [96, 64], "type": precision.upper()
    }  # fmt: skip
    found = {key: pair.get("value") for key, pair in dump["metadata"].items()}
    assert found["general.architecture"] == "ouro"
    assert found["ouro.num_loops"] == 4 and found["tokenizer.chat_template"] == TEMPLATE
    assert len(found["ouro_edge.exit_gate.weight"]) == 64 and len(found["tokenizer.ggml.tokens"]) == 300
    assert not [key for key in found if not key.startswith(("GGUF.", "general.", "ouro.", "ouro_edge.", "tokenizer."))]


def test_the_gguf_package_reads_it(tmp_path: Path, talker: Path) -> None:
    out, _ = checkpoint_to_gguf(open_checkpoint(talker), tmp_path / "x.gguf", "q4_0")
    reader = GGUFReader(out)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "ouro" and fields["general.file_type"] == 2
    assert fields["ouro.num_loops"] == 4 and fields["ouro.skip_loop_final_norm"] is False
    assert fields["tokenizer.ggml.pre"] == "gpt-2" and fields["tokenizer.chat_template"] == TEMPLATE
    assert fields["general.sampling.temp"] == pytest.approx(0.6) and fields["general.sampling.top_k"] == 20
    assert len(fields["tokenizer.ggml.tokens"]) == 300
    names = [tensor.name for tensor in reader.tensors]
    assert "blk.1.post_attention_norm.weight" in names and "blk.1.post_ffw_norm.weight" in names
    assert not any("gate" in name and "ffn" not in name for name in names)  # llama.cpp refuses unknown tensors


def test_text_comes_back(tmp_path: Path, talker: Path) -> None:
    checkpoint = open_checkpoint(talker)
    found = open_gguf(checkpoint_to_gguf(checkpoint, tmp_path / "x.gguf", "q8_0")[0])
    assert found.files["tokenizer.json"] == checkpoint.files["tokenizer.json"]
    assert found.files["chat_template.jinja"].decode() == TEMPLATE
    assert json.loads(found.files["generation_config.json"]) == {
        "do_sample": True, "temperature": 0.6, "top_p": 0.7, "top_k": 20, "eos_token_id": [0, 2], "bos_token_id": 1,
        "pad_token_id": 0,
    }  # fmt: skip


def test_others_get_the_same_tokens(tmp_path: Path, talker: Path) -> None:
    out, _ = checkpoint_to_gguf(open_checkpoint(talker), tmp_path / "x.gguf", "q8_0")
    metadata = dict(read_header(out).metadata)
    own = Tokenizer.from_str(metadata.pop("tokenizer.huggingface.json"))
    rebuilt = Tokenizer.from_str(tokenizer_json(metadata)[0] or "")
    for text in ("hello there, how are you?", "<|im_start|>user\n the user 123  <|im_end|>", "é漢\x00"):
        assert rebuilt.encode(text).ids == own.encode(text).ids


def test_a_tokenizer_that_gguf_cannot_say_stays_ours(tmp_path: Path, talker: Path) -> None:
    data = json.loads((talker / "tokenizer.json").read_text())
    data["pre_tokenizer"] = {"type": "Whitespace"}
    path = write_checkpoint(tmp_path / "other", vocab_size=300)
    (path / "tokenizer.json").write_text(json.dumps(data))
    out, notes = checkpoint_to_gguf(open_checkpoint(path), tmp_path / "x.gguf", "f16")
    assert notes == ("this tokenizer has no form in GGUF: only ouro-edge can use it, from its own tokenizer.json",)
    metadata = read_header(out).metadata
    assert metadata["tokenizer.ggml.model"] == "no_vocab" and "tokenizer.ggml.tokens" not in metadata
    found = open_gguf(out)
    assert json.loads(found.files["tokenizer.json"]) == data
    special = json.loads(found.files["tokenizer_config.json"])
    assert (special["bos_token"], special["eos_token"]) == ("<|im_start|>", "<|im_end|>")


def test_a_name_by_strangers_stays_in_the_directory(tmp_path: Path) -> None:
    for name in ("../../away", "/away", "a\0b\ud800", ".."):
        checkpoint = replace(open_checkpoint(GOLDEN), name=name)
        out, _ = checkpoint_to_gguf(checkpoint, tmp_path / "out", "q8_0", overwrite=True)
        assert out.parent == tmp_path / "out" and out.is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_id_that_no_token_has_is_left_out(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "odd", bos_token_id=1 << 32)
    out, _ = checkpoint_to_gguf(open_checkpoint(path), tmp_path / "x.gguf", "q8_0")
    assert "tokenizer.ggml.bos_token_id" not in read_header(out).metadata


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    out, _ = checkpoint_to_gguf(open_checkpoint(GOLDEN), tmp_path / "x.gguf", "q4_0")
    tensors = read_header(out).tensors
    assert tensors["blk.0.ffn_down.weight"].type == Q.F16  # rows of 176
    assert tensors["blk.0.attn_q.weight"].type == Q.Q4_0


def test_values_beyond_float16(tmp_path: Path, talker: Path) -> None:
    checkpoint = open_checkpoint(talker)
    weights = QuantizedWeights(checkpoint.weights, Q.F16)
    assert np.isfinite(weights.rows("head", 0, 3)).all()
    reader = checkpoint.weights.reader("head")
    reader.read = lambda start, stop: np.full((stop - start, 64), 7e4, np.float32)  # type: ignore[method-assign]
    with pytest.raises(ExportError, match="head holds values beyond float16"):
        weights.rows("head", 0, 3)


def test_all_or_nothing(tmp_path: Path, talker: Path) -> None:
    checkpoint = open_checkpoint(talker)
    out = tmp_path / "sub" / "x.gguf"
    checkpoint_to_gguf(checkpoint, out, "q8_0")
    before = out.read_bytes()
    with pytest.raises(ExportError, match="exists; choose another name or pass --overwrite"):
        checkpoint_to_gguf(checkpoint, out, "q4_0")

    def fail(done: int, total: int, name: str) -> None:
        if name == "layers.1.q_proj":
            raise CheckpointError("damaged")

    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint_to_gguf(checkpoint, out, "q4_0", overwrite=True, progress=fail)
    assert out.read_bytes() == before and [p.name for p in out.parent.iterdir()] == ["x.gguf"]
    checkpoint_to_gguf(checkpoint, out, "q4_0", overwrite=True)
    assert open_gguf(out).tensor_types["Q4_0"] == 14
    with pytest.raises(ExportError, match="is the model that is being read"):
        checkpoint_to_gguf(open_gguf(out), out, "q4_0", overwrite=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf.gguf_writer

    real = open

    def opened(path: object, mode: str) -> object:
        return real("/dev/full", mode) if str(path).endswith(".partial") else real(str(path), mode)

    monkeypatch.setattr(gguf.gguf_writer, "open", opened, raising=False)
    with pytest.raises(ExportError, match=r"x\.gguf cannot be written: .*; nothing was kept"):
        checkpoint_to_gguf(open_checkpoint(talker), tmp_path / "new" / "parents" / "x.gguf", "q8_0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("size", [32, 128])
def test_symmetric_blocks_of_a_bundle_come_back_exactly(
    tmp_path: Path, talker: Path, bundle_of: Bundles, precision: str, size: int
) -> None:
    bundle = open_bundle(bundle_of(talker, precision, block_size=size, symmetric=True))
    out, notes = bundle_to_gguf(bundle, tmp_path / "x.gguf")
    found = open_gguf(out)
    assert notes == () and found.tensor_types.keys() == {"Q8_0", "F32"} | ({"Q4_0"} if precision == "int4" else set())
    for name, parts in fused_names(bundle.config).items():
        values = np.concatenate([found.weights[part] for part in parts])
        np.testing.assert_array_equal(values, bundle.values(name), err_msg=name)


@pytest.mark.parametrize(
    ("precision", "options", "kind", "steps"),
    [
        ("int4", {"symmetric": False}, Q.Q4_1, 1000),  # the same grid, scale and offset in float16
        ("int4", {"block_size": 16, "symmetric": True}, Q.Q8_0, 100),  # no such grid
        ("int8", {"symmetric": False}, Q.Q8_0, 100),
    ],
)
def test_other_blocks_of_a_bundle(
    tmp_path: Path, talker: Path, bundle_of: Bundles, precision: str, options: dict[str, object], kind: Q, steps: int
) -> None:
    bundle = open_bundle(bundle_of(talker, precision, **options))
    out, notes = bundle_to_gguf(bundle, tmp_path / "x.gguf")
    found = open_gguf(out)
    assert notes and "quantised again" in notes[0]  # the embedding has eight bits in every recipe
    assert read_header(out).tensors["blk.1.ffn_up.weight"].type == kind
    values = np.concatenate([found.weights["layers.1.gate_proj"], found.weights["layers.1.up_proj"]])
    whole = bundle.values("layers.1.gate_up_proj")
    np.testing.assert_allclose(values, whole, atol=float(np.abs(whole).max()) / steps)


def test_names() -> None:
    assert gguf_name("layers.3.attn_post_norm") == "blk.3.post_attention_norm.weight"
    assert gguf_name("layers.3.ffn_norm") == "blk.3.ffn_norm.weight"
    assert gguf_name("embedding") == "token_embd.weight"
