"""A model for the tests of programs that use ouro-edge: scripted answers, real events. Loads no onnxruntime.

`MockModel` is a `Model` whose block and head are replaced: tokenizer, sequences, stops, sampling, events and async
twins are the real ones, so a program cannot tell the difference, and a test needs no weights and no patience.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.errors import RequestError
from ouro_edge.loading import default_model
from ouro_edge.runtime.backend.block import Block, Head
from ouro_edge.runtime.backend.bound_loop import BoundLoop
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.fair_lock import FairLock
from ouro_edge.runtime.backend.kv import LoopKV
from ouro_edge.runtime.checks import check_items, check_whole
from ouro_edge.runtime.exits.loop_states import Evidence
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.sequence.sequence import Thought, TokenSequence
from ouro_edge.runtime.text.bundle_text import read_stop_ids, read_tokenizer
from ouro_edge.runtime.text.chat_template import ChatTemplate

_CONTEXT = 1 << 20  # nothing is computed, so nothing needs to be short
_SURE = 30.0  # a logit beside which all others count for nothing
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' }}"
)


class MockModel(Model):
    """A model that says what it is told to: one of `answers` to each request, in turn, from the start again at the end.

    Token k of an answer wants `depths[k % len(depths)]` loops, which the exit policy may overrule. `prompts` holds what
    was asked, as text. `forward` and `score` find every token equally likely; `embed` does not see the order of tokens.
    RequestError for an empty script or a depth that the model (4 loops) has not.
    """

    def __init__(self, answers: str | Sequence[str] = "This is a mock.", *, depths: Sequence[int] = (1, 2)) -> None:
        path = default_model()
        if path is None:
            raise RequestError("this build has no model of its own, whose tokenizer the mock would use")
        self.bundle = open_bundle(path)
        self.config = replace(self.bundle.config, max_positions=_CONTEXT)
        self.gate, self.kv, self.kv_share, self.kv_reason = None, "fp32", "none", ""
        self._embedding = self.bundle.embedding()
        self._tokenizer = read_tokenizer(self.bundle)
        self._generation = {}
        self._template = ChatTemplate(_TEMPLATE)
        self.stop_ids = read_stop_ids(self.bundle, {})
        texts = [answers] if isinstance(answers, str) else list(check_items("answers", answers, "texts"))
        depths = [check_whole("a depth", d, 1, self.config.loops) for d in check_items("depths", depths, "loops")]
        if not texts or not depths:
            raise RequestError("wanted at least one answer and one depth")
        ids = [[*self.tokenizer.encode(text, special=False), self.stop_ids[-1]] for text in texts]
        self._script = _Script(ids, depths)
        self._block, self._head = _MockBlock(self.config, self._script), _MockHead(self.config)

    @property
    def prompts(self) -> list[str]:
        """What was asked, as text, the first request first."""
        return [self.tokenizer.decode(ids, skip_special=False) for ids in self._script.prompts]

    def new_sequence(self) -> TokenSequence:
        return _ScriptedSequence(*self._parts(), self._embedding)


class _Script:
    """The answers, handed out in turn, and the prompts that they were handed out for. For several threads."""

    def __init__(self, answers: Sequence[list[int]], depths: Sequence[int]) -> None:
        self.depths = tuple(depths)
        self.prompts: list[list[int]] = []
        self._answers = itertools.cycle(answers)
        self._lock = threading.Lock()

    def next_answer(self, prompt: list[int]) -> list[int]:
        with self._lock:
            self.prompts.append(list(prompt))
            return next(self._answers)


class _MockBlock(Block):
    """A block that returns the rows that it is given and has no opinion about exits."""

    def __init__(self, config: ModelConfig, script: _Script) -> None:
        self.config, self.kv, self.script = config, "fp32", script
        self.state_id = "mock"
        self.lock = FairLock()
        self._many = None


class _MockLoop(BoundLoop):
    def __init__(self, block: Block) -> None:
        self._block, self.kv = block, _NoKV(block.config)

    def __call__(self, rows: Array, start: int, cancel: Cancel | None = None) -> tuple[Array, Array]:
        with self._block.lock.hold(cancel):
            if cancel is not None:
                cancel.check()
            return rows, np.zeros(len(rows), np.float32)

    def reserve(self, length: int) -> None:
        pass


class _NoKV(LoopKV):
    """Keys and values that take no memory: there is nothing to keep."""

    def valid(self, length: int) -> list[NDArray[Any]]:
        return []

    def fill(self, length: int, arrays: Iterable[NDArray[Any]]) -> None:
        pass


class _MockHead(Head):
    """A head that finds every token equally likely."""

    def __init__(self, config: ModelConfig) -> None:
        self._size = config.vocab_size

    def __call__(self, rows: Array) -> Array:
        return np.zeros((len(rows), self._size), np.float32)


class _ScriptedSequence(TokenSequence):
    """A sequence that thinks what the script says, and counts loops like any other."""

    can_draft = False

    _answer: list[int] = []  # noqa: RUF012  (never changed in place)
    _start = 0  # where the answer begins
    _answering = -1  # the turn that the answer belongs to

    def _bind_loops(self) -> list[BoundLoop]:
        return [_MockLoop(self.block) for _ in range(self.config.loops)]

    def think(self, policy: ExitPolicy, cancel: Cancel | None = None) -> Thought:
        assert isinstance(self.block, _MockBlock)
        script = self.block.script
        if self._answering != self.generation_id:
            self._answering, self._start = self.generation_id, len(self.tokens)
            self._answer = script.next_answer(self.tokens)
        said = len(self.tokens) - self._start
        token = self._answer[min(said, len(self._answer) - 1)]
        wanted = script.depths[said % len(script.depths)]
        limit = policy.limit(self.config)
        gates = np.where(np.arange(1, limit + 1) < wanted, -_SURE, _SURE)[None]  # [1, r]

        def head(rows: Array) -> Array:
            logits = np.zeros((len(rows), self.config.vocab_size), np.float32)
            logits[:, token] = _SURE
            return logits

        evidence: Evidence | None = None
        for loop in range(1, limit + 1):
            last = self.advance(loop, cancel=cancel)
            assert last is not None
            evidence = Evidence(gates[:, :loop], last[0][None], head, evidence)
            if loop == limit or policy.stops(evidence)[0]:
                break
        assert evidence is not None
        return Thought(policy.output(evidence))
