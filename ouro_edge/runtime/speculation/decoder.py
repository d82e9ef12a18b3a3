"""Lossless speculation: a shallow loop drafts tokens, the deeper loops check many of them in one call each.

The frontiers make it natural. A draft runs loops 1..d of the newest position and guesses its token from loop d's state;
the next position goes on from the guess. The rows then wait for loop d + 1 and go through it together, and what a
draft has computed is what its token needs anyway. A wrong guess rewinds the positions after it.

Nothing of the answer depends on what is drafted. The token of a position is what it would be without drafts: the
sampler's choice, with the noise drawn for that token, at the depth where the policy stops it. A draft is a guess at
that choice made with the same noise, and is kept when it was right.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.errors import RequestError
from ouro_edge.runtime.exits.loop_states import Evidence
from ouro_edge.runtime.request import Request
from ouro_edge.runtime.sampling.sampler import Noise, check_logits
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.speculation.draft_policy import Draft, Plan
from ouro_edge.runtime.speculation.step import Step, make_step


@dataclass(slots=True)
class _Position:
    """A position that has begun, and the token after it: a guess until the policy has stopped the position."""

    at: int
    evidence: Evidence
    stopped: bool = False
    token: int = -1
    logprob: float = 0.0
    guess: tuple[int, int, bool] | None = None  # the loop that made it, the token, whether to go on from it


class Speculation:
    """One generation that drafts. Yields the steps that the same generation without drafts yields."""

    def __init__(self, sequence: TokenSequence, request: Request, plan: Plan) -> None:
        self._sequence, self._request, self._plan = sequence, request, plan
        self._sampling, self._policy = request.sampler.start(), request.exit.start()
        self._limit = self._policy.limit(sequence.config)
        self._generation_id = sequence.generation_id
        self._penalised = request.sampler.repetition_penalty != 1
        self._seen = set(sequence.tokens) if self._penalised else set()
        self._noises: list[Noise | None] = []  # of the next token and those after it, as far as they were drawn
        self._pending: list[
            _Position
        ] = []  # begun and not given out; tokens behind one that has not stopped may change
        self._given = 0
        self._kept = len(sequence)  # the prompt and every token given out that has been gone on from

    def steps(self) -> Generator[Step, None, None]:
        """Generate ids after what the sequence holds; its last token must be fresh."""
        try:
            draft = Draft(self._limit, 1)  # the first token is not made to wait for others
            while True:
                yield from self._round(draft)
                draft = self._plan.choose(self._limit)
        finally:
            if self._sequence.generation_id == self._generation_id:
                self._sequence.truncate(min(len(self._sequence), self._kept))

    def _round(self, draft: Draft) -> Iterator[Step]:
        """Draft positions until one should be checked, then check them loop by loop."""
        rows = min(draft.rows, self._request.max_tokens - self._given)
        self._begin(draft.depth)
        # A first position that has stopped is certain: there is nothing to share a call with.
        while not self._pending[0].stopped and len(self._pending) < rows and self._goes_on(draft.depth):
            self._sequence.work.drafted += not self._pending[-1].stopped
            self._sequence.append([self._pending[-1].token])
            self._begin(draft.depth)
        yield from self._give()
        for loop in range(draft.depth + 1, self._limit + 1):
            if self._pending:
                self._deepen(loop)
                yield from self._give()

    def _begin(self, depth: int) -> None:
        """Run the newest position through the loops up to `depth`, or to where the policy stops it."""
        at = len(self._sequence) - 1
        evidence: Evidence | None = None
        stops = False
        for loop in range(1, depth + 1):
            gates, hidden = self._advance(loop, [at])
            evidence = (
                Evidence(gates[:, None], hidden, self._head) if evidence is None else evidence.deeper(gates, hidden)
            )
            stops = loop == self._limit or bool(self._policy.stops(evidence)[0])
            if stops:
                break
        assert evidence is not None
        self._pending.append(_Position(at, evidence))
        if stops:
            self._settle([len(self._pending) - 1], self._policy.output(evidence))

    def _deepen(self, loop: int) -> None:
        """Run one more loop over all positions that have not stopped, and settle those that stop there."""
        places = [i for i, position in enumerate(self._pending) if not position.stopped]
        gates, hidden = self._advance(loop, [self._pending[i].at for i in places])
        evidence = Evidence.join([self._pending[i].evidence for i in places]).deeper(gates, hidden)
        stops = np.ones(len(places), bool) if loop == self._limit else self._policy.stops(evidence)
        for row, place in enumerate(places):
            self._pending[place].evidence = evidence.rows([row])
        stopping = np.flatnonzero(stops).tolist()
        if stopping:
            self._settle([places[row] for row in stopping], self._policy.output(evidence.rows(stopping)))

    def _goes_on(self, depth: int) -> bool:
        """Whether to draft another position after the newest one; if that has not stopped, its token is guessed."""
        position = self._pending[-1]
        if not position.stopped:
            position.token, bold = self._guess(position.evidence.logits[0], len(self._pending) - 1)
            position.guess = depth, position.token, bold
            return bold
        return position.token not in self._request.stop_ids

    def _settle(self, places: list[int], output: Evidence) -> None:
        """Choose the tokens of pending positions that have stopped; a wrong guess drops what was built on it."""
        logits = output.logits  # one call of the head for all, before the rows part
        for row, place in enumerate(places):
            position = self._pending[place]
            position.evidence, position.stopped = output.rows([row]), True
            position.token, position.logprob = self._pick(logits[row], place)
            if position.guess is None:
                continue
            depth, token, bold = position.guess
            right = token == position.token
            self._plan.saw_draft(depth, bold, right)
            gone_on = place + 1 < len(self._pending)
            self._sequence.work.accepted += right and gone_on
            if gone_on and not right:
                del self._pending[place + 1 :]
                self._sequence.truncate(position.at + 1)
                return

    def _give(self) -> Iterator[Step]:
        """The positions in front that have stopped: nothing uncertain is left before them."""
        while self._pending and self._pending[0].stopped:
            position = self._pending[0]
            self._plan.saw_token(position.evidence.loop)
            if self._plan.wants_probe():
                self._probe(position)
            del self._pending[0], self._noises[:1]
            if self._penalised:
                self._seen.add(position.token)
            self._given += 1
            loops = self._sequence.config.loops
            yield make_step(position.evidence, loops, position.token, position.logprob, self._request)
            if self._sequence.generation_id != self._generation_id:
                raise RequestError("another generation has used this sequence meanwhile: give each its own")
            self._kept += 1
            if not self._pending:
                self._sequence.append([position.token])

    def _probe(self, position: _Position) -> None:
        """Tell the plan what each loop would have drafted for the first pending position."""
        at, shown = position.evidence.before, []
        while at is not None:
            if position.guess is None or position.guess[0] != at.loop:
                shown.append(at)
            at = at.before
        if shown:
            for loop, logits in zip(shown, self._head(np.concatenate([e.hidden for e in shown])), strict=True):
                token, bold = self._guess(logits, 0)
                self._plan.saw_draft(loop.loop, bold, token == position.token)

    def _guess(self, logits: Array, place: int) -> tuple[int, bool]:
        """The choice from these logits after pending position `place`, and whether to go on from it."""
        top, norm = check_logits(logits)
        token = self._pick(logits, place)[0]
        sure = self._plan.is_bold(float(np.exp(logits[top] - norm)))
        return token, sure and token not in self._request.stop_ids

    def _pick(self, logits: Array, place: int) -> tuple[int, float]:
        """The sampler's choice after pending position `place`, with the noise and the seen tokens of that place."""
        while len(self._noises) <= place:
            self._noises.append(self._sampling.draw(len(logits)))
        seen = self._seen
        if self._penalised:
            seen = seen | {position.token for position in self._pending[:place]}
        return self._sampling.pick(logits, seen, self._noises[place])

    def _advance(self, loop: int, wanted: list[int]) -> tuple[NDArray[np.float64], Array]:
        """Run a loop as far as the last of these positions; their gate logits [T] and states [T, C]."""
        shown: dict[int, tuple[float, Array]] = {}

        def collect(_: int, start: int, hidden: Array, gates: Array) -> None:
            shown.update((at, (float(gates[at - start]), hidden[at - start].copy()))
                         for at in wanted if start <= at < start + len(hidden))  # fmt: skip

        before, began = self._sequence.work.rows, self._plan.clock()
        self._sequence.advance(loop, wanted[-1] + 1, collect, self._request.cancel)
        self._plan.block.add(self._sequence.work.rows - before, self._plan.clock() - began)
        if len(shown) < len(wanted):
            raise RequestError("the last position was processed before: feed a token first")
        return np.array([shown[at][0] for at in wanted]), np.stack([shown[at][1] for at in wanted])

    def _head(self, rows: Array) -> Array:
        """The head, under the plan's clock."""
        began = self._plan.clock()
        logits = self._sequence.head(rows)
        self._plan.head.add(len(rows), self._plan.clock() - began)
        return logits
