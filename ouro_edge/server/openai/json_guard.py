"""Rules of an answer in JSON that a grammar cannot express: no key twice in an object, no number without end.

Small models repeat keys and digits until the limit of tokens when a schema leaves both free.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

Ids = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

_MAX_NUMBER = 24  # characters; every double has a shorter form
_NUMBER = frozenset(b"0123456789+-.eE")
_BEFORE_KEY = (b'"', b' "')
_AFTER_LAST = b"\xff"  # greater than every byte of UTF-8


class Vocabulary:
    """The bytes of all tokens, sorted, to find those with a prefix."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        order = sorted(range(len(tokens)), key=tokens.__getitem__)
        self._sorted = [tokens[i] for i in order]
        self._ids = np.array(order, np.int64)
        self.numeric = np.array([i for i, token in enumerate(tokens) if token and token[0] in _NUMBER], np.int64)

    def with_prefix(self, prefix: bytes) -> Ids:
        """The ids of the tokens that begin with a prefix."""
        first = bisect_left(self._sorted, prefix)
        return self._ids[first : bisect_left(self._sorted, prefix + _AFTER_LAST, first)]


class JsonGuard:
    """Running state of one answer: where in the JSON it is."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._keys: list[set[bytes] | None] = []  # of each open object; None for a list
        self._expects_key = False
        self._string: bytearray | None = None  # of the open string
        self._is_key = self._escaped = False
        self._number = 0  # characters of the open number

    def forbidden(self) -> Iterator[Ids]:
        """The ids of tokens that would repeat a key or extend a long number."""
        if self._number >= _MAX_NUMBER:
            yield self._vocabulary.numeric
        used = self._keys[-1] if self._keys else None
        if not used or self._escaped:
            return
        if self._string is None:
            if self._expects_key:
                yield from (self._vocabulary.with_prefix(start + key + b'"') for key in used for start in _BEFORE_KEY)
        elif self._is_key:
            begun = bytes(self._string)
            for key in used:
                if key.startswith(begun):
                    yield self._vocabulary.with_prefix(key[len(begun) :] + b'"')

    def accept(self, token: int) -> None:
        """Advance by one token."""
        for byte in self._vocabulary.tokens[token] if token < len(self._vocabulary.tokens) else b"":
            if self._string is not None:
                self._in_string(self._string, byte)
            else:
                self._between(byte)

    def _in_string(self, string: bytearray, byte: int) -> None:
        if byte == ord('"') and not self._escaped:
            if self._is_key and self._keys and (used := self._keys[-1]) is not None:
                used.add(bytes(string))
            self._string, self._is_key = None, False
            return
        self._escaped = byte == ord("\\") and not self._escaped
        string.append(byte)

    def _between(self, byte: int) -> None:
        self._number = self._number + 1 if byte in _NUMBER else 0
        in_object = bool(self._keys) and self._keys[-1] is not None
        if byte == ord('"'):
            self._string, self._is_key = bytearray(), in_object and self._expects_key
            self._expects_key = False
        elif byte in b"{[":
            self._expects_key = byte == ord("{")
            self._keys.append(set() if self._expects_key else None)
        elif byte in b"}]" and self._keys:
            self._keys.pop()
            self._expects_key = False
        elif byte == ord(","):
            self._expects_key = in_object
