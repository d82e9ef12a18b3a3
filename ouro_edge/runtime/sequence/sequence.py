"""One token sequence and how deep each of its positions has been computed: the frontiers. The heart of the runtime.

    n = frontier[0] >= frontier[1] >= ... >= frontier[R]

frontier[r] counts the positions that loop r has processed. Loop r's KV is valid for exactly those, and the hidden
rows between frontier[r] and frontier[r-1] wait as its input. Everything is made of two halves of one operation:
`pending(r)` is the group of rows that wait for loop r, and `commit(r)` takes in what the backend made of it. A position
that stopped early waits; when a later token goes deeper it is computed with others in the same call, which reads the
weights once. No position is computed twice in a loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ouro_edge.arch.weights import Array
from ouro_edge.errors import ContextOverflowError, RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.protocol import Backend, Cache, GroupOutput, RowGroup
from ouro_edge.runtime.checks import check_ids, check_kind, check_whole
from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.sequence.coda import WithoutCoda
from ouro_edge.runtime.sequence.depth_run import DepthRun, Exited
from ouro_edge.runtime.sequence.hidden_queue import HiddenQueue
from ouro_edge.runtime.sequence.old_names import renamed
from ouro_edge.runtime.sequence.prefix import check_prefix, common_prefix
from ouro_edge.runtime.sequence.work import LoopChunk, Work

# Positions at the end of a prompt that are computed in one call. One row takes another kernel than two or more, with
# another rounding of activations; from two on the number of rows makes no difference.
TAIL_TOKENS = 2


class TokenSequence(WithoutCoda):
    """Tokens, frontiers, KV and waiting rows of one sequence. Not safe for use by several threads at once."""

    kv_share = "none"  # "last" if all loops share one cache: see SharedKVSequence

    def __init__(self, backend: Backend) -> None:
        program = backend.program
        self.backend, self.config = backend, backend.config
        self.tokens: list[int] = []
        self.prefix = 0  # positions at the start that see each other in both directions, in a model with prefix_lm
        self.frontier = [0] * (len(program.passes) + 1)
        self.work = Work()
        self.generation_id = 0  # counts `set_prompt`: a generation notices when another one has taken over
        self._version = 0  # changes when positions are dropped or replaced
        self._changing = False  # tokens, frontiers and waiting rows may disagree: an exception has ended a change
        self._caches = [backend.new_cache(index) for index in range(1 + max(step.cache for step in program.passes))]
        self._waiting = [HiddenQueue(program.width) for _ in program.passes[1:]]  # [r]: input of loop r + 2

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def pending_loops(self) -> int:
        """Loops that no token has needed yet, of those a model usually runs, summed over positions that have begun."""
        first = self.backend.program.step_of(1)
        return sum(max(0, self.frontier[first] - at) for at in self.frontier[first + 1 : first + self.config.loops])

    @property
    def kv_bytes(self) -> int:
        """Bytes held by the keys and values of all loops."""
        return sum(cache.nbytes for cache in self._caches)

    def kv_of(self, loop: int) -> Cache:
        """The keys and values of one loop (counted from 1), valid up to its frontier."""
        return self._caches[self.backend.program.passes[loop - 1].cache]

    def caches(self) -> list[tuple[Cache, int]]:
        """Every cache of this sequence once, with the number of positions that are valid in it."""
        self._repair()
        valid, _ = self.layout(self.frontier)
        return list(zip(self._caches, valid, strict=True))

    def layout(self, frontier: Sequence[int]) -> tuple[list[int], list[int]]:
        """For given frontiers: valid positions of every cache, and rows waiting for loop 2, 3, ..."""
        return list(frontier[1:]), [above - at for above, at in pairwise(frontier[1:])]

    def waiting(self) -> list[Array]:
        """The rows [n, W] that wait as input of loop 2, 3, ..., as views."""
        return [rows.peek(len(rows)) for rows in self._waiting]

    def load_state(
        self,
        tokens: Sequence[int],
        frontier: Sequence[int],
        waiting: Sequence[Array],
        prefix: int = 0,
        exits: Sequence[int] = (),
    ) -> None:
        """Take over this state; caches get room for their valid positions, which the caller then fills."""
        self.tokens, self.frontier, self.prefix = list(tokens), list(frontier), prefix
        self._version += 1
        self.load_waiting(waiting)
        for cache, valid in self.caches():
            cache.reserve(valid)

    def load_waiting(self, waiting: Sequence[Array]) -> None:
        """Put the waiting rows in place: as many as the frontiers say."""
        for mine, rows in zip(self._waiting, waiting, strict=True):
            mine.clip(0)
            mine.append(rows)

    def copy_prefix(self, length: int | None = None) -> TokenSequence:
        """A new sequence with the first `length` positions of this one (default: all): state copied, not computed."""
        self._repair()
        most = len(self.tokens)
        length = most if length is None else check_whole("length", length, 0, most, ", the tokens of the sequence")
        frontier = self._clipped(length)
        _, counts = self.layout(frontier)
        waiting = [rows[:count] for rows, count in zip(self.waiting(), counts, strict=True)]
        child = type(self)(self.backend)
        child.load_state(self.tokens[:length], frontier, waiting, min(self.prefix, length), self.exits[:length])
        for (mine, _), (copy, valid) in zip(self.caches(), child.caches(), strict=True):
            copy.fill(valid, mine.valid(valid))
        return child

    def append(self, ids: Sequence[int]) -> None:
        """Append token ids; nothing is computed yet. RequestError for an id outside the vocabulary."""
        self._repair()
        ids = check_ids(ids, self.config.vocab_size)
        if len(self.tokens) + len(ids) > self.config.max_positions:
            raise ContextOverflowError(f"{len(self.tokens) + len(ids)} tokens do not fit this model's context of "
                                       f"{self.config.max_positions}: shorten the prompt")  # fmt: skip
        self._changing = True
        self.tokens.extend(ids)
        self.frontier[0] = len(self.tokens)
        self._changing = False

    def truncate(self, length: int) -> None:
        """Drop every position from `length` on, as if it had never been appended."""
        self._repair()
        length = check_whole("length", length, 0, len(self.tokens), ", the tokens of the sequence")
        self._version += 1
        self._changing = True
        del self.tokens[length:]
        self.frontier, self.prefix = self._clipped(length), min(self.prefix, length)
        for rows, (above, at) in zip(self._waiting, pairwise(self.frontier[1:]), strict=False):
            rows.clip(above - at)
        self._changing = False

    def _clipped(self, length: int) -> list[int]:
        """The frontiers when only `length` positions are kept; nothing is computed of a prefix that is cut."""
        if length < self.prefix:
            return [length] + [0] * (len(self.frontier) - 1)
        return [min(at, length) for at in self.frontier]

    def set_prompt(self, ids: Sequence[int], prefix: int = 0) -> int:
        """Make the sequence hold exactly `ids`, keeping what is computed of the longest common beginning.

        The first `prefix` positions see each other in both directions, so they are computed in one call, and kept as a
        whole or not at all. RequestError for a prefix in a model without prefix_lm, or longer than `ids`.

        The last tokens are always left to compute: the state of the last one is what a caller needs next, and with
        `TAIL_TOKENS` of them a prompt's end goes through the kernels in the same way whether or not its beginning was
        kept, so that a repeated request gets the same answer. Returns the number of positions kept.
        """
        self._repair()
        ids = check_ids(ids, self.config.vocab_size)
        prefix = check_prefix(self.config, prefix, len(ids))
        kept = min(common_prefix(self.tokens, ids[:-TAIL_TOKENS]), self.frontier[1])
        if prefix != self.prefix or kept < prefix:
            kept = 0
        self.generation_id += 1
        self.truncate(kept)
        self.append(ids[kept:])
        self.prefix = prefix
        return kept

    def pending(self, loop: int, upto: int | None = None) -> RowGroup | None:
        """The next group of rows that wait for a loop (counted from 1), or None; positions before `upto` only.

        A group has at most `backend.rows_per_call` rows, unless it is a prefix; more waiting rows are split into even
        parts, because a short rest would take the slower path. It stays pending until `commit`.
        """
        return self._pending(loop, self._target(loop, upto))

    def commit(self, loop: int, group: RowGroup, output: GroupOutput) -> None:
        """Take in the output of a group from `pending(loop)`: move the frontier, queue the rows for the next loop.

        RequestError when the sequence was truncated or the loop has advanced since.
        """
        self._repair()
        count = len(group.rows)
        if group.version != self._version or group.start != self.frontier[loop]:
            raise RequestError("the sequence has changed since this group was pending: take a new one")
        self._changing = True
        if loop > 1:
            self._waiting[loop - 2].drop(count)
        if loop <= len(self._waiting):
            self._waiting[loop - 1].append(output.states)
        self.frontier[loop] += count
        self._changing = False
        self.work.calls += 1
        self.work.rows += count * (loop > self.backend.program.first_loop)

    def advance(
        self, loop: int, upto: int | None = None, cancel: Cancel | None = None, *, since: int = 0
    ) -> list[LoopChunk]:
        """Run one loop (counted from 1) on the positions that wait for it, or only on those before `upto`.

        Returns what was computed, in order; empty when nothing waited. Chunks that end before position `since` are left
        out. When `cancel` fires, positions whose call had finished stay computed.
        """
        chunks, target = [], self._target(loop, upto)
        while (group := self._pending(loop, target)) is not None:
            (output,) = self.backend.run([group], cancel)
            self.commit(loop, group, output)
            if self.frontier[loop] > since:
                chunks.append(LoopChunk(group.start, output.states.copy(), output.gates.copy()))
        return chunks

    def _target(self, loop: int, upto: int | None) -> int:
        """The position that a loop can advance to."""
        self._repair()
        loop = check_whole("loop", loop, 1, len(self.frontier) - 1, ", the loops of the model")
        if upto is None:
            return self.frontier[loop - 1]
        upto = check_whole("upto", upto, 0, len(self.tokens), ", the tokens of the sequence")
        return min(upto, self.frontier[loop - 1])

    def _pending(self, loop: int, target: int) -> RowGroup | None:
        start = self.frontier[loop]
        if start >= target:
            return None
        if start < self.prefix:  # never split: every row needs the keys of all
            count = self.prefix
        else:
            calls = -(-(target - start) // self.backend.rows_per_call)
            count = -(-(target - start) // calls)
        if loop == 1:
            rows = self.backend.embed(self.tokens[start : start + count], start)
        else:
            rows = self._waiting[loop - 2].peek(count)
        return RowGroup(self.kv_of(loop), start, rows, self._version, start < self.prefix)

    def run_positions(
        self, positions: Sequence[int], policy: ExitPolicy, cancel: Cancel | None = None
    ) -> Iterator[Exited]:
        """Loop over ascending positions until the exit rule has stopped each; yields those that stop, loop by loop."""
        yield from DepthRun(self, positions, policy, cancel=cancel)

    def run_until_exit(self, policy: ExitPolicy, cancel: Cancel | None = None) -> LoopStates:
        """Loop over the last position until the exit rule stops it. The position must be fresh from `append`.

        Returns its states; `loop` is its depth, `hidden` [1, W] is normed and ready for the head.
        """
        check_kind("policy", policy, ExitPolicy)
        for exited in self.run_positions([len(self.tokens) - 1], policy, cancel):
            if exited.positions:
                return exited.states
        raise AssertionError("a run ended without an exit")

    def _repair(self) -> None:
        """After a change that Ctrl-C has ended half-way: all positions are computed again, because rows may be lost."""
        if self._changing:
            self._version += 1
            self.frontier = [len(self.tokens)] + [0] * (len(self.frontier) - 1)
            for rows in self._waiting:
                rows.clip(0)
            self._changing = False

    feed = renamed("feed", "append")
    resume = renamed("resume", "set_prompt")
    rewind = renamed("rewind", "truncate")
    fork = renamed("fork", "copy_prefix")
