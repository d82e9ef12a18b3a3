"""Sampling settings out of a generation_config.json, which comes from the internet and may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ouro_edge.system.numbers import is_number

_SAMPLING = ("temperature", "top_p", "min_p")
_LARGEST = 1e9  # beyond it a setting is damage


def sampler_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for `Sampler`. Temperature and filters count only with do_sample, as in Hugging Face; the repetition
    penalty always. What is no number is left out.
    """
    settings = {name: data[name] for name in ("repetition_penalty",) if is_number(data.get(name), _LARGEST)}
    if data.get("do_sample") is not True:
        return settings
    settings |= {"temperature": 1.0} | {name: data[name] for name in _SAMPLING if is_number(data.get(name), _LARGEST)}
    if is_number(data.get("top_k"), _LARGEST):
        settings["top_k"] = max(0, int(data["top_k"]))  # -1 and 50.0 are seen in published files
    return settings
