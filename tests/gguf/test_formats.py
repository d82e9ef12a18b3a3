"""Every number format of GGUF is read as the gguf package dequantises it, in any range of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_files import Q, permute, raw_gguf, small_llama, write_gguf

from ouro_edge.errors import CheckpointError
from ouro_edge.export.gguf.header import read_header
from ouro_edge.export.gguf.reader import GgufReader, can_dequantize, open_gguf

NEWER = [Q[name] for name in ("MXFP4",) if name in Q.__members__]  # since gguf 0.18
KINDS = [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, *NEWER]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_stored_types(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    config, weights = small_llama()
    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf", config, weights, kind))
    assert checkpoint.config == config
    quantised = sum(v.ndim == 2 and v.shape[1] % GGML_QUANT_SIZES[kind][0] == 0 for v in weights.values())
    assert checkpoint.tensor_types == {"F32": len(weights) - quantised, kind.name: quantised}
    for name, values in weights.items():
        stored = kind if values.ndim == 2 and values.shape[1] % GGML_QUANT_SIZES[kind][0] == 0 else Q.F32
        expected = quants.dequantize(quants.quantize(values, stored), stored)
        np.testing.assert_array_equal(checkpoint.weights[name], expected, err_msg=name)


SUPPORTED = [k for k in Q if can_dequantize(k)]


def test_types_that_are_read() -> None:
    names = {k.name for k in SUPPORTED}
    expected = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS IQ2_XXS IQ1_M TQ1_0 TQ2_0"
    assert names >= set(expected.split()) | {kind.name for kind in NEWER}
    assert not {"I8", "I32", "F64", "Q8_1", "Q8_K"} & names


@pytest.mark.parametrize("kind", SUPPORTED, ids=lambda k: k.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_of_any_type(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    """Row ranges of random bytes, read in small chunks and un-permuted, equal the whole tensor dequantised."""
    block, size = GGML_QUANT_SIZES[kind]
    cols, heads, head_dim = max(block, 64), 4, 6
    data = np.random.default_rng(1).integers(0, 256, (heads * head_dim, cols // block * size), np.uint8)
    file = tmp_path / "rows.gguf"
    file.write_bytes(raw_gguf([("pad", (3,), 0, bytes(12)), ("q", (heads * head_dim, cols), kind, data.tobytes())]))
    tensor = read_header(file).tensors["q"]
    whole = quants.dequantize(data, kind).reshape(heads * head_dim, cols)
    plain = GgufReader(file, tensor, chunk_values=1000)
    rotated = GgufReader(file, tensor, head_dim, chunk_values=1000)
    unpermuted = whole.reshape(heads, head_dim // 2, 2, cols).swapaxes(1, 2).reshape(whole.shape)
    np.testing.assert_array_equal(permute(unpermuted, heads), whole)
    for start, stop in [(0, 24), (0, 1), (5, 7), (11, 24), (23, 24), (4, 4)]:
        np.testing.assert_array_equal(plain.read(start, stop), whole[start:stop])
        np.testing.assert_array_equal(rotated.read(start, stop), unpermuted[start:stop])
    assert plain.read(0, 24).dtype == np.float32


def test_type_that_cannot_be_dequantised(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(raw_gguf([("w", (2, 256), Q.Q8_K, bytes(2 * GGML_QUANT_SIZES[Q.Q8_K][1]))]))
    with pytest.raises(CheckpointError, match="w is stored as Q8_K"):
        GgufReader(file, read_header(file).tensors["w"])
