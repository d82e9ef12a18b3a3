"""A file whose own tokenizer is not rebuilt: one that the user gives, or a tokenizer.json beside the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gguf import GGUFWriter
from gguf_files import small_llama, write_gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import ouro_edge
from ouro_edge.cli import main
from ouro_edge.errors import CheckpointError, RequestError

TOKENS = ["<pad>", "<s>", "</s>", *map(chr, range(97, 123))]  # of 40 ids


def write_tokenizer(path: Path, tokens: list[str] = TOKENS) -> Path:
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    def meta(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("new-model")
        writer.add_token_list([*TOKENS, *(f"[PAD{i}]" for i in range(len(TOKENS), 40))])
        writer.add_token_types(([3] * 3 + [1] * 26 + [5] * 40)[:40])
        writer.add_bool("tokenizer.ggml.add_bos_token", True)

    return write_gguf(tmp_path / "models" / "m.gguf", *small_llama(), meta=meta)


@pytest.fixture(autouse=True)
def _directories(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir(exist_ok=True)


def test_without_one_the_note_says_what_to_do(file: Path) -> None:
    with ouro_edge.load(file, threads=1) as model:
        assert not model.has_tokenizer
        assert any("'new-model'" in note and "--tokenizer" in note for note in model.text.notes)


@pytest.mark.parametrize("as_directory", [True, False])
def test_one_that_is_given(file: Path, tmp_path: Path, as_directory: bool) -> None:
    given = write_tokenizer(tmp_path / "published" / "tokenizer.json")
    with ouro_edge.load(file, threads=1, tokenizer=given.parent if as_directory else str(given)) as model:
        assert model.tokenizer.encode("abc") == [3, 4, 5]
        assert model.tokenizer.encode_text("abc") == [1, 3, 4, 5]  # the file asks for BOS
        assert list(model.generate("ab", max_tokens=2))
    arguments = ["run", str(file), "--raw", "-p", "ab", "-n", "2", "--tokenizer", str(given)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output


def test_one_beside_the_file(file: Path) -> None:
    beside = write_tokenizer(file.parent / "tokenizer.json")
    with ouro_edge.load(file, threads=1) as model:
        assert model.tokenizer.encode("abc") == [3, 4, 5]
        assert any(str(beside) in note for note in model.text.notes)


WRONG: dict[str, Any] = {
    "id 5 is 'z' there and 'c' in the file": [*TOKENS[:5], "z", *TOKENS[6:-1], "c"],
    "ids up to 59": [*TOKENS, *(f"x{i}" for i in range(31))],
    "it lacks": TOKENS[:5],
}


@pytest.mark.parametrize("reason", WRONG)
def test_one_of_another_model_is_not_used(file: Path, tmp_path: Path, reason: str) -> None:
    given = write_tokenizer(tmp_path / "other" / "tokenizer.json", WRONG[reason])
    with pytest.raises(CheckpointError, match=reason):
        ouro_edge.load(file, tokenizer=given)
    write_tokenizer(file.parent / "tokenizer.json", WRONG[reason])
    with ouro_edge.load(file, threads=1) as model:
        assert not model.has_tokenizer
        assert any(reason in note for note in model.text.notes)


def test_what_is_no_tokenizer(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a tokenizer\.json"):
        ouro_edge.load(file, tokenizer=tmp_path / "absent")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        ouro_edge.load(file, tokenizer=tmp_path / "broken.json")
    (file.parent / "tokenizer.json").write_text("{")
    with ouro_edge.load(file, threads=1) as model:
        assert not model.has_tokenizer


def test_only_a_gguf_file_takes_one(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="GGUF file only"):
        ouro_edge.load(tokenizer=tmp_path)
