"""Damaged files with everything that a written file may hold, opened up to onnxruntime: an answer or one line."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Q
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import write_checkpoint
from toy_text import add_tokenizer

from ouro_edge.bundle.fitted_gate import FittedGate
from ouro_edge.bundle.kv_ranges import ranges_shape, read_ranges
from ouro_edge.errors import OuroEdgeError
from ouro_edge.export.gguf.gguf_bundle import open_gguf_bundle
from ouro_edge.export.gguf.header import read_header
from ouro_edge.export.gguf.own_metadata import own_metadata
from ouro_edge.export.gguf.text.vocabulary import text_metadata
from ouro_edge.export.gguf.writer import QuantizedWeights, write_gguf
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.runtime.text.model_text import read_model_text

FUZZ = settings(max_examples=int(os.environ.get("OURO_EDGE_FUZZ", "150")), deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
WORDS = [b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 1 << 31), struct.pack("<I", 9), struct.pack("<f", np.nan), b"\0\x7e"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file as it is written: text, gates, ranges, four types of tensors."""
    root = tmp_path_factory.mktemp("fuzz")
    path = write_checkpoint(root / "c", vocab_size=300, hidden_size=32, intermediate_size=40, num_hidden_layers=1)
    checkpoint = open_checkpoint(add_tokenizer(path))
    ranges = np.ones(ranges_shape(checkpoint.config), np.float32)
    own = own_metadata(FittedGate(np.ones(32, np.float32), 0.5, 0.6), ranges)
    text, _ = text_metadata(checkpoint.config, checkpoint.files)
    write_gguf(root / "x.gguf", checkpoint.config, QuantizedWeights(checkpoint.weights, Q.Q4_1), Q.Q4_1, text | own)
    use(root / "x.gguf")  # it is valid: nothing is raised
    return (root / "x.gguf").read_bytes()


def use(path: Path) -> None:
    """Everything that loading does, except for onnxruntime."""
    bundle = open_gguf_bundle(path)
    bundle.block_graph("int8")
    bundle.head_graph()
    bundle.embedding()(np.arange(bundle.config.vocab_size))
    bundle.fitted_gate()
    read_ranges(bundle)
    read_model_text(bundle)


@FUZZ
@given(data=st.data())
def test_an_answer_or_one_line(tmp_path: Path, sample: bytes, data: st.DataObject) -> None:
    content = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(WORDS)))
        content[at : at + len(new)] = new
    file = tmp_path / "bent.gguf"
    file.write_bytes(content)
    try:
        use(file)
    except OuroEdgeError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000


def test_a_tensor_of_an_absurd_size_is_refused_before_memory_is_taken(tmp_path: Path, sample: bytes) -> None:
    """The shape of a tensor multiplied by 2**20, in a file that is as long as before."""
    file = tmp_path / "x.gguf"
    file.write_bytes(sample)
    info = sample.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4
    columns, rows = struct.unpack_from("<QQ", sample, info)
    assert read_header(file).tensors["blk.0.ffn_up.weight"].shape == (rows, columns)
    bent = bytearray(sample)
    struct.pack_into("<Q", bent, info + 8, rows << 20)
    file.write_bytes(bent)
    with pytest.raises(OuroEdgeError, match=r"ffn_up\.weight|into the bytes of"):
        use(file)
