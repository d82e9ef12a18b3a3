"""Keeps sequences for later prompts with the same prefix; the least recently used ones are dropped first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ouro_edge.errors import RequestError
from ouro_edge.runtime.checks import check_ids, check_kind, shown
from ouro_edge.runtime.sequence.old_names import renamed
from ouro_edge.runtime.sequence.prefix import common_prefix
from ouro_edge.runtime.sequence.sequence import TokenSequence

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model

_MAX_SEQUENCES = 256  # the search for a prefix visits every sequence


class PrefixCache:
    """Idle sequences of one model with at most `max_bytes` of keys and values. Thread-safe."""

    def __init__(self, model: Model, max_bytes: int) -> None:
        if not callable(getattr(model, "new_sequence", None)):  # duck-typed, for tests
            raise RequestError(f"model is {shown(model)}; expected a loaded model")
        if type(max_bytes) is not int or max_bytes < 0:
            raise RequestError(f"max_bytes is {max_bytes!r}; expected a whole number of at least 0")
        self._model, self._max_bytes = model, max_bytes
        self._entries: OrderedDict[int, TokenSequence] = OrderedDict()  # by id(), oldest first
        self._held = 0  # bytes of the entries
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in the cache."""
        return self._held

    def checkout(self, ids: Sequence[int]) -> TokenSequence:
        """The sequence with the longest common prefix with `ids`; the caller owns it until `checkin`.

        If at least half of that sequence would be lost, it stays in the cache and a copy of the common prefix is
        returned, because many conversations may share a system prompt.
        """
        ids = check_ids(ids, self._model.config.vocab_size)
        with self._lock:
            best, common = None, 0
            for sequence in self._entries.values():
                if (length := common_prefix(sequence.tokens, ids)) > common:
                    best, common = sequence, length
            if best is None:
                return self._model.new_sequence()
            if 2 * common > len(best):
                return self._remove(id(best))
            self._entries.move_to_end(id(best))
            self._evict(self._max_bytes - best.kv_bytes * common // len(best), keep=best)
            return best.copy_prefix(common)

    def checkin(self, sequence: TokenSequence) -> None:
        """Keep a sequence unless it is empty, and drop the oldest ones beyond the limit."""
        check_kind("sequence", sequence, TokenSequence)
        with self._lock:
            if id(sequence) in self._entries:
                self._remove(id(sequence))
            if not sequence.frontier[1]:
                return
            self._entries[id(sequence)] = sequence
            self._held += sequence.kv_bytes
            self._evict(self._max_bytes)

    def clear(self) -> None:
        """Drop all sequences."""
        with self._lock:
            self._entries.clear()
            self._held = 0

    take = renamed("take", "checkout")
    give = renamed("give", "checkin")

    def _remove(self, key: int) -> TokenSequence:
        sequence = self._entries.pop(key)
        self._held -= sequence.kv_bytes
        return sequence

    def _evict(self, most: int, keep: TokenSequence | None = None) -> None:
        for key in list(self._entries):
            if self._held <= most and len(self._entries) <= _MAX_SEQUENCES:
                return
            if self._entries[key] is not keep:
                self._remove(key)
