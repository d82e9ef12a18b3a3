"""Encoding, decoding and streaming against the tokenizers library, on small vocabularies of each kind."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from toy_tokenizers import KINDS, byte_level, ours, sentencepiece

from ouro_edge.errors import BundleError, RequestError
from ouro_edge.runtime.text.tokenizer import TextStream, Tokenizer


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    running = TextStream(tokenizer, skip_special=skip)
    return [*map(running.push, ids), running.flush()]


ids_lists = st.lists(st.integers(0, 340), max_size=40)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)  # machines may be busy
@given(ids=ids_lists, skip=st.booleans())
def test_streams_join_to_what_the_library_decodes(kind: str, ids: list[int], skip: bool) -> None:
    tokenizer, library = ours(kind), KINDS[kind]()
    expected = library.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(tokenizer, ids, skip)) == expected
    assert tokenizer.decode(ids, skip_special=skip) == expected


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@settings(deadline=None)  # machines may be busy
@given(text=st.text(max_size=40))
def test_text_survives_and_no_half_character_is_shown(kind: str, text: str) -> None:
    tokenizer = ours(kind)
    ids = tokenizer.encode(text, special=False)
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == text == tokenizer.decode(ids)
    shown = ""
    for piece in pieces:
        shown += piece
        assert text.startswith(shown)  # so U+FFFD appears only where the text has it


@settings(deadline=None)  # machines may be busy
@given(ids=ids_lists)
def test_byte_fallback_of_any_ids(ids: list[int]) -> None:
    """Bytes of invalid runs become U+FFFD one by one; good characters beside them stay."""
    library = sentencepiece()
    data = b""
    for i in ids:
        piece = library.id_to_token(i)
        if piece and piece not in ("<unk>", "<s>", "</s>"):
            data += bytes([i - 3]) if 3 <= i < 259 else piece.replace("▁", " ").encode()
    expected = data.decode("utf-8", "replace").removeprefix(" ")
    tokenizer = ours("sentencepiece")
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == expected
    if "\ufffd" not in expected:
        assert expected == library.decode(ids)


def test_a_character_appears_when_its_last_byte_comes() -> None:
    tokenizer = ours("byte-level")
    ids = tokenizer.encode("😀")
    if len(ids) == 1:
        ids = [tokenizer.token_id(c) or -1 for c in "ðŁĺĢ"]
    assert stream(tokenizer, ids) == [*[""] * (len(ids) - 1), "😀", ""]


def test_an_invalid_byte_is_shown_as_soon_as_it_is_known_to_be_one() -> None:
    tokenizer = ours("byte-level")
    lead, a = tokenizer.token_id("ð"), tokenizer.token_id("a")
    tail = tokenizer.token_id("¡")  # 0xA1 alone can begin nothing
    assert lead is not None
    assert a is not None
    assert tail is not None
    assert stream(tokenizer, [lead, a]) == ["", "\ufffda", ""]
    assert stream(tokenizer, [tail, tail]) == ["\ufffd", "\ufffd", ""]
    assert stream(tokenizer, [a, lead]) == ["a", "", "\ufffd"]


def test_added_tokens_are_shown_as_they_are_written() -> None:
    tokenizer = ours("byte-level")
    odd = tokenizer.token_id(" odd 日")
    assert odd is not None
    assert tokenizer.decode([odd, odd]) == " odd 日 odd 日"  # its letters are not in the byte alphabet


def test_leading_space_of_sentencepiece_is_dropped_once() -> None:
    tokenizer = ours("sentencepiece")
    assert stream(tokenizer, tokenizer.encode(" café"))[:2] == ["", " c"]
    assert tokenizer.decode(tokenizer.encode("  a")) == "  a"


def test_streams_do_no_work_on_what_went_before(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ours("byte-level")
    asked: list[int] = []
    whole = Tokenizer.piece

    def counting(self: Tokenizer, token: int) -> str | None:
        asked.append(token)
        return whole(self, token)

    monkeypatch.setattr(Tokenizer, "piece", counting)
    lead = tokenizer.token_id("ð") or 0
    stream(tokenizer, [lead] * 500)
    assert len(asked) == 500


def test_special_text_becomes_tokens_only_when_asked() -> None:
    tokenizer = ours("byte-level")
    text = "<|im_start|>user<|im_end|>"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.token_id("<|im_start|>") == 1
    assert ids[-1] == 2
    plain = tokenizer.encode(text, special=False)
    assert not any(map(tokenizer.is_special, plain))
    assert tokenizer.decode(plain) == text
    assert tokenizer.decode(ids) == "user"
    assert tokenizer.decode(ids, skip_special=False) == text
    assert tokenizer.encode(text) == ids  # the switch has not stuck


def test_tokens_that_are_not_marked_special_are_read_either_way() -> None:
    tokenizer = ours("byte-level")
    think = tokenizer.token_id("<think>")
    assert tokenizer.encode("<think>", special=False) == [think]
    assert tokenizer.decode([think or -1]) == "<think>"


@pytest.mark.parametrize("text", ["<s>", "a<s>b"])
def test_unigram_pieces_cannot_smuggle_control_tokens(text: str) -> None:
    tokenizer = ours("metaspace")
    with pytest.raises(RequestError, match="control token '<s>'"):
        tokenizer.encode(text, special=False)
    assert tokenizer.token_id("<s>") in tokenizer.encode(text)


def test_unknown_words_are_no_control_tokens() -> None:
    tokenizer = ours("metaspace")
    unknown = tokenizer.token_id("<unk>")
    assert unknown is not None
    assert tokenizer.is_special(unknown)
    assert unknown in tokenizer.encode("Ж", special=False)


def test_both_ways_of_encoding_from_many_threads() -> None:
    tokenizer = Tokenizer.from_json(byte_level().to_str())
    text = "<|im_start|>hi<|im_end|>" * 5
    wrong: list[Any] = []

    def work(special: bool) -> None:
        for _ in range(100):
            ids = tokenizer.encode(text, special=special)
            if any(map(tokenizer.is_special, ids)) != special:
                wrong.append(ids)

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nothing_is_added_padded_or_cut() -> None:
    library = tokenizers.Tokenizer.from_str(byte_level().to_str())
    library.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    library.enable_truncation(4)
    library.enable_padding(length=64)
    assert library.encode("ab").ids.count(0) > 1
    tokenizer = Tokenizer.from_json(library.to_str())
    text = "The capital of France " * 9
    for special in (True, False):
        assert tokenizer.encode(text, special=special) == byte_level().encode(text, add_special_tokens=False).ids
    assert tokenizer.encode("") == []


def test_ids_and_names() -> None:
    tokenizer = ours("byte-level")
    assert tokenizer.vocab_size == byte_level().get_vocab_size()
    assert tokenizer.token_id("<|im_end|>") == 2
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.token_id("\ud800") is None
    assert tokenizer.is_special(2)
    assert not tokenizer.is_special(9)
    assert tokenizer.decode([10**6]) == ""


def test_vocab_size_covers_the_highest_id_of_a_sparse_vocabulary() -> None:
    text = json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 99}, "unk_token": "a"}})
    assert Tokenizer.from_json(text).vocab_size == 100


@pytest.mark.parametrize("token", [-1, 2**40, 1.5, "a", None])
def test_what_is_no_token_id_is_refused(token: Any) -> None:
    with pytest.raises(RequestError, match="token id is"):
        ours("byte-level").decode([token])


@pytest.mark.parametrize("text", ["a\ud800b", b"bytes", None])
@pytest.mark.parametrize("special", [True, False])
def test_what_is_no_text_is_refused(text: Any, special: bool) -> None:
    with pytest.raises(RequestError, match="encode") as caught:
        ours("byte-level").encode(text, special=special)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        byte_level().to_str()[:-40],
    ],
    ids=range(6),
)
def test_damaged_files_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(BundleError, match=r"^a/tokenizer\.json is not a readable tokenizer") as caught:
        Tokenizer.from_json(text, name="a/tokenizer.json")
    assert "\n" not in str(caught.value)


def hostile(normalizer: dict[str, Any]) -> str:
    return json.dumps(json.loads(byte_level().to_str()) | {"normalizer": normalizer})


def test_panics_of_the_library_are_refused_in_one_line() -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.from_json(hostile({"type": "Precompiled", "precompiled_charsmap": "AAAA"}))
    tokenizer = Tokenizer.from_json(hostile({"type": "Replace", "pattern": {"String": ""}, "content": "x"}))
    with pytest.raises(RequestError, match="cannot be encoded"):
        tokenizer.encode("abc")


def test_an_interrupt_is_no_damaged_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.from_json(byte_level().to_str())


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace", "metaspace-first", "no-decoder", "wordpiece"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_continuation_keeps_the_space_that_separates_it(kind: str, cut: int) -> None:
    tokenizer = ours(kind)
    ids = tokenizer.encode("the cat the cat" if kind in ("no-decoder", "wordpiece") else "ab the a the")
    stream = TextStream(tokenizer, after=ids[:cut])
    continued = "".join([*map(stream.push, ids[cut:]), stream.flush()])
    assert tokenizer.decode(ids[:cut]) + continued == tokenizer.decode(ids)


def test_a_text_after_special_tokens_only_starts_a_text() -> None:
    tokenizer = ours("sentencepiece")
    ids = tokenizer.encode("Paris is")
    start = tokenizer.token_id("<s>")
    assert start is not None
    stream = TextStream(tokenizer, after=[start])
    assert "".join(map(stream.push, ids)) == "Paris is"
