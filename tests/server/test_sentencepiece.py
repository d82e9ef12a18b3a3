"""Models with a SentencePiece tokenizer that adds BOS (Llama, TinyLlama): spaces, offsets and the added token."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, processors

from ouro_edge.runtime.text.tokenizer import Tokenizer
from ouro_edge.testing import MockModel

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Hello", "▁world", "▁the", "▁cat"]
BOS, EOS, HELLO, WORLD, THE, CAT = 1, 2, *range(260, 264)


@pytest.fixture
def model() -> MockModel:
    """Says "the cat", whatever it is asked."""
    vocab = [(piece, 0.0 if len(piece) > 6 or piece in ("▁the", "▁cat") else -9.0) for piece in PIECES]
    library = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", BOS)])
    mock = MockModel()
    mock.text = replace(mock.text, tokenizer=Tokenizer(library), stop_ids=(EOS,))
    mock._answers = itertools.cycle([[THE, CAT, EOS]])
    return mock


def test_a_generated_text_continues_the_prompt(model: MockModel) -> None:
    *tokens, done = model.generate("Hello world")
    assert done.text == " the cat" and [token.text for token in tokens] == [" the", " cat", ""]
    assert model._prompts[-1] == (BOS, HELLO, WORLD)
    *_, done = model.generate([BOS, HELLO, WORLD])
    assert done.text == " the cat" and model._prompts[-1] == (BOS, HELLO, WORLD)
    *_, done = model.generate([BOS])
    assert done.text == "the cat"


def test_the_answer_in_a_chat_is_a_text_by_itself(model: MockModel, serve) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    *_, done = model.chat(messages)
    assert done.text == "the cat" and BOS not in model._prompts[-1]
    assert serve(model).chat("Hello").json()["choices"][0]["message"]["content"] == "the cat"


def test_embeddings_and_scores_of_a_text_have_the_added_token(model: MockModel, serve) -> None:
    assert (model.embed("Hello world") == model.embed([[BOS, HELLO, WORLD]])).all()
    answer = serve(model).http.post("/v1/embeddings", json={"input": "Hello world"}).json()
    assert answer["usage"]["prompt_tokens"] == 3


def test_completions(model: MockModel, serve) -> None:
    server = serve(model)
    answer = server.complete("Hello world", logprobs=1).json()
    assert answer["usage"]["prompt_tokens"] == 3
    choice = answer["choices"][0]
    assert choice["text"] == " the cat"
    assert choice["logprobs"]["tokens"][:2] == [" the", " cat"]
    assert choice["logprobs"]["text_offset"] == [0, 4, 8]


@pytest.mark.parametrize("prompt", ["Hello world", [BOS, HELLO, WORLD]])
def test_echo_and_its_offsets(model: MockModel, serve, prompt: str | list[int]) -> None:
    server = serve(model)
    choice = server.complete(prompt, logprobs=1, echo=True).json()["choices"][0]
    start = "" if isinstance(prompt, str) else "<s> "  # a text has no added token, the ids of a prompt are all shown
    assert choice["text"] == start + "Hello world the cat"
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    assert [token.strip() for token in tokens] == ["<s>", "Hello", "world", "the", "cat", "</s>"]
    hello = choice["text"].index("Hello") - (1 if start else 0)  # with its space, unless it starts the text
    assert offsets == [
        0,
        hello,
        *(choice["text"].index(word) for word in (" world", " the", " cat")),
        len(choice["text"]),
    ]


def test_streams(model: MockModel, serve) -> None:
    with serve(model).http.stream("POST", "/v1/completions", json={"prompt": "Hello", "stream": True}) as reply:
        content = "".join(reply.iter_text())
    assert '"text":" the"' in content and '"text":" cat"' in content
