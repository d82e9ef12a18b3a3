"""Damaged and hostile GGUF files: lying headers, cut files and random changes are refused in one line."""

from __future__ import annotations

import gc
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf_files import Q, raw_gguf, small_llama, string, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ouro_edge.errors import CheckpointError, OuroEdgeError
from ouro_edge.export.gguf.gguf_bundle import open_gguf_bundle
from ouro_edge.export.gguf.reader import open_gguf


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    config, weights = small_llama()
    weights["layers.0.q_proj"][3, 3] = np.nan
    checkpoint = open_gguf(write_gguf(tmp_path / "nan.gguf", config, weights))
    with pytest.raises(CheckpointError, match=r"layers\.0\.q_proj holds values that are not finite"):
        checkpoint.weights["layers.0.q_proj"]


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", *small_llama())
    checkpoint = open_gguf(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="can no longer be read"):
        checkpoint.weights["norm"]


def test_a_file_that_is_overwritten_after_opening(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", *small_llama())
    bundle = open_gguf_bundle(path)
    other = write_gguf(tmp_path / "other.gguf", *small_llama(seed=1))
    path.write_bytes(other.read_bytes())  # as `cp` does
    os.utime(path, ns=(0, 1))  # clocks of file systems are coarse
    with pytest.raises(CheckpointError, match="was changed after it was opened"):
        bundle.embedding()(np.arange(5))


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps open files from being replaced")
@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_file_that_is_replaced_or_removed_after_opening_is_still_the_one_opened(tmp_path: Path, change: str) -> None:
    config, weights = small_llama()
    path = write_gguf(tmp_path / "m.gguf", config, weights)
    bundle = open_gguf_bundle(path)
    before = bundle.embedding()(np.arange(5))
    if change == "replaced":
        write_gguf(tmp_path / "new.gguf", *small_llama(seed=1)).replace(path)
        assert not np.array_equal(open_gguf_bundle(path).embedding()(np.arange(5)), before)
    else:
        path.unlink()
    np.testing.assert_array_equal(bundle.embedding()(np.arange(5)), before)
    np.testing.assert_array_equal(bundle.values("layers.0.o_proj"), weights["layers.0.o_proj"])
    assert bundle.block_graph("fp32").arrays


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_a_file_is_closed_with_its_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", *small_llama())

    def held() -> int:
        gc.collect()
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))

    bundle = open_gguf_bundle(path)
    assert held() == 1
    bundle.embedding()(np.arange(5))
    assert held() == 1
    del bundle
    assert held() == 0


F32 = struct.pack("<f", 1.0)
PAIR = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)  # a header that promises one metadata pair
HUGE = struct.pack("<Q", 1 << 62)
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "inside the magic"),
    "magic": (b"GGML" + bytes(60), "expected a GGUF file"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "is GGUF version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
    "only a version": (b"GGUF" + struct.pack("<I", 3), "inside the number of tensors"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "claims 4611686018427387904 tensors"),
    "pair count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "claims 4611686018427387904 metadata pairs"),
    "key length": (PAIR + HUGE + bytes(40), "inside metadata key 0"),
    "string length": (PAIR + string("k") + struct.pack("<I", 8) + HUGE, "inside k"),
    "string count": (
        PAIR + string("k") + struct.pack("<II", 9, 8) + HUGE, "strings in k",
    ),
    "number count": (PAIR + string("k") + struct.pack("<II", 9, 4) + HUGE, "inside k"),
    "nested array": (
        PAIR + string("k") + struct.pack("<II", 9, 9) + bytes(32), "value type 9",
    ),
    "value type": (PAIR + string("k") + struct.pack("<I", 99) + bytes(9), "type 99"),
    "bool": (PAIR + string("k") + struct.pack("<IB", 7, 2), "neither true nor false"),
    "not UTF-8": (
        PAIR + string("k") + struct.pack("<IQ", 8, 1) + b"\xff", "not UTF-8 in k",
    ),
    "key with a line break": (PAIR + string("a\nb") + bytes(40), r"'a\nb'"),
    "key twice": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (string("k") + struct.pack("<II", 4, 1)), "metadata key k twice",
    ),
    "alignment 0": (
        PAIR + string("general.alignment") + struct.pack("<II", 4, 0),
        "general.alignment 0",
    ),
    "alignment 24": (
        PAIR + string("general.alignment") + struct.pack("<II", 4, 24),
        "general.alignment 24",
    ),
    "tensor twice": (raw_gguf([("w", (1,), 0, F32), ("w", (1,), 0, F32)]), "tensor w twice"),
    "no dimensions": (raw_gguf([("w", (), 0, F32)]), "w 0 dimensions"),
    "five dimensions": (raw_gguf([("w", (1,) * 5, 0, F32)]), "w 5 dimensions"),
    "no rows": (raw_gguf([("w", (0, 4), 0, F32)]), "w the shape [0, 4]"),
    "too many rows": (raw_gguf([("w", (1 << 63, 1 << 62), 0, F32)]), "incomplete"),
    "part of a block": (raw_gguf([("w", (33,), 2, bytes(36))]), "blocks of 32"),
    "unknown type": (raw_gguf([("w", (1,), 4, F32)]), "w in the unknown type 4"),
    "unknown big type": (raw_gguf([("w", (1,), 1 << 31, F32)]), "w in the unknown type 2147483648"),
    "beyond the end": (raw_gguf([("w", (99,), 0, F32)]), "w ends at"),
    "far beyond the end": (
        raw_gguf([("w", (1,), 0, F32)])[:49] + HUGE + bytes(64), f"w ends at {64 + (1 << 62) + 4}",
    ),
    "crooked offset": (
        raw_gguf([("v", (1,), 0, F32), ("w", (1,), 0, F32)], 16), "expected a multiple of the alignment 32",
    ),
    "overlap": (raw_gguf([("v", (16,), 0, F32), ("w", (1,), 0, F32)]), "w into the bytes of v"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lying_files(tmp_path: Path, lie: str) -> None:
    content, message = LIES[lie]
    file = tmp_path / "lie.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_gguf(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_huge_sparse_file_is_refused_at_once(tmp_path: Path) -> None:
    """A header that claims the whole of a 100 GB file as empty strings must neither allocate nor take long."""
    file = tmp_path / "sparse.gguf"
    with file.open("wb") as f:
        f.write(PAIR + string("k") + struct.pack("<IIQ", 9, 8, 12 << 30))
        f.truncate(100 << 30)
    with pytest.raises(CheckpointError, match="claims 12884901888 strings in k"):
        open_gguf(file)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small valid file with all kinds of metadata, a tokenizer among them."""

    def meta(writer: GGUFWriter) -> None:
        writer.add_name("sample")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab"]
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 3, 1, 1, 1])
        writer.add_token_merges(["a b"])
        writer.add_chat_template("{{ messages }}")

    path = tmp_path_factory.mktemp("gguf") / "sample.gguf"
    config, weights = small_llama()
    content = write_gguf(path, config, weights, Q.Q4_1, meta=meta).read_bytes()
    checkpoint = open_gguf(path)
    assert "tokenizer.json" in checkpoint.files and not checkpoint.notes
    assert json.loads(checkpoint.files["tokenizer_config.json"])["eos_token"] == "<|im_end|>"
    return content


def swallow(path: Path) -> None:
    """Open and read all: either it works or it is one of our errors on one line."""
    try:
        checkpoint = open_gguf(path)
        for name in checkpoint.weights:
            checkpoint.weights[name]
    except OuroEdgeError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


FUZZ = settings(max_examples=int(os.environ.get("OURO_EDGE_FUZZ", "300")), deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip


@FUZZ
@given(data=st.data())
def test_bent_files_raise_only_our_errors(tmp_path: Path, sample: bytes, data: st.DataObject) -> None:
    content = bytearray(sample)
    header = sample.index(b"output_norm.weight") + 200
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(header, len(content) - 1)))
        new = data.draw(st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 1 << 31), struct.pack("<I", 9)]),
        ))  # fmt: skip
        if data.draw(st.booleans()):
            content[at : at + len(new)] = new
        else:
            content[at : at + data.draw(st.integers(0, 16))] = new
    file = tmp_path / "bent.gguf"
    file.write_bytes(content)
    swallow(file)


@FUZZ
@given(data=st.data())
def test_cut_files_are_refused(tmp_path: Path, sample: bytes, data: st.DataObject) -> None:
    file = tmp_path / "cut.gguf"
    # the file ends with padding after the last tensor, which may be missing
    file.write_bytes(sample[: data.draw(st.integers(0, len(sample) - 33))])
    with pytest.raises(CheckpointError):
        open_gguf(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"m\.gguf is not a regular file"):
        open_gguf(tmp_path / "m.gguf")
