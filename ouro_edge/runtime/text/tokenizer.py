"""Text to token ids and back, also piece by piece. Knows the tokenizers library and errors; nothing of models or chats.

The library encodes. Decoding is ours, because the library's own stream (tokenizers.decoders.DecodeStream, 0.23) cannot
be flushed, so it swallows an unfinished end, and holds bytes that can become no character. A piece becomes bytes by the
rules of tokenizer.json's decoder (byte-level; sentencepiece's "▁" with or without byte fallback), and the bytes become
text by an incremental UTF-8 decoder: one step a token, never half a character, and `decode` is the same steps in a row.
The result is the library's, but for byte-fallback runs that are no valid UTF-8: there the library blanks the run's good
characters too, which no stream that shows them at once could follow. Other decoders: the library, when all ids are in.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ouro_edge.errors import BundleError, RequestError, one_line
from ouro_edge.runtime.checks import check_items

if TYPE_CHECKING:
    import tokenizers

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """A tokenizers.Tokenizer that is never changed after loading, so threads may share it."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        """Take the library's object over; padding and truncation, which tokenizer.json may ask for, are turned off."""
        library.no_padding()
        library.no_truncation()
        self._library = library
        self._special = frozenset(i for i, token in library.get_added_tokens_decoder().items() if token.special)
        # The pickled state is the decoder's part of tokenizer.json; to_str would write the whole vocabulary as well.
        self._rules = _rules(json.loads(library.decoder.__getstate__()) if library.decoder else None)

    @classmethod
    def from_json(cls, text: str, *, name: str = "tokenizer.json") -> Tokenizer:
        """Read the text of a tokenizer.json. BundleError, with `name` in it, when it is damaged."""
        import tokenizers

        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except BaseException as problem:
            raise BundleError(f"{name} is no tokenizer that can be read: {_failure(problem)}; fetch it again") from None

    @cached_property
    def vocab_size(self) -> int:
        """The highest id plus one: what a model's vocabulary must at least hold."""
        return 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; nothing is added at either end.

        With `special`, text that spells a special token (`<|im_start|>`) becomes that token, as a rendered chat needs.
        Without, it is read as plain text, so that what a user typed cannot act as a control token; RequestError in the
        rare vocabularies (unigram) where the spelling is a plain piece as well. Only tokens that tokenizer.json marks
        as special are meant: Qwen's `<tool_call>`, for one, is not and is read as a token either way.
        """
        if not isinstance(text, str):
            raise RequestError(f"cannot encode {type(text).__name__}; wanted text")
        try:
            ids = (self._library if special else self._literal).encode(text, add_special_tokens=False).ids
        except BaseException as problem:  # a lone surrogate, for one
            raise RequestError(
                f"text cannot be encoded: {_failure(problem)}; remove characters that are not Unicode"
            ) from None
        if not special:
            for i in ids:
                if i in self._special and i != self._unknown:
                    raise RequestError(f"text spells the control token {self._library.id_to_token(i)!r}; remove it")
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids. Bytes that are no UTF-8 become U+FFFD; ids without a token give nothing."""
        stream = TextStream(self, skip_special=skip_special)
        ids = check_items("ids", ids, "token ids")
        return "".join([*map(stream.push, ids), stream.flush()])

    def token_id(self, text: str) -> int | None:
        """The id of the token with exactly this spelling in the vocabulary, None when there is none."""
        try:
            return self._library.token_to_id(text)
        except UnicodeEncodeError:
            return None
        except TypeError:
            raise RequestError(f"cannot look up {type(text).__name__}; wanted text") from None

    def is_special(self, token: int) -> bool:
        """Whether an id is one of the special tokens, which text for readers leaves out."""
        return token in self._special

    def token_bytes(self, token: int) -> bytes:
        """The bytes that an id stands for inside a text; a special token's spelling; empty when the id has no token."""
        piece = self.piece(token)
        if piece is None:
            return b""
        if self._rules is None or self.is_special(token):
            return piece.encode()
        return self._rules.to_bytes(piece, first=False)

    def piece(self, token: int) -> str | None:
        """The raw vocabulary entry of an id, None when it has none. RequestError when it can be no id."""
        try:
            return self._library.id_to_token(token)
        except (OverflowError, TypeError):
            raise RequestError(f"token id is {token!r}; wanted a whole number of at least 0") from None

    @cached_property
    def _unknown(self) -> int | None:
        """The id for what the vocabulary lacks: special, yet text may lead to it."""
        model = json.loads(self._library.to_str())["model"]
        unknown = model.get("unk_token")
        found: int | None = self._library.token_to_id(unknown) if unknown else model.get("unk_id")
        return found

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        # The library's switch is a property of the whole object: flipping it would race with other threads.
        twin = type(self._library).from_str(self._library.to_str())
        twin.encode_special_tokens = True
        return twin


class TextStream:
    """Running state of incremental decoding: `push` ids, then `flush` once; the pieces joined equal `decode`."""

    __slots__ = ("_first", "_held", "_skip_special", "_strip", "_tokenizer", "_utf8")

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True  # no piece yet
        self._strip = tokenizer._rules.strip if tokenizer._rules else 0  # leading spaces still to be dropped
        self._held: list[int] = []  # ids, where the decoder is not one of ours

    def push(self, token: int) -> str:
        """The text that is certain now that this id has come; empty while a character is incomplete."""
        piece = self._tokenizer.piece(token)
        if piece is None or (self._skip_special and self._tokenizer.is_special(token)):
            return ""
        rules = self._tokenizer._rules
        if rules is None:
            self._held.append(token)
            return ""
        data = rules.to_bytes(piece, self._first)
        self._first = False
        return self._stripped(self._utf8.decode(data))

    def flush(self) -> str:
        """The rest: U+FFFD for a character that stayed incomplete."""
        if self._held:
            held, self._held = self._held, []
            try:
                return self._tokenizer._library.decode(held, skip_special_tokens=self._skip_special)
            except BaseException as problem:
                raise BundleError(f"tokenizer.json cannot decode: {_failure(problem)}; fetch it again") from None
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
            else:
                self._strip -= 1
                text = text[1:]
        return text


@dataclass(frozen=True, slots=True)
class _Rules:
    """How a piece of the vocabulary becomes bytes of text."""

    byte_level: bool = False  # every character stands for a byte
    byte_fallback: bool = False  # <0x0A> stands for a byte
    replace: tuple[tuple[str, str], ...] = ()  # in every piece
    replace_first: tuple[tuple[str, str], ...] = ()  # in the first piece, instead
    strip: int = 0  # leading spaces of the whole text to drop
    separator: str = ""  # before every piece but the first

    def to_bytes(self, piece: str, first: bool) -> bytes:
        if self.byte_level:
            try:
                return bytes([_BYTE_OF[character] for character in piece])
            except KeyError:  # an added token is kept as it is written
                return piece.encode()
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(match[1])
        for old, new in self.replace_first if first else self.replace:
            piece = piece.replace(old, new)
        return (piece if first else self.separator + piece).encode()


def _rules(decoder: dict[str, Any] | None) -> _Rules | None:
    """Rules of tokenizer.json's decoder; None when a piece's text depends on its neighbours in a way unknown here."""
    if decoder is None:
        return _Rules(separator=" ")
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _Rules(byte_level=True)
    if kinds == ["Metaspace"]:
        mark = steps[0]["replacement"]
        first = " " if steps[0].get("prepend_scheme", "always") == "never" else ""
        return _Rules(replace=((mark, " "),), replace_first=((mark, first),))
    # Sentencepiece: replacements piece by piece, then bytes, then the pieces as one text, then its leading space.
    shape = re.fullmatch(r"(?:Replace )*(ByteFallback )?(Fuse )?(Strip )?", "".join(kind + " " for kind in kinds))
    replace = [(step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"]
    if not shape or (shape[3] and not shape[2]) or not all(old for old, _ in replace):
        return None
    strip: dict[str, Any] = steps[-1] if shape[3] else {"start": 0, "stop": 0, "content": " "}
    if strip["stop"] or strip["content"] != " ":
        return None
    pairs = tuple(replace)
    return _Rules(byte_fallback=bool(shape[1]), replace=pairs, replace_first=pairs, strip=strip["start"])


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 on (openai/gpt-2 encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _failure(problem: BaseException) -> str:
    """The library's error in one line. Its panics are no Exceptions; whatever else is none (Ctrl-C) goes on."""
    if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
        raise problem
    return one_line(problem, 300)
