"""The half of a model that generates nothing: backend, text files, forward passes, scores, embeddings, states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.weights import Array
from ouro_edge.bundle.fitted_gate import FittedGate
from ouro_edge.errors import NoTokenizerError, RequestError
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.protocol import Backend
from ouro_edge.runtime.checks import check_ids, check_items, check_kind
from ouro_edge.runtime.exits.policies import ExitPolicy, ExitThreshold, FullDepth
from ouro_edge.runtime.forward import (
    HEAD_ROWS,
    AllStates,
    Forward,
    Score,
    States,
    pool,
    run_forward,
    run_score,
    run_states,
)
from ouro_edge.runtime.request import check_count, token_budget
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.sequence.shared_kv import new_sequence
from ouro_edge.runtime.text.model_text import ModelText
from ouro_edge.runtime.text.reasoning import ReasoningTags
from ouro_edge.runtime.text.tokenizer import Tokenizer


class ForwardModel:
    """A backend and its text files, for passes over given tokens. `Model` adds generation."""

    def __init__(
        self,
        backend: Backend,
        text: ModelText | None = None,
        *,
        gate: FittedGate | None = None,
        kv_reason: str | None = None,
    ) -> None:
        self._backend: Backend | None = backend
        self.text = text or ModelText()
        self.config = backend.config
        self.gate = gate  # the fitted gate that the backend uses instead of the checkpoint's
        self.kv, self.kv_reason = backend.kv, kv_reason  # type of the KV cache, and why it was chosen if not fp32
        self.stop_ids = self.text.stop_ids

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the weights. Calls after this raise RequestError."""
        self._backend = None

    @property
    def backend(self) -> Backend:
        """The engine below. RequestError when the model is closed."""
        if self._backend is None:
            raise RequestError("this model is closed: load it again")
        return self._backend

    @property
    def kv_share(self) -> str:
        """ "last" if all loops share one KV cache, else "none"."""
        return "last" if self.backend.program.shares_caches else "none"

    @property
    def name(self) -> str:
        """The model's name, such as "Ouro-1.4B-Thinking"."""
        return self.text.name

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template (Jinja); None when the model has none."""
        return None if self.text.template is None else self.text.template.source

    @property
    def reasoning_tags(self) -> ReasoningTags:
        """The tags that this model puts around its reasoning."""
        return self.text.reasoning_tags

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; NoTokenizerError when it came without one."""
        if self.text.tokenizer is None:
            raise NoTokenizerError(f"{self.text.path} has no tokenizer.json, so it works on token ids only")
        return self.text.tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be used with this model."""
        return self.text.tokenizer is not None

    def new_sequence(self) -> TokenSequence:
        """An empty sequence on this model, to be kept between calls of `generate`."""
        return new_sequence(self.backend)

    def prefix_of(self, ids: Sequence[int]) -> int:
        """How many tokens of a prompt that was a text see each other in both directions: all, in a prefix-LM."""
        return len(ids) if self.config.prefix_lm else 0

    def default_exit(self) -> ExitPolicy:
        """The fitted gate's exit threshold, else the checkpoint's; full depth when it is 1.0 or there is no gate."""
        threshold = self.config.exit_threshold
        if self.gate is not None and self.gate.threshold is not None:
            threshold = self.gate.threshold
        return ExitThreshold(threshold) if self.config.has_gate and threshold < 1.0 else FullDepth()

    def forward(
        self, ids: Sequence[int], *, exit: ExitPolicy | None = None, cancel: Cancel | None = None, prefix: int = 0
    ) -> Forward:
        """Logits of every position, each at the depth where the policy stops it.

        A loop runs only as far as the last position that wants it. The first `prefix` positions see each other in both
        directions, in a model with prefix_lm. Raises Cancelled when `cancel` fires.
        """
        states = self._forward(ids, exit, cancel, prefix=prefix)
        return Forward(self.logits(states.hidden), states.depth, states.exit_probs, states.hidden)

    def states(
        self,
        ids: Sequence[int],
        *,
        cancel: Cancel | None = None,
        sequence: TokenSequence | None = None,
        prefix: int = 0,
    ) -> AllStates:
        """States of every position after every loop: hidden [R, T, W], gate logits [T, R]. All loops run.

        A `sequence`, whose buffers are reused, is emptied first; `prefix` is that of `forward`. RequestError and its
        kinds; Cancelled when `cancel` fires.
        """
        check_kind("cancel", cancel, Cancel, optional=True)
        ids = check_ids(ids, self.config.vocab_size)
        token_budget(len(ids), None, self.config.max_positions)
        return run_states(self._own(sequence), ids, cancel, prefix)

    def depths(
        self, ids: Sequence[int], *, exit: ExitPolicy | None = None, cancel: Cancel | None = None
    ) -> NDArray[np.int64]:
        """The depth [T] at which the exit rule stops every position. Raises Cancelled when `cancel` fires."""
        return self._forward(ids, exit, cancel).depth

    def score(
        self,
        ids: Sequence[int],
        *,
        exit: ExitPolicy | None = None,
        top: int = 0,
        cancel: Cancel | None = None,
        sequence: TokenSequence | None = None,
    ) -> Score:
        """Log-probability of every token after those before it, and the `top` most probable tokens there.

        Every token sees those before it only, also in a model with prefix_lm. Logits are never held for more than 256
        positions. A `sequence` is emptied and then holds ids[:-1], so that
        `generate` with the same ids and sequence goes on without computing them again. RequestError and its kinds.
        """
        top = check_count("top", top, self.config.vocab_size)
        ids = check_ids(ids, self.config.vocab_size)
        token_budget(len(ids), None, self.config.max_positions)
        if len(ids) == 1:
            return Score(np.empty(0), (), np.empty(0, np.int64))
        states = self._forward(ids[:-1], exit, cancel, sequence)
        return run_score(states, ids, top, self.logits, cancel)

    def embed(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        exit: ExitPolicy | None = None,
        cancel: Cancel | None = None,
    ) -> Array:
        """Vectors [N, C] of length 1, one for each text or list of token ids; a single string counts as one text.

        A vector is the mean of the normed states, each at its exit. A model with prefix_lm reads a text, but not token
        ids, in both directions. RequestError when a text has no token.
        """
        texts = [texts] if isinstance(texts, str) else list(check_items("texts", texts, "texts or lists of token ids"))
        vectors = np.empty((len(texts), self.config.hidden_size), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            ids = self._ids("a text", text)
            states = self._forward(ids, exit, cancel, prefix=self.prefix_of(ids) if isinstance(text, str) else 0)
            vector[:] = pool(self.backend.program.output(states.hidden, self.config.hidden_size))
        return vectors

    def logits(self, hidden: Array) -> Array:
        """Logits [T, V] of normed state rows [T, W], as `forward` and `TokenSequence.advance` give them."""
        head, width = self.backend.head, self.backend.program.width
        if getattr(hidden, "shape", ())[1:] != (width,) or not len(hidden):
            raise RequestError(f"hidden is not an array of rows [T, {width}] with T at least 1")
        pieces = [head(hidden[i : i + HEAD_ROWS]) for i in range(0, len(hidden), HEAD_ROWS)]
        return np.concatenate(pieces)

    def _ids(self, name: str, text: str | Iterable[int]) -> list[int]:
        """Token ids of a text, or those that were given instead of one."""
        if isinstance(text, str):
            return self.tokenizer.encode_text(text)
        return check_ids(text, self.config.vocab_size, name)

    def _forward(
        self,
        ids: Sequence[int],
        exit: ExitPolicy | None,
        cancel: Cancel | None,
        sequence: TokenSequence | None = None,
        prefix: int = 0,
    ) -> States:
        """The states of all positions, each at its exit."""
        check_kind("exit", exit, ExitPolicy, optional=True)
        check_kind("cancel", cancel, Cancel, optional=True)
        ids = check_ids(ids, self.config.vocab_size)
        token_budget(len(ids), None, self.config.max_positions)
        return run_forward(self._own(sequence), ids, exit or self.default_exit(), cancel, prefix)

    def _own(self, sequence: TokenSequence | None) -> TokenSequence:
        """The sequence, or a new one. RequestError when it belongs to another model."""
        check_kind("sequence", sequence, TokenSequence, optional=True)
        if sequence is not None and sequence.backend is not self.backend:
            raise RequestError("this sequence belongs to another model: make one with new_sequence")
        return self.new_sequence() if sequence is None else sequence
