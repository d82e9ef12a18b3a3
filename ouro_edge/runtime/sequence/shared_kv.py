"""A sequence whose loops share one KV cache: a quarter of the memory, and no longer exact. Opt-in.

A prompt goes through the loops one after the other, each over all its positions, so it is processed exactly and the
deepest loop's keys and values are what stays. A generated token's loops then all attend to those, and of its own it
leaves those of the deepest loop that it reached ("last-step" sharing, arXiv 2510.25741). Nothing waits: loops that a
token did not need are never computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ouro_edge.errors import RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.protocol import Backend
from ouro_edge.runtime.checks import check_kind
from ouro_edge.runtime.exits.expected_logits import exit_states
from ouro_edge.runtime.exits.loop_budget import position_rule
from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.exits.policies import ExitPolicy, FixedDepth
from ouro_edge.runtime.sequence.coda_sequence import CodaSequence
from ouro_edge.runtime.sequence.depth_run import DepthRun, Exited
from ouro_edge.runtime.sequence.sequence import TokenSequence


class SharedKVSequence(TokenSequence):
    """Tokens and one cache, valid up to frontier[1]; the deeper frontiers differ only while loops are running."""

    kv_share = "last"

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._skipped = 0

    @property
    def pending_loops(self) -> int:
        """Loops that no token has needed since `set_prompt`; they are never computed."""
        return self._skipped

    def set_prompt(self, ids: Sequence[int], prefix: int = 0) -> int:
        self._skipped = 0
        return super().set_prompt(ids, prefix)

    def draft_obstacle(self, policy: ExitPolicy) -> str | None:
        return "its loops share one KV cache"

    def layout(self, frontier: Sequence[int]) -> tuple[list[int], list[int]]:
        """One cache and no waiting rows. RequestError for frontiers that differ, which no saved sequence has."""
        if frontier[1] != frontier[-1]:
            raise RequestError("the loops of a shared KV cache must have processed the same positions")
        return [frontier[1]], [0] * (len(frontier) - 2)

    def run_positions(
        self, positions: Sequence[int], policy: ExitPolicy, cancel: Cancel | None = None
    ) -> Iterator[Exited]:
        try:
            yield from super().run_positions(positions, policy, cancel)
        finally:  # loops that went to different positions have left a mixture in the cache, which nothing can use
            if self.frontier[1] != self.frontier[-1]:
                self._set_frontiers(0)

    def run_until_exit(self, policy: ExitPolicy, cancel: Cancel | None = None) -> LoopStates:
        """Loop over the last position until the exit rule stops it, and over earlier ones to the rule's limit."""
        check_kind("policy", policy, ExitPolicy)
        done, fresh = self.frontier[1], self.frontier[0] - self.frontier[1]
        if not fresh:
            raise RequestError("the last position was processed before: append a token first")
        program = self.backend.program
        limit = program.exit_at(policy.limit(self.config))
        # Prompt positions cannot be caught up later: they go as deep as the rule allows, whatever a budget says.
        deepest = limit if fresh == 1 else program.exit_at(position_rule(policy).limit(self.config))
        run = DepthRun(self, [self.frontier[0] - 1], FixedDepth(deepest), cancel=cancel)
        stopped: LoopStates | None = None
        try:
            for exited in run:
                states = exited.states
                if stopped is None and (
                    states.loop == limit or (program.may_exit(states.loop) and policy.stops(states)[0])
                ):
                    stopped = states
                if stopped is not None and fresh == 1:
                    break
            assert stopped is not None
            self._skipped += fresh * (self.config.loops - run.loop)
            done = self.frontier[0]
        finally:  # interrupted, the positions are as before: no loop has processed them
            self._set_frontiers(done)
        return exit_states(policy, stopped)

    def _set_frontiers(self, length: int) -> None:
        self.frontier[1:] = [length] * (len(self.frontier) - 1)
        for rows in self._waiting:
            rows.clip(0)


def new_sequence(backend: Backend) -> TokenSequence:
    """An empty sequence of the kind that a backend's loop program needs."""
    if backend.program.coda is not None:
        return CodaSequence(backend)
    return SharedKVSequence(backend) if backend.program.shares_caches else TokenSequence(backend)
