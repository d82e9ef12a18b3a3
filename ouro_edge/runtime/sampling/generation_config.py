"""Sampling settings from a generation_config.json, which is untrusted and may contain anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ouro_edge.system.numbers import is_number

_SAMPLING_FIELDS = ("temperature", "top_p", "min_p")
_MAX_SETTING = 1e9  # a larger setting is invalid


def sampler_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for `Sampler`. Temperature and filters apply only with do_sample, as in Hugging Face; the repetition
    penalty always applies. Values that are not numbers are ignored.
    """
    settings = {name: data[name] for name in ("repetition_penalty",) if is_number(data.get(name), _MAX_SETTING)}
    if data.get("do_sample") is not True:
        return settings
    given = {name: data[name] for name in _SAMPLING_FIELDS if is_number(data.get(name), _MAX_SETTING)}
    settings |= {"temperature": 1.0} | given
    if is_number(data.get("top_k"), _MAX_SETTING):
        settings["top_k"] = max(0, int(data["top_k"]))  # published files contain -1 and 50.0
    return settings
