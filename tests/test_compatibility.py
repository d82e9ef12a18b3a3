"""Files written by version 0.1 still open: an exported directory, a .gguf file, saved sequences.

`compat/v0.1` holds what version 0.1.0 wrote from the golden checkpoint, with a fitted gate and KV ranges, and in
`expected.json` what it computed from those files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ouro_edge
from ouro_edge.bundle.directory import MANIFEST_FILE, open_bundle

OLD = Path(__file__).parent / "compat" / "v0.1"
EXPECTED: dict[str, Any] = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
# Of logits around 5. The files are int4, so activations are rounded to int8: a CPU whose kernels sum in another order
# may round one of them to the other side and exceed this; a misread tensor changes logits by more than 1.
LOGITS_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: a saved sequence belongs to the weights, wherever they are stored."""
    return shutil.copytree(OLD / "bundle", tmp_path_factory.mktemp("v0.1") / "moved")


def test_a_directory(bundle: Path) -> None:
    with ouro_edge.load(bundle, kv="fp32", threads=1) as model:
        logits = model.forward(EXPECTED["ids"]).logits[-1, :16]
        np.testing.assert_allclose(logits, EXPECTED["logits_last"], rtol=0, atol=LOGITS_TOLERANCE)
        assert model.default_exit() == ouro_edge.ExitThreshold(EXPECTED["default_threshold"])


def test_a_manifest_is_written_as_before(bundle: Path) -> None:
    assert open_bundle(bundle).manifest.to_json() == (bundle / MANIFEST_FILE).read_text(encoding="utf-8")


def test_a_gguf_file() -> None:
    with ouro_edge.load(OLD / "model.gguf", kv="fp32", threads=1) as model:
        logits = model.forward(EXPECTED["ids"]).logits[-1, :16]
        np.testing.assert_allclose(logits, EXPECTED["gguf_logits_last"], rtol=0, atol=LOGITS_TOLERANCE)
        assert model.default_exit() == ouro_edge.ExitThreshold(EXPECTED["gguf_threshold"])


@pytest.mark.parametrize("name", ["fp32", "int8", "gguf-int8"])
def test_a_saved_sequence(bundle: Path, name: str) -> None:
    expected, kv = EXPECTED[name], name.removeprefix("gguf-")
    source = OLD / "model.gguf" if name.startswith("gguf") else bundle
    with ouro_edge.load(source, kv=kv, threads=1) as model:
        sequence = ouro_edge.load_sequence(model, OLD / f"sequence-{name}.state")
        assert list(sequence.tokens) == expected["tokens"]
        assert list(sequence.frontier) == expected["frontier"]
        prompt = EXPECTED["ids"] + expected["generated"]
        *tokens, done = model.generate(prompt, max_tokens=5, exit=ouro_edge.FullDepth(), sequence=sequence)
        assert [token.id for token in tokens] == expected["continued"]
        assert done.usage.cached_tokens == len(expected["tokens"]) - 1


@pytest.mark.parametrize("kv", ["fp32", "int8"])
def test_the_tokens_of_the_saved_sequence_again(bundle: Path, kv: str) -> None:
    """The prompt that the sequence was saved after, on an empty sequence: the same tokens at the same depths."""
    policy = ouro_edge.ExitThreshold(0.5)
    with ouro_edge.load(bundle, kv=kv, threads=1) as model:
        sequence = model.new_sequence()
        *tokens, _ = model.generate(EXPECTED["ids"], max_tokens=5, exit=policy, sequence=sequence)
        assert [token.id for token in tokens] == EXPECTED[kv]["generated"]
        assert [token.depth for token in tokens] == EXPECTED[kv]["depths"]
        assert list(sequence.frontier) == EXPECTED[kv]["frontier"]
