"""A model for the tests of programs that use ouro-edge: scripted answers, real events. Loads no onnxruntime.

`MockModel` is a `Model` whose block and head are replaced: tokenizer, sequences, stops, sampling, events and async
twins are the real ones, so a program cannot tell the difference, and a test needs no weights and no patience.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ouro_edge.bundle import Embedding, open_bundle
from ouro_edge.config import ModelConfig
from ouro_edge.errors import RequestError
from ouro_edge.loading import default_model
from ouro_edge.runtime.block import Block, Head
from ouro_edge.runtime.bound_loop import BoundLoop
from ouro_edge.runtime.bundle_text import read_stop_ids, read_tokenizer
from ouro_edge.runtime.cancel import Cancel
from ouro_edge.runtime.evidence import Evidence
from ouro_edge.runtime.exits import ExitPolicy
from ouro_edge.runtime.kv import LoopKV
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.sequence import Thought, TokenSequence
from ouro_edge.runtime.template import ChatTemplate
from ouro_edge.runtime.turns import Turns
from ouro_edge.weights import Array

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
        self._block, self._head = _MockBlock(self.config), _MockHead(self.config)
        self._embedding = self.bundle.embedding()
        self._tokenizer = read_tokenizer(self.bundle)
        self._generation = {}
        self._template = ChatTemplate(_TEMPLATE)
        self.stop_ids = read_stop_ids(self.bundle, {})
        self.prompts: list[str] = []
        texts = [answers] if isinstance(answers, str) else list(answers)
        if not texts or not depths or not all(1 <= depth <= self.config.loops for depth in depths):
            raise RequestError(f"wanted at least one answer, and depths from 1 to {self.config.loops}")
        self._depths = tuple(depths)
        self._script = itertools.cycle([self.tokenizer.encode(text, special=False) for text in texts])
        self._script_lock = threading.Lock()

    def new_sequence(self) -> TokenSequence:
        self._parts()
        return _ScriptedSequence(self, self._embedding)

    def _next_answer(self, prompt: list[int]) -> list[int]:
        with self._script_lock:
            self.prompts.append(self.tokenizer.decode(prompt, skip_special=False))
            return [*next(self._script), self.config.stop_token_ids[-1]]


class _MockBlock(Block):
    """A block that returns the rows that it is given and has no opinion about exits."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.kv = config, "fp32"
        self.turns = Turns()
        self._many = None


class _MockLoop(BoundLoop):
    def __init__(self, block: Block) -> None:
        self._block, self.kv = block, LoopKV(block.config)

    def __call__(self, rows: Array, start: int, cancel: Cancel | None = None) -> tuple[Array, Array]:
        with self._block.turns.take(cancel):
            if cancel is not None:
                cancel.check()
            return rows, np.zeros(len(rows), np.float32)


class _MockHead(Head):
    """A head that finds every token equally likely."""

    def __init__(self, config: ModelConfig) -> None:
        self._size = config.vocab_size

    def __call__(self, rows: Array) -> Array:
        return np.zeros((len(rows), self._size), np.float32)


class _ScriptedSequence(TokenSequence):
    """A sequence that thinks what the script says, and counts loops like any other."""

    def __init__(self, model: MockModel, embedding: Embedding) -> None:
        super().__init__(*model._parts(), embedding)
        self._model = model
        self._answer: list[int] = []
        self._start = 0
        self._answering = -1  # the turn that the answer belongs to

    def _bind_loops(self) -> list[BoundLoop]:
        return [_MockLoop(self.block) for _ in range(self.config.loops)]

    def think(self, policy: ExitPolicy, cancel: Cancel | None = None) -> Thought:
        if self._answering != self.turn:
            self._answering, self._start = self.turn, len(self.tokens)
            self._answer = self._model._next_answer(self.tokens)
        said = len(self.tokens) - self._start
        token = self._answer[min(said, len(self._answer) - 1)]
        wanted = self._model._depths[said % len(self._model._depths)]
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
        return Thought(evidence)
