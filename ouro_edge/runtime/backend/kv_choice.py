"""The type of the KV cache: as requested, or selected by bundle and free memory."""

from __future__ import annotations

from ouro_edge.bundle.bundle import Bundle
from ouro_edge.errors import RequestError
from ouro_edge.runtime.backend.kv import KV_TYPES, kv_bytes_per_token
from ouro_edge.system.memory import available_memory

_TYPICAL_CONTEXT_TOKENS = 4096
_MIN_FREE_TO_KV_RATIO = 4  # float32 if a typical context takes at most a quarter of the free memory


def choose_kv(bundle: Bundle, kv: str) -> tuple[str, str | None]:
    """The type for `kv`; if "auto" selects another type than float32, also one line with the reason.

    RequestError for an unknown type. A quantised type needs a calibrated bundle; this is checked on opening.
    """
    if check_kv(kv) != "auto":
        return kv, None
    tokens = min(bundle.config.max_positions, _TYPICAL_CONTEXT_TOKENS)
    need, free = tokens * kv_bytes_per_token(bundle.config, "fp32"), available_memory()
    if need * _MIN_FREE_TO_KV_RATIO <= free or not bundle.has_kv_ranges:
        return "fp32", None
    return "int8", (
        f"KV cache in int8: {tokens} tokens would need {need / 1e9:.2g} GB in fp32, {free / 1e9:.2g} GB are free"
    )


def check_kv(kv: str) -> str:
    """`kv`, if it is a type of cache or auto; RequestError otherwise."""
    if kv not in ("auto", *KV_TYPES):
        raise RequestError(f"kv is {kv!r}; expected auto, {', '.join(KV_TYPES)}")
    return kv


def check_share(kv_share: str) -> str:
    """`kv_share`, if it is none or last; RequestError otherwise."""
    if kv_share not in ("none", "last"):
        raise RequestError(f"kv_share is {kv_share!r}; expected 'none' (exact) or 'last' (all loops share one cache)")
    return kv_share
