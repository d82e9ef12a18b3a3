"""Lossless speculation: a shallow loop drafts tokens, the deeper loops verify many of them in one call each.

The frontiers make it natural. A draft runs loops 1..d of the newest position and guesses its token from loop d's state;
the next position continues from the guess. The rows then wait for loop d + 1 and go through it together, and what a
draft has computed is what its token needs anyway. A wrong guess truncates the positions after it.

Nothing of the answer depends on what is drafted. The token of a position is what it would be without drafts: the
sampler's choice, with the noise drawn for that token, at the depth where the exit rule stops it. A draft is a guess at
that choice made with the same noise, and is accepted when it was right.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.errors import RequestError
from ouro_edge.runtime.events import Token
from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.make_token import make_token
from ouro_edge.runtime.request import Request
from ouro_edge.runtime.sampling.sampler import Choice, Noise, check_logits
from ouro_edge.runtime.sequence.depth_run import DepthRun, Exited
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.sequence.work import LoopChunk
from ouro_edge.runtime.speculation.draft_policy import DraftPlan, DraftPolicy


@dataclass(frozen=True, slots=True)
class _Guess:
    """What a shallow loop drafted for a position."""

    depth: int  # the loop that made it
    token: int
    confident: bool  # whether another position was drafted after it


@dataclass(slots=True)
class _Position:
    """A position that has begun, and the token after it: a guess until the exit rule has stopped the position."""

    at: int
    states: LoopStates | None = None  # where the rule stopped it; None before
    token: int = -1
    choice: Choice | None = None  # the token of a position that has stopped
    guess: _Guess | None = None


class _TimedRun(DepthRun):
    """A depth run that tells a draft policy what its block calls cost."""

    def __init__(self, decoder: SpeculativeDecoder, position: int) -> None:
        super().__init__(
            decoder.sequence, [position], decoder.exit,
            head=decoder.head, cancel=decoder.request.cancel, settled=decoder.has_open_positions,
        )  # fmt: skip
        self._policy_of_drafts = decoder.policy

    def _advance(self, loop: int, upto: int) -> list[LoopChunk]:
        clock, rows = self._policy_of_drafts.clock, self._sequence.work.rows
        began = clock()
        chunks = super()._advance(loop, upto)
        self._policy_of_drafts.block.add(self._sequence.work.rows - rows, clock() - began)
        return chunks


class SpeculativeDecoder:
    """One generation that drafts. Yields the tokens that the same generation without drafts yields."""

    def __init__(self, sequence: TokenSequence, request: Request, policy: DraftPolicy) -> None:
        self.sequence, self.request, self.policy = sequence, request, policy
        self.exit = request.exit
        self.drafted = self.accepted = 0  # tokens that were drafted and extended, and those of them that were right
        self._limit = sequence.backend.program.exit_at(request.exit.limit(sequence.config))
        self._sampling = request.sampler.start()
        self._generation_id = sequence.generation_id
        self._penalised = request.sampler.repetition_penalty != 1
        self._seen = set(sequence.tokens) if self._penalised else set()
        self._noises: list[Noise | None] = []  # of the next token and those after it, as far as they were drawn
        # Begun and not emitted; tokens behind a position that has not stopped may change.
        self._pending: list[_Position] = []
        self._run: DepthRun | None = None  # over the pending positions that have not stopped
        self._emitted = 0
        self._kept = len(sequence)  # the prompt and every emitted token that has been appended

    def tokens(self) -> Generator[Token, None, None]:
        """Generate after what the sequence holds; its last token must be fresh."""
        try:
            plan = DraftPlan(self._limit, 1)  # the first token does not wait for others
            while True:
                yield from self._round(plan)
                plan = self.policy.choose(self._limit)
        finally:
            if self.sequence.generation_id == self._generation_id:
                self.sequence.truncate(min(len(self.sequence), self._kept))

    @property
    def has_open_positions(self) -> bool:
        """Whether positions have begun that the exit rule has not stopped yet."""
        return self._run is not None and bool(self._run.positions)

    def head(self, rows: Array) -> Array:
        """The backend's head, timed for the draft policy."""
        began = self.policy.clock()
        logits = self.sequence.backend.head(rows)
        self.policy.head.add(len(rows), self.policy.clock() - began)
        return logits

    def _round(self, plan: DraftPlan) -> Iterator[Token]:
        """Draft positions until one should be verified, then verify them loop by loop."""
        rows = min(plan.rows, self.request.max_tokens - self._emitted)
        self._run = None
        self._begin(plan.depth)
        # A first position that has stopped is certain: it has nothing to share a call with.
        while self._pending[0].states is None and len(self._pending) < rows and self._extends(plan.depth):
            self.drafted += self._pending[-1].states is None
            self.sequence.append([self._pending[-1].token])
            self._begin(plan.depth)
        yield from self._emit()
        verifying: Iterator[Exited] = iter(()) if self._run is None else iter(self._run)
        for exited in verifying:
            self._settle(exited)
            yield from self._emit()

    def _begin(self, depth: int) -> None:
        """Run the newest position through the loops up to `depth`, or to where the exit rule stops it."""
        at = len(self.sequence) - 1
        run = _TimedRun(self, at)
        self._pending.append(_Position(at))
        for exited in run.until(depth):
            self._settle(exited)
        if run.positions and self._run is None:
            self._run = run
        elif run.positions and self._run is not None:
            self._run.join(run)

    def _extends(self, depth: int) -> bool:
        """Whether to draft another position after the newest one; if that has not stopped, its token is guessed."""
        position = self._pending[-1]
        if position.states is not None:
            return position.token not in self.request.stop_ids
        assert self._run is not None and self._run.states is not None
        newest = self._run.states.rows([len(self._run.positions) - 1])
        token, confident = self._guess(newest.logits[0], len(self._pending) - 1)
        position.token, position.guess = token, _Guess(depth, token, confident)
        return confident

    def _settle(self, exited: Exited) -> None:
        """Choose the tokens of positions that have stopped; a wrong guess drops what was built on it."""
        if not exited.positions:
            return
        logits = exited.states.logits  # one head call for all, before the rows part
        for row, at in enumerate(exited.positions):
            place = at - self._pending[0].at
            position = self._pending[place]
            position.states = exited.states.rows([row])
            position.choice = self._choose(logits[row], place)
            position.token = position.choice.id
            if position.guess is None:
                continue
            right = position.guess.token == position.token
            self.policy.record_draft(position.guess.depth, position.guess.confident, right)
            extended = place + 1 < len(self._pending)
            self.accepted += right and extended
            if extended and not right:
                del self._pending[place + 1 :]
                self.sequence.truncate(at + 1)
                if self._run is not None:
                    self._run.drop_from(at + 1)
                return

    def _emit(self) -> Iterator[Token]:
        """The positions in front that have stopped: nothing before them is uncertain."""
        while self._pending and (states := self._pending[0].states) is not None:
            position = self._pending[0]
            self.policy.record_token(states.loop)
            if self.policy.needs_probe():
                self._probe(position, states)
            del self._pending[0], self._noises[:1]
            if self._penalised:
                self._seen.add(position.token)
            self._emitted += 1
            assert position.choice is not None
            yield make_token(states, self.sequence.config.loops, position.choice, self.request)
            if self.sequence.generation_id != self._generation_id:
                raise RequestError("another generation has used this sequence meanwhile: give each its own")
            self._kept += 1
            if not self._pending:
                self.sequence.append([position.token])

    def _probe(self, position: _Position, states: LoopStates) -> None:
        """Tell the draft policy what each shallower loop would have drafted for the first pending position."""
        drafted = position.guess.depth if position.guess is not None else 0
        shallower = [states[loop] for loop in range(1, states.loop) if loop != drafted]
        if shallower:
            rows = np.concatenate([state.output for state in shallower])
            for state, logits in zip(shallower, self.head(rows), strict=True):
                token, confident = self._guess(logits, 0)
                self.policy.record_draft(state.loop, confident, token == position.token)

    def _guess(self, logits: Array, place: int) -> tuple[int, bool]:
        """The choice from these logits after pending position `place`, and whether it is confident."""
        top, norm = check_logits(logits)
        token = self._choose(logits, place).id
        confident = self.policy.is_confident(float(np.exp(logits[top] - norm)))
        return token, confident and token not in self.request.stop_ids

    def _choose(self, logits: Array, place: int) -> Choice:
        """The sampler's choice after pending position `place`, with the noise and the seen tokens of that place."""
        while len(self._noises) <= place:
            self._noises.append(self._sampling.draw(len(logits)))
        seen = self._seen
        if self._penalised:
            seen = seen | {position.token for position in self._pending[:place]}
        return self._sampling.choose(logits, seen, self._noises[place])
