"""Tokens before a text: from the post-processor, from settings, from tokenizer_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from models import write_checkpoint
from tokenizers import processors
from toy_text import add_tokenizer
from toy_tokenizers import ours, sentencepiece

import ouro_edge
from ouro_edge.export.gguf.write_file import checkpoint_to_gguf
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.runtime.text.tokenizer import Tokenizer


def with_start(*, eos: bool = False) -> tokenizers.Tokenizer:
    """A tokenizer whose post-processor adds <s> before a text, inside a sequence of processors as in Llama 3."""
    library = tokenizers.Tokenizer.from_str(sentencepiece().to_str())
    template = processors.TemplateProcessing(
        single="<s> $A </s>" if eos else "<s> $A", pair=None, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    library.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return library


@pytest.mark.parametrize("eos", [False, True])
def test_the_token_before_a_text_comes_from_the_post_processor(eos: bool) -> None:
    tokenizer = Tokenizer(with_start(eos=eos))
    plain = tokenizer.encode("Paris is")
    assert plain[0] != 1 and tokenizer.encode_text("Paris is") == [1, *plain]
    assert tokenizer.encode_text("<s>Paris is") == tokenizer.encode("<s>Paris is")  # no second one
    assert ours("sentencepiece").encode_text("Paris") == ours("sentencepiece").encode("Paris")


def test_settings_overrule_the_post_processor() -> None:
    text = sentencepiece().to_str()
    added = Tokenizer.from_json("\ufeff" + text, start="<s>")
    assert added.encode_text("is") == [1, *added.encode("is")]
    without = Tokenizer(with_start(), start=False)
    assert without.encode_text("is") == without.encode("is")
    assert Tokenizer(with_start(), start="absent").text_start == ()


@pytest.mark.parametrize(
    ("settings", "extra", "start"),
    [
        ({"add_bos_token": True, "bos_token": "<|im_start|>"}, {}, [1]),
        ({"add_bos_token": True, "bos_token": {"content": "<|im_start|>"}}, {}, [1]),
        ({"add_bos_token": True}, {"bos_token": "<|im_start|>"}, [1]),
        ({"add_bos_token": False, "bos_token": "<|im_start|>"}, {}, []),
        ({"bos_token": "<|im_start|>"}, {}, []),
    ],
)
def test_tokenizer_config_asks_for_bos(
    tmp_path: Path, settings: dict[str, Any], extra: dict[str, Any], start: list[int]
) -> None:
    path = add_tokenizer(write_checkpoint(tmp_path / "talker", vocab_size=300))
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8-sig")
    (path / "special_tokens_map.json").write_text(json.dumps(extra))
    result = ouro_edge.export(path, tmp_path / "out", precision="fp32", calibration=None)
    with ouro_edge.load(result.path, threads=1) as model:
        assert model.tokenizer.encode_text("hello") == start + model.tokenizer.encode("hello")
        assert (model.embed("hello") == model.embed([start + model.tokenizer.encode("hello")])).all()
    gguf, _ = checkpoint_to_gguf(open_checkpoint(path), tmp_path / "m.gguf", "f32")
    with ouro_edge.load(gguf, threads=1) as model:
        assert model.tokenizer.encode_text("hello")[: len(start)] == start or not settings.get("bos_token")
