"""A sequence of a model with a coda: exits are decided in the order of positions, because the coda connects them.

A position that a rule decides on has the exits of all earlier positions behind it. Positions of a prompt before its
last one are not decided on: they exit at the rule's limit. Everything else (frontiers, pending loops, exactness) is as
in `sequence`: `arch.programs.raven_reference.exact` says what a sequence computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.protocol import Backend, Cache
from ouro_edge.runtime.exits.loop_budget import position_rule
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.sequence.coda import Coda
from ouro_edge.runtime.sequence.depth_run import DepthRun, Exited
from ouro_edge.runtime.sequence.hidden_queue import HiddenQueue
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.sequence.work import LoopChunk

POSITIONS_AT_A_TIME = 64  # whose states after every step are kept until a rule has decided on all of them


class CodaSequence(TokenSequence):
    """Tokens, frontiers and waiting rows, those behind the last loop included, and the coda."""

    coda: Coda

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._waiting.append(HiddenQueue(backend.program.width))  # behind the last loop: nothing takes them
        self.coda = Coda(backend, self._count_call)
        self._new_prompt = False  # whether exits of the prompt may be another rule's

    @property
    def exits(self) -> list[int]:
        return self.coda.exits

    @property
    def kv_bytes(self) -> int:
        return super().kv_bytes + self.coda.cache.nbytes

    def caches(self) -> list[tuple[Cache, int]]:
        self.coda.restore()
        return [*super().caches(), (self.coda.cache, len(self.coda))]

    def layout(self, frontier: Sequence[int]) -> tuple[list[int], list[int]]:
        valid, waiting = super().layout(frontier)
        return valid, [*waiting, frontier[-1]]

    def load_state(
        self,
        tokens: Sequence[int],
        frontier: Sequence[int],
        waiting: Sequence[Array],
        prefix: int = 0,
        exits: Sequence[int] = (),
    ) -> None:
        self.coda.load(exits)
        super().load_state(tokens, frontier, waiting, prefix, exits)

    def truncate(self, length: int) -> None:
        super().truncate(length)
        self._waiting[-1].clip(self.frontier[-1])
        self.coda.truncate(length)

    def set_prompt(self, ids: Sequence[int], prefix: int = 0) -> int:
        kept = super().set_prompt(ids, prefix)
        self._new_prompt = True
        return kept

    def draft_obstacle(self, policy: ExitPolicy) -> str | None:
        return None if policy.is_fixed else "the exit rule decides on one position after the other in this model"

    def settle(self, position: int, depth: int, cancel: Cancel | None = None) -> None:
        """Commit every position before this one; those that have not left do so at `depth`.

        Exits of a prompt that was set since, and that another rule or an earlier answer has left at other depths, are
        forgotten. If deeper loops have taken the states at `depth` since, their positions are computed again.
        """
        if self._new_prompt:
            other = (at for at, left in enumerate(self.exits[: len(self) - 1]) if left != depth)
            self.coda.truncate(next(other, len(self.coda)))
            self._new_prompt = False
        start, step = len(self.coda), self.backend.program.step_of(depth)
        if start >= position:
            return
        if self._taken(step) > start:
            tokens = self.tokens[start:]
            self.truncate(start)
            self.append(tokens)
        for earlier in range(1, step + 1):
            self.advance(earlier, position, cancel)
        taken, rows = self._taken(step), self._waiting[step - 1]
        states = rows.peek(position - taken)[start - taken :]
        for first in range(0, len(states), self.backend.rows_per_call):
            part = states[first : first + self.backend.rows_per_call]
            self.coda.commit(start + first, part, [depth] * len(part), cancel)

    def run_positions(
        self, positions: Sequence[int], policy: ExitPolicy, cancel: Cancel | None = None
    ) -> Iterator[Exited]:
        """As for other sequences; a rule that looks at logits decides position by position.

        Steps of the core do not depend on exits, so they are computed for many positions at a time all the same.
        """
        if policy.is_fixed or len(positions) == 1:
            yield from DepthRun(self, positions, policy, cancel=cancel)
            return
        in_a_row = positions[-1] - positions[0] + 1 == len(positions)
        most = POSITIONS_AT_A_TIME if in_a_row else 1
        for first in range(0, len(positions), most):
            part = positions[first : first + most]
            yield from (self._one_by_one if policy.needs_logits else self._together)(part, policy, cancel)

    def _one_by_one(self, positions: Sequence[int], policy: ExitPolicy, cancel: Cancel | None) -> Iterator[Exited]:
        """Every position with the exits of those before it behind it; each step of the core once for all of them."""
        program, known = self.backend.program, dict[int, list[LoopChunk]]()
        end = positions[-1] + 1

        def advance(loop: int, _: int) -> list[LoopChunk]:
            if loop not in known:
                known[loop] = self.advance(program.step_of(loop), end, cancel, since=positions[0])
            return known[loop]

        self.settle(positions[0], program.exit_at(position_rule(policy).limit(self.config)), cancel)
        for step in range(1, program.first_loop + 1):
            self.advance(step, end, cancel)
        for position in positions:
            yield from DepthRun(self, [position], policy, cancel=cancel, advance=advance)

    def _together(self, positions: Sequence[int], policy: ExitPolicy, cancel: Cancel | None) -> Iterator[Exited]:
        """All exits are decided first, and then the coda runs over them."""
        found = [exited for exited in DepthRun(self, positions, policy, cancel=cancel, leave=False) if exited.positions]
        places = np.concatenate([exited.positions for exited in found])
        states = np.concatenate([exited.states.hidden for exited in found])
        depths = np.repeat([exited.states.loop for exited in found], [len(exited.positions) for exited in found])
        order = np.argsort(places)
        outputs = np.empty_like(states)
        outputs[order] = self.coda.commit(positions[0], states[order], depths[order].tolist(), cancel)
        for exited, output in zip(found, np.split(outputs, np.cumsum([len(e.positions) for e in found])), strict=False):
            yield Exited(exited.positions, exited.states.with_output(output))

    def _taken(self, step: int) -> int:
        """Positions whose states after a pass the next pass has taken."""
        return self.frontier[step + 1] if step + 1 < len(self.frontier) else 0

    def _count_call(self) -> None:
        self.work.calls += 1
