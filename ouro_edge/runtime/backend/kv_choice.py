"""Which type the KV cache gets when the user leaves it to us. Knows the bundle and the free memory."""

from __future__ import annotations

from ouro_edge.bundle.bundle import Bundle
from ouro_edge.errors import RequestError
from ouro_edge.runtime.backend.kv import KV_TYPES, kv_bytes_per_token
from ouro_edge.system.memory import available_memory

_USUAL = 4096  # positions that a conversation may well reach
_SHARE = 4  # float32 is taken when that many positions fit a quarter of the free memory


def choose_kv(bundle: Bundle, kv: str) -> tuple[str, str | None]:
    """The type for `kv`, and for "auto" a line that says why it is not float32, if it is not.

    RequestError for an unknown type; a quantised one needs a calibrated bundle, which opening it will demand.
    """
    if check_kv(kv) != "auto":
        return kv, None
    tokens = min(bundle.config.max_positions, _USUAL)
    need, free = tokens * kv_bytes_per_token(bundle.config, "fp32"), available_memory()
    if need * _SHARE <= free or not bundle.has_kv_ranges:
        return "fp32", None
    return "int8", (
        f"KV cache in int8: {tokens} tokens would need {need / 1e9:.2g} GB in fp32, {free / 1e9:.2g} GB are free"
    )


def check_kv(kv: str) -> str:
    """`kv`, if it is a type of cache or auto. RequestError otherwise."""
    if kv not in ("auto", *KV_TYPES):
        raise RequestError(f"kv is {kv!r}; wanted auto, {', '.join(KV_TYPES)}")
    return kv


def check_share(kv_share: str) -> str:
    """`kv_share`, if it is a way that loops may share their caches. RequestError otherwise."""
    if kv_share not in ("none", "last"):
        raise RequestError(f"kv_share is {kv_share!r}; wanted 'none' (exact) or 'last' (all loops share one cache)")
    return kv_share
