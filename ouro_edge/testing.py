"""For the tests of programs that use ouro-edge: a model with scripted answers, and a backend that meters another.

`MockModel` is a `Model` over a `ScriptedBackend`: tokenizer, sequences, stops, sampling, events and async twins are the
real ones, so a program cannot tell the difference, and a test needs neither weights nor time.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.errors import RequestError
from ouro_edge.loading import default_model
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.protocol import Backend, GroupOutput, RowGroup
from ouro_edge.runtime.backend.scripted_backend import ScriptedBackend, ScriptedCache
from ouro_edge.runtime.checks import check_items, check_whole
from ouro_edge.runtime.events import Event
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.request import Request
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.runtime.text.model_text import read_model_text

__all__ = ["MeteredBackend", "MockModel", "ScriptedBackend"]

_CONTEXT_TOKENS = 1 << 20  # nothing is computed, so nothing needs to be short
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' }}"
)


class MockModel(Model):
    """A model with scripted answers: one of `answers` per request, in order, from the start again at the end.

    Token k of an answer takes `depths[k % len(depths)]` loops, which the exit rule may overrule. `prompts` holds the
    prompts received, as text. `forward` and `score` find every token equally probable; `embed` ignores token order.
    RequestError for an empty script, or a depth beyond the model's 4 loops.
    """

    def __init__(self, answers: str | Sequence[str] = "This is a mock.", *, depths: Sequence[int] = (1, 2)) -> None:
        path = default_model()
        if path is None:
            raise RequestError("this build has no built-in model, whose tokenizer the mock would use")
        bundle = open_bundle(path)
        text = replace(read_model_text(bundle), template=ChatTemplate(_TEMPLATE), generation={})
        super().__init__(ScriptedBackend(replace(bundle.config, max_positions=_CONTEXT_TOKENS)), text)
        texts = [answers] if isinstance(answers, str) else list(check_items("answers", answers, "texts"))
        self._depths = [check_whole("a depth", d, 1, self.config.loops) for d in check_items("depths", depths, "loops")]
        if not texts or not self._depths:
            raise RequestError("the script is empty: expected at least one answer and one depth")
        ids = [[*self.tokenizer.encode(text, special=False), self.stop_ids[-1]] for text in texts]
        self._answers = itertools.cycle(ids)
        self._prompts: list[tuple[int, ...]] = []
        self._lock = threading.Lock()

    @property
    def prompts(self) -> list[str]:
        """The prompts received, as text, the first request first."""
        return [self.tokenizer.decode(ids, skip_special=False) for ids in self._prompts]

    def _events(self, sequence: TokenSequence, request: Request) -> Iterator[Event]:
        with self._lock:
            self._prompts.append(request.ids)
            answer = next(self._answers)
        first = sequence.kv_of(1)
        assert isinstance(first, ScriptedCache)
        first.script = _Answer(len(request.ids), answer, self._depths)
        yield from super()._events(sequence, request)


class _Answer:
    """The script of one generation: the answer token by token, its last one for ever."""

    def __init__(self, prompt: int, answer: Sequence[int], depths: Sequence[int]) -> None:
        self._prompt, self._answer, self._depths = prompt, answer, depths

    def __call__(self, ids: NDArray[np.int64], count: int) -> tuple[int, int] | None:
        place = count - self._prompt
        if place < 0:
            return None
        return self._answer[min(place, len(self._answer) - 1)], self._depths[place % len(self._depths)]


class MeteredBackend:
    """A backend in front of another one, which records how many rows each call has.

    `Model(MeteredBackend(model.backend), model.text)` is the same model, metered. `on_block` and `on_head` are called
    with the number of rows ahead of each call.
    """

    def __init__(
        self,
        inner: Backend,
        on_block: Callable[[int], None] | None = None,
        on_head: Callable[[int], None] | None = None,
    ) -> None:
        self.inner = inner
        self.block_rows: list[int] = []
        self.head_rows: list[int] = []
        self._on_block, self._on_head = on_block, on_head

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet, as while copying
            raise AttributeError(name)
        return getattr(self.inner, name)

    def run(self, groups: Sequence[RowGroup], cancel: Cancel | None = None) -> list[GroupOutput]:
        """The inner call, recorded."""
        self.block_rows.append(sum(len(group.rows) for group in groups))
        if self._on_block is not None:
            self._on_block(self.block_rows[-1])
        return self.inner.run(groups, cancel)

    def head(self, rows: Array) -> Array:
        """The inner call, recorded."""
        self.head_rows.append(len(rows))
        if self._on_head is not None:
            self._on_head(len(rows))
        return self.inner.head(rows)
