"""Small vocabularies of each kind of the tokenizers library."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from ouro_edge.runtime.text.tokenizer import Tokenizer

CORPUS = ["The capital of France is Paris.", "naïve café, 日本語 and 😀 smileys", "  indented\n\tlines  ", "0123"] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@cache
def byte_level() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    library.add_tokens([AddedToken("<think>", special=False), AddedToken(" odd 日", special=False)])
    return library


@cache
def sentencepiece() -> tokenizers.Tokenizer:
    """As in Llama 2: byte fallback, a leading space added and dropped again."""
    letters = sorted(set("▁" + "".join(CORPUS)) - set(" \n\t日本語😀ï"))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁c", "▁▁", "is"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "c"), ("▁", "▁"), ("i", "s")]
    library = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return library


@cache
def unigram(prepend: str) -> tokenizers.Tokenizer:
    pieces = ["<unk>", "<s>", "▁", "▁the", "▁▁", "a", "b", "<", "s", ">", "é", "日"]
    library = tokenizers.Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    library.decoder = decoders.Metaspace(prepend_scheme=prepend)
    library.add_special_tokens(["<unk>", "<s>"])
    return library


@cache
def words(decoder: str) -> tokenizers.Tokenizer:
    vocab = {piece: i for i, piece in enumerate(["[UNK]", "the", "cat", "##s", ".", "<0x41>", "a▁b"])}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens(["[UNK]"])
    if decoder == "wordpiece":
        library.decoder = decoders.WordPiece()
    return library


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte-level": byte_level,
    "metaspace": lambda: unigram("always"),
    "metaspace-first": lambda: unigram("first"),
    "metaspace-never": lambda: unigram("never"),
    "no-decoder": lambda: words(""),
    "wordpiece": lambda: words("wordpiece"),
}


@cache
def ours(kind: str) -> Tokenizer:
    library = sentencepiece() if kind == "sentencepiece" else KINDS[kind]()
    return Tokenizer.from_json(library.to_str())
