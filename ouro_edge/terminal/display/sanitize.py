"""Sanitises untrusted text for terminals."""

from __future__ import annotations

import re

# Controls but newline and tab (escape sequences begin with one), lone surrogates, and what reverses reading direction.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_BREAKS = re.compile("[\u2028\u2029]")


def clean(text: str) -> str:
    """The text without characters that steer a terminal; newlines, tabs and everything visible stay."""
    return _UNWANTED.sub("", _BREAKS.sub("\n", text))
