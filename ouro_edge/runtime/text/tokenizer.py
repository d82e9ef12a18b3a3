"""Text to token ids and back, also incrementally. Uses the tokenizers library; must not import models or chats.

The library encodes. Decoding is implemented here, because the library's stream (tokenizers.decoders.DecodeStream, 0.23)
cannot be flushed, so it drops an unfinished end, and it holds back bytes that can never become a character. A piece is
converted to bytes by the rules of tokenizer.json's decoder (byte-level; sentencepiece's "▁" with or without byte
fallback), and the bytes to text by an incremental UTF-8 decoder: one step per token, never half a character. `decode`
repeats these steps. The result equals the library's except for byte-fallback runs that are not valid UTF-8: there the
library also replaces the run's valid characters, which a stream cannot do after it has returned them. For other
decoders, the library decodes all ids at the end.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ouro_edge.errors import BundleError, RequestError, one_line
from ouro_edge.runtime.checks import check_items
from ouro_edge.runtime.text.decoder_rules import read_rules

if TYPE_CHECKING:
    import tokenizers

_CONTEXT_IDS = 8  # before a continuation: enough to know that it is one


class Tokenizer:
    """A tokenizers.Tokenizer that is not modified after loading; thread-safe."""

    def __init__(self, library: tokenizers.Tokenizer, start: str | bool | None = None) -> None:
        """Wrap the library's object and switch off padding and truncation, which tokenizer.json may enable.

        `start` is the token before a text: a token's text, False for none, None for what the post-processor adds.
        """
        library.no_padding()
        library.no_truncation()
        self._library = library
        self._start = start
        self._special = frozenset(i for i, token in library.get_added_tokens_decoder().items() if token.special)
        # The pickled state is the decoder section of tokenizer.json; to_str would also write the whole vocabulary.
        self._rules = read_rules(json.loads(library.decoder.__getstate__()) if library.decoder else None)

    @classmethod
    def from_json(cls, text: str, *, name: str = "tokenizer.json", start: str | bool | None = None) -> Tokenizer:
        """Read the text of a tokenizer.json. BundleError, which names `name`, when it is damaged."""
        import tokenizers

        try:
            return cls(tokenizers.Tokenizer.from_str(text.removeprefix("\ufeff")), start)
        except BaseException as problem:
            raise BundleError(f"{name} is not a readable tokenizer: {_failure(problem)}; download it again") from None

    @cached_property
    def vocab_size(self) -> int:
        """The highest id plus one: the minimum size of the model's vocabulary."""
        return 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; nothing is added at either end.

        With `special`, text that equals a special token (`<|im_start|>`) becomes that token, as rendered chats need.
        Without, it is encoded as plain text, so that user input cannot act as a control token; RequestError in the
        rare vocabularies (unigram) where the text is a plain piece as well. This concerns only tokens that
        tokenizer.json marks as special; Qwen's `<tool_call>`, for example, always becomes a token.
        """
        if not isinstance(text, str):
            raise RequestError(f"cannot encode {type(text).__name__}; expected text")
        try:
            ids = (self._library if special else self._literal).encode(text, add_special_tokens=False).ids
        except BaseException as problem:  # for example a lone surrogate
            raise RequestError(
                f"text cannot be encoded: {_failure(problem)}; remove characters that are not Unicode"
            ) from None
        if not special:
            for i in ids:
                if i in self._special and i != self._unknown:
                    raise RequestError(f"text contains the control token {self._library.id_to_token(i)!r}; remove it")
        return ids

    @cached_property
    def text_start(self) -> tuple[int, ...]:
        """The ids that the model expects before a text outside a chat (BOS); empty for most models."""
        if isinstance(self._start, str):
            found = self.token_id(self._start)
            return () if found is None else (found,)
        if self._start is False:
            return ()
        encoded = self._library.encode("a", add_special_tokens=True)  # the post-processor marks what it adds
        return tuple(encoded.ids[: (*encoded.special_tokens_mask, 0).index(0)])

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text outside a chat: like `encode`, after `text_start` unless the text itself begins so."""
        ids, start = self.encode(text), list(self.text_start)
        return ids if ids[: len(start)] == start else start + ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids. Bytes that are not valid UTF-8 become U+FFFD; ids without a token are skipped."""
        stream = TextStream(self, skip_special=skip_special)
        ids = check_items("ids", ids, "token ids")
        return "".join([*map(stream.push, ids), stream.flush()])

    def token_id(self, text: str) -> int | None:
        """The id of the vocabulary entry equal to `text`, or None."""
        try:
            return self._library.token_to_id(text)
        except UnicodeEncodeError:
            return None
        except TypeError:
            raise RequestError(f"cannot look up {type(text).__name__}; expected text") from None

    def is_special(self, token: int) -> bool:
        """Whether an id is a special token, which decoded text leaves out by default."""
        return token in self._special

    def token_bytes(self, token: int) -> bytes:
        """The bytes of an id inside a text, or a special token's own text; empty when the id has no token."""
        piece = self.piece(token)
        if piece is None:
            return b""
        if self._rules is None or self.is_special(token):
            return piece.encode()
        return self._rules.to_bytes(piece, first=False)

    def piece(self, token: int) -> str | None:
        """The raw vocabulary entry of an id, or None. RequestError when `token` is not a valid id."""
        try:
            return self._library.id_to_token(token)
        except (OverflowError, TypeError):
            raise RequestError(f"token id is {token!r}; expected a whole number of at least 0") from None

    @cached_property
    def _unknown(self) -> int | None:
        """The id of the unknown token: special, although plain text may produce it."""
        model = json.loads(self._library.to_str())["model"]
        unknown = model.get("unk_token")
        found: int | None = self._library.token_to_id(unknown) if unknown else model.get("unk_id")
        return found

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        # The switch is a property of the library's object: setting it for one call would race with other threads.
        twin = type(self._library).from_str(self._library.to_str())
        twin.encode_special_tokens = True
        return twin


class TextStream:
    """Running state of incremental decoding: `push` ids, then `flush` once; the joined pieces equal `decode`.

    With `after`, ids that precede the text, the text continues theirs: a leading space is part of it.
    """

    __slots__ = ("_before", "_first", "_held", "_skip_special", "_strip", "_tokenizer", "_utf8")

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        before = [i for i in after[-_CONTEXT_IDS:] if tokenizer.piece(i) is not None and not tokenizer.is_special(i)]
        self._first = not before  # no piece yet
        self._strip = tokenizer._rules.strip if tokenizer._rules and self._first else 0  # leading spaces still to drop
        self._before = before if tokenizer._rules is None else []
        self._held: list[int] = []  # ids, for decoders not implemented here

    def push(self, token: int) -> str:
        """The text that is final after this id; empty while a character is incomplete."""
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
        """The remaining text: U+FFFD for an incomplete character."""
        if self._held:
            held, self._held = self._held, []
            try:
                before, both = (
                    self._tokenizer._library.decode(ids, skip_special_tokens=self._skip_special) if ids else ""
                    for ids in (self._before, self._before + held)
                )
                return both.removeprefix(before)
            except BaseException as problem:
                raise BundleError(f"tokenizer.json cannot decode: {_failure(problem)}; download it again") from None
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
            else:
                self._strip -= 1
                text = text[1:]
        return text


def _failure(problem: BaseException) -> str:
    """The library's error on one line. Its panics do not derive from Exception; other BaseExceptions are re-raised."""
    if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
        raise problem
    return one_line(problem, 300)
