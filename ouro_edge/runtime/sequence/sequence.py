"""One token sequence and how deep each of its positions has been computed: the frontiers. The heart of the runtime.

    n = frontier[0] >= frontier[1] >= ... >= frontier[R]

frontier[r] counts the positions that loop r has processed. Loop r's KV is valid for exactly those, and the hidden
rows between frontier[r] and frontier[r-1] wait as its input. Everything is made of one operation, `advance(r)`: run
the block on the waiting positions of loop r in one call. A position that stopped early simply waits; when a later
token goes deeper it is computed then, with others in the same call, which reads the weights once. No position is
computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import Embedding
from ouro_edge.errors import ContextOverflowError, RequestError
from ouro_edge.runtime.backend.block import Block, Head
from ouro_edge.runtime.backend.bound_loop import BoundLoop
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.kv import LoopKV
from ouro_edge.runtime.checks import check_ids, check_kind, check_whole
from ouro_edge.runtime.exits.loop_states import Evidence
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.sequence.hidden_queue import Rows

if TYPE_CHECKING:
    from ouro_edge.runtime.speculation.draft_policy import Plan

# Called with loop, first position, hidden rows [T, C] and gate logits [T] of each call.
Sink = Callable[[int, int, Array, Array], None]


@dataclass(frozen=True, slots=True)
class Thought:
    """The last position at the depth where the policy stopped it."""

    evidence: Evidence  # of one position

    @property
    def depth(self) -> int:
        """Loops that the position went through, counted from 1."""
        return self.evidence.loop

    @property
    def hidden(self) -> Array:
        """[C], normed: ready for the head."""
        return self.evidence.hidden[0]

    @property
    def logits(self) -> Array:
        """[V]; the head is called once at most, also when the policy looked at them."""
        return self.evidence.logits[0]


@dataclass(slots=True)
class Work:
    """What a sequence has cost so far."""

    calls: int = 0  # block calls: each reads all weights of the block once
    rows: int = 0  # positions processed, summed over loops
    drafted: int = 0  # tokens that were guessed from a shallow loop and gone on from
    accepted: int = 0  # those of them that the deeper loops confirmed


class TokenSequence:
    """Tokens, frontiers, KV and waiting rows. Not for several threads at once."""

    can_draft = True  # whether `think` is nothing but `advance`, so that speculation may stand in for it
    shares_kv = False  # whether all loops have one cache: see SharedKVSequence

    def __init__(self, block: Block, head: Head, embedding: Embedding) -> None:
        config = block.config
        self.config = config
        self.tokens: list[int] = []
        self.frontier = [0] * (config.loops + 1)
        self.work = Work()
        self.block = block
        self.plan: Plan | None = None  # what earlier generations learnt of speculation here
        self.generation_id = 0  # counts `resume`: a generation notices when another one has taken over
        self._embedding, self._head = embedding, head
        self._loops = self._bind_loops()
        self._waiting = [Rows(config.hidden_size) for _ in range(config.loops - 1)]  # [r]: input of loop r + 2

    def __len__(self) -> int:
        return len(self.tokens)

    def _bind_loops(self) -> list[BoundLoop]:
        return [BoundLoop(self.block, loop) for loop in range(1, self.config.loops + 1)]

    @property
    def head(self) -> Head:
        """The model's head."""
        return self._head

    @property
    def pending_loops(self) -> int:
        """Loops that wait because no token has asked for them, over all positions that have begun."""
        return sum(self.frontier[1] - at for at in self.frontier[2:])

    @property
    def kv_bytes(self) -> int:
        """Bytes held by the keys and values of all loops."""
        return sum(loop.kv.nbytes for loop, _ in self.caches())

    def kv_of(self, loop: int) -> LoopKV:
        """The keys and values of one loop (counted from 1), valid up to its frontier."""
        return self._loops[loop - 1].kv

    def caches(self) -> list[tuple[BoundLoop, int]]:
        """Every cache of this sequence once, with the number of positions that are valid in it."""
        return list(zip(self._loops, self.frontier[1:], strict=True))

    def waiting(self) -> list[Array]:
        """The rows [n, C] that wait as input of loop 2, 3, ..., as views."""
        return [rows.peek(len(rows)) for rows in self._waiting]

    def load_state(self, tokens: Sequence[int], frontier: Sequence[int], waiting: Sequence[Array]) -> None:
        """Become a sequence with this state, its caches made large enough and left for the caller to fill."""
        self.tokens, self.frontier = list(tokens), list(frontier)
        self.load_waiting(waiting)
        for loop, valid in self.caches():
            loop.reserve(valid)

    def load_waiting(self, waiting: Sequence[Array]) -> None:
        """Put the rows that wait in place: as many as the frontiers say."""
        for mine, rows in zip(self._waiting, waiting, strict=True):
            mine.clip(0)
            mine.append(rows)

    def settle(self) -> None:
        """Told when loops were advanced one by one: what is computed may stay as it is."""

    def copy_prefix(self, length: int | None = None) -> TokenSequence:
        """A sequence of its own with the first `length` positions of this one: their state is copied, not computed."""
        most = len(self.tokens)
        length = most if length is None else check_whole("length", length, 0, most, ", the tokens of the sequence")
        frontier = [min(at, length) for at in self.frontier]
        waiting = [rows[: a - b] for rows, (a, b) in zip(self.waiting(), pairwise(frontier[1:]), strict=True)]
        child = type(self)(self.block, self._head, self._embedding)
        child.load_state(self.tokens[:length], frontier, waiting)
        for (mine, _), (its, valid) in zip(self.caches(), child.caches(), strict=True):
            its.kv.fill(valid, mine.kv.valid(valid))
        return child

    def append(self, ids: Sequence[int]) -> None:
        """Append token ids; nothing is computed yet. RequestError for an id outside the vocabulary."""
        ids = check_ids(ids, self.config.vocab_size)
        if len(self.tokens) + len(ids) > self.config.max_positions:
            raise ContextOverflowError(f"{len(self.tokens) + len(ids)} tokens do not fit this model's context of "
                                       f"{self.config.max_positions}: shorten the prompt")  # fmt: skip
        self.tokens.extend(ids)
        self.frontier[0] = len(self.tokens)

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on, as if it had never been fed."""
        length = check_whole("length", length, 0, len(self.tokens), ", the tokens of the sequence")
        del self.tokens[length:]
        self.frontier = [min(at, length) for at in self.frontier]
        for r, rows in enumerate(self._waiting, start=1):
            rows.clip(self.frontier[r] - self.frontier[r + 1])

    def set_prompt(self, ids: Sequence[int]) -> int:
        """Make the sequence hold exactly `ids`, keeping what is computed of the longest common prefix.

        The last token is always left to compute, because its state is what a caller wants next. Returns the number of
        positions kept.
        """
        ids = check_ids(ids, self.config.vocab_size)
        kept = min(common_prefix(self.tokens, ids[:-1]), self.frontier[1])
        self.generation_id += 1
        self.truncate(kept)
        self.append(ids[kept:])
        return kept

    def advance(
        self, loop: int, upto: int | None = None, sink: Sink | None = None, cancel: Cancel | None = None
    ) -> tuple[Array, float] | None:
        """Run loop `loop` (counted from 1) on the positions that wait for it, or only on those before `upto`.

        Returns the hidden row [C] and the gate logit of the last position processed, or None when none waited. When
        `cancel` fires, the positions whose call was finished stay computed.
        """
        loop = check_whole("loop", loop, 1, self.config.loops, ", the loops of the model")
        target = self.frontier[loop - 1]
        if upto is not None:
            target = min(check_whole("upto", upto, 0, len(self.tokens), ", the tokens of the sequence"), target)
        last = None
        while (start := self.frontier[loop]) < target:
            calls = -(-(target - start) // self.block.rows_per_call)
            count = -(-(target - start) // calls)  # in even parts: a short rest would go the slower way
            if loop == 1:
                rows = self._embedding(np.array(self.tokens[start : start + count]))
            else:
                rows = self._waiting[loop - 2].peek(count)
            hidden, gate = self._loops[loop - 1](rows, start, cancel)
            if loop > 1:
                self._waiting[loop - 2].drop(count)
            if loop < self.config.loops:
                self._waiting[loop - 1].append(hidden)
            self.frontier[loop] += count
            self.work.calls += 1
            self.work.rows += count
            if sink is not None:
                sink(loop, start, hidden, gate)
            last = hidden[-1].copy(), float(gate[-1])
        return last

    def think(self, policy: ExitPolicy, cancel: Cancel | None = None) -> Thought:
        """Loop over the last position until the policy stops it. The position must be fresh from `feed`."""
        check_kind("policy", policy, ExitPolicy)
        limit = policy.limit(self.config)
        gates = np.empty((1, limit))
        evidence: Evidence | None = None
        for loop in range(1, limit + 1):
            last = self.advance(loop, cancel=cancel)
            if last is None:
                raise RequestError("the last position was processed before: feed a token first")
            hidden, gates[0, loop - 1] = last
            evidence = Evidence(gates[:, :loop], hidden[None], self._head, evidence)
            if loop == limit or policy.stops(evidence)[0]:
                break
        assert evidence is not None
        return Thought(policy.output(evidence))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading items that are equal."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
