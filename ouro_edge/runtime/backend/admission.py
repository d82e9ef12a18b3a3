"""Whether the memory is enough for the keys and values of several generations at once."""

from __future__ import annotations

from ouro_edge.arch.config import ModelConfig
from ouro_edge.errors import RequestError
from ouro_edge.runtime.backend.kv import kv_bytes_per_token
from ouro_edge.system.memory import available_memory

_LEAST_TOKENS = 512  # prompt and answer of a short request; a shorter context counts as it is


def check_parallel(config: ModelConfig, kv: str, kv_share: str, parallel: int) -> None:
    """RequestError unless the free memory holds `parallel` sequences of 512 tokens, or of a shorter context."""
    tokens = min(config.max_positions, _LEAST_TOKENS)
    each = tokens * kv_bytes_per_token(config, kv) // (config.loops if kv_share == "last" else 1)
    free = available_memory()
    if parallel > 1 and parallel * each > free:
        fitting = max(1, free // each)
        raise RequestError(
            f"{parallel} generations at once of {tokens} tokens need {parallel * each / 1e9:.2g} GB of {kv} keys and "
            f"values; {free / 1e9:.2g} GB are free: use --parallel {fitting}, --kv int8 or int4, or a smaller --ctx"
        )
