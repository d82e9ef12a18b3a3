"""Rules that convert the pieces of a vocabulary to bytes, as the decoder section of tokenizer.json gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules that convert a vocabulary piece to bytes of text."""

    byte_level: bool = False  # every character represents a byte
    byte_fallback: bool = False  # <0x0A> represents a byte
    replace: tuple[tuple[str, str], ...] = ()  # in every piece
    replace_first: tuple[tuple[str, str], ...] = ()  # in the first piece, instead
    strip: int = 0  # leading spaces of the whole text to drop
    separator: str = ""  # before every piece but the first

    def to_bytes(self, piece: str, first: bool) -> bytes:
        if self.byte_level:
            try:
                return bytes([_BYTE_OF[character] for character in piece])
            except KeyError:  # an added token, stored as plain text
                return piece.encode()
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(match[1])
        for old, new in self.replace_first if first else self.replace:
            piece = piece.replace(old, new)
        return (piece if first else self.separator + piece).encode()


def read_rules(decoder: dict[str, Any] | None) -> Rules | None:
    """Rules of tokenizer.json's decoder; None when a piece's text depends on its neighbours in an unsupported way."""
    if decoder is None:
        return Rules(separator=" ")
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return Rules(byte_level=True)
    if kinds == ["Metaspace"]:
        mark = steps[0]["replacement"]
        first = " " if steps[0].get("prepend_scheme", "always") == "never" else ""
        return Rules(replace=((mark, " "),), replace_first=((mark, first),))
    # Sentencepiece: replace in each piece, convert to bytes, join the pieces, strip the leading space.
    shape = re.fullmatch(r"(?:Replace )*(ByteFallback )?(Fuse )?(Strip )?", "".join(kind + " " for kind in kinds))
    replace = [(step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"]
    if not shape or (shape[3] and not shape[2]) or not all(old for old, _ in replace):
        return None
    strip: dict[str, Any] = steps[-1] if shape[3] else {"start": 0, "stop": 0, "content": " "}
    if strip["stop"] or strip["content"] != " ":
        return None
    pairs = tuple(replace)
    return Rules(byte_fallback=bool(shape[1]), replace=pairs, replace_first=pairs, strip=strip["start"])


def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes map to themselves, the others to U+0100 onwards (openai/gpt-2 encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()
