"""One prompt of several samples: computed once, then copied, so that every sample only computes its own tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.events import Done
from ouro_edge.runtime.exits.loop_budget import position_rule
from ouro_edge.runtime.exits.policies import ExitPolicy, FixedDepth
from ouro_edge.runtime.sequence.sequence import TAIL_TOKENS, TokenSequence


class SharedPrompt:
    """Hands out a sequence with the prompt's keys and values to each of `samples` samples. Thread-safe.

    All loops that the exit rule allows are computed for the prompt: some token of some sample needs them almost always,
    and later every sample would compute them for itself. `start` makes the sequence to begin with. Every sample
    computes the prompt where all loops share one KV cache, because the rest of a prompt that is split gets other states
    there, and where a `prefix` includes the last positions, because a prefix is computed as a whole.
    """

    def __init__(
        self,
        ids: tuple[int, ...],
        exit: ExitPolicy,
        samples: int,
        start: Callable[[], TokenSequence],
        prefix: int = 0,
    ) -> None:
        self.ids, self._prefix = ids, prefix
        self._exit, self._left, self._start = exit, samples, start
        self._lock = threading.Lock()  # held while the prompt is computed: the other samples wait for it
        self._sequence: TokenSequence | None = None
        self._cached: int | None = None  # tokens that `start` had in its sequence; None if nothing was computed
        self._rows = self._calls = self._saved = 0
        self._seconds = 0.0

    def take(self, cancel: Cancel | None = None) -> TokenSequence:
        """A sequence for one sample; the first call computes the prompt. Cancelled when `cancel` fires meanwhile."""
        with self._lock:
            if self._sequence is None:
                self._sequence = self._compute(cancel)
            self._left -= 1
            if self._left:
                return self._sequence.copy_prefix()
            sequence, self._sequence = self._sequence, None  # the last sample needs no copy
            return sequence

    def charge(self, done: Done) -> Done:
        """The end of one sample with the cost of the prompt added, which otherwise no sample reports."""
        if self._cached is None:
            return done
        usage, timings = done.usage, done.timings
        usage = replace(
            usage,
            cached_tokens=self._cached,
            loops_run=usage.loops_run + self._rows,
            loops_saved=usage.loops_saved + self._saved,
            block_calls=usage.block_calls + self._calls,
        )
        first, total = timings.first_token + self._seconds, timings.total + self._seconds
        return replace(done, usage=usage, timings=replace(timings, first_token=first, total=total))

    def _compute(self, cancel: Cancel | None) -> TokenSequence:
        """All but the last positions, which `set_prompt` leaves to every generation."""
        began, sequence, ids = time.perf_counter(), self._start(), self.ids[:-TAIL_TOKENS]
        if not ids or sequence.kv_share != "none" or self._prefix > len(ids):
            return sequence
        depth = sequence.backend.program.exit_at(position_rule(self._exit).limit(sequence.config))
        self._cached = sequence.set_prompt(ids, self._prefix)
        rows, calls, pending = sequence.work.rows, sequence.work.calls, sequence.pending_loops
        sequence.run_until_exit(FixedDepth(depth), cancel)
        self._rows, self._calls = sequence.work.rows - rows, sequence.work.calls - calls
        self._saved = sequence.pending_loops - pending
        self._seconds = time.perf_counter() - began
        return sequence
