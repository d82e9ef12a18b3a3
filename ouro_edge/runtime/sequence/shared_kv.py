"""A sequence whose loops share one KV cache: a quarter of the memory, and no longer exact. Opt-in.

A prompt goes through the loops one after the other, each over all its positions, so it is processed exactly and the
deepest loop's keys and values are what stays. A generated token's loops then all attend to those, and of its own it
leaves those of the deepest loop that it reached ("last-step" sharing, arXiv 2510.25741). Nothing waits: loops that a
token did not ask for are never computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ouro_edge.errors import RequestError
from ouro_edge.runtime.backend.bound_loop import BoundLoop
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.checks import check_kind
from ouro_edge.runtime.exits.loop_states import Evidence
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.sequence.sequence import Thought, TokenSequence


class SharedKVSequence(TokenSequence):
    """Tokens and one cache, valid up to frontier[1]; the deeper frontiers are apart only inside `think`."""

    can_draft = False
    shares_kv = True

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._skipped = 0

    def _bind_loops(self) -> list[BoundLoop]:
        return [BoundLoop(self.block, None)] * self.config.loops

    @property
    def pending_loops(self) -> int:
        """Loops that no token asked for since the last `resume`; they are never computed."""
        return self._skipped

    def caches(self) -> list[tuple[BoundLoop, int]]:
        return [(self._loops[0], self.frontier[1])]

    def set_prompt(self, ids: Any) -> int:
        self._skipped = 0
        return super().set_prompt(ids)

    def settle(self) -> None:
        """Loops that went to different positions have left a mixture in the cache: nothing of it can be used."""
        if self.frontier[1] != self.frontier[-1]:
            self._hold(0)

    def _hold(self, length: int) -> None:
        self.frontier[1:] = [length] * self.config.loops
        for rows in self._waiting:
            rows.clip(0)

    def think(self, policy: ExitPolicy, cancel: Cancel | None = None) -> Thought:
        """Loop over the last position until the policy stops it, and over the positions before it to the limit."""
        check_kind("policy", policy, ExitPolicy)
        done, fresh = self.frontier[1], self.frontier[0] - self.frontier[1]
        if not fresh:
            raise RequestError("the last position was processed before: feed a token first")
        limit = policy.limit(self.config)
        gates = np.empty((1, limit))
        evidence = stopped = None
        try:
            for loop in range(1, (limit if fresh == 1 else policy.prompt_limit(self.config)) + 1):
                last = self.advance(loop, cancel=cancel)
                assert last is not None
                if loop > limit:
                    continue
                hidden, gates[0, loop - 1] = last
                evidence = Evidence(gates[:, :loop], hidden[None], self._head, evidence)
                if stopped is None and (loop == limit or policy.stops(evidence)[0]):
                    stopped = evidence
                if stopped is not None and fresh == 1:
                    break
            self._skipped += fresh * (self.config.loops - loop)
            done = self.frontier[0]
        finally:  # cut short, the positions are as before: begun by no loop
            self._hold(done)
        assert stopped is not None
        return Thought(policy.output(stopped))
