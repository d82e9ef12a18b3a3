"""A loaded model: the face of the runtime. Puts bundle, block, head and tokenizer together; holds no running state.

Everything that a Model holds is fixed after loading, so threads may share one; each generation has its own sequence,
and block calls take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import Bundle, Progress
from ouro_edge.bundle.fitted_gate import choose_gate
from ouro_edge.errors import BundleError, NoTokenizerError, RequestError, TemplateError
from ouro_edge.runtime.asynchronous import AsyncTwins
from ouro_edge.runtime.backend.block import Block, Head
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.backend.kv_choice import check_share, choose_kv
from ouro_edge.runtime.checks import check_ids, check_items, check_kind
from ouro_edge.runtime.events import Event
from ouro_edge.runtime.exits.policies import ExitPolicy, ExitThreshold, FullDepth
from ouro_edge.runtime.forward import HEAD_ROWS, Forward, Score, States, pool, run_forward, run_score
from ouro_edge.runtime.generate import generate_events
from ouro_edge.runtime.request import GenerateOptions, Speculate, check_count, make_request, token_budget
from ouro_edge.runtime.sampling.constraint import Constraint
from ouro_edge.runtime.sampling.generation_config import sampler_settings
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.sequence.shared_kv import SharedKVSequence
from ouro_edge.runtime.text.bundle_text import read_json, read_stop_ids, read_template, read_tokenizer
from ouro_edge.runtime.text.chat_template import check_variables
from ouro_edge.runtime.text.tokenizer import Tokenizer
from ouro_edge.system.huge_pages import large_pages


class Model(AsyncTwins):
    """An exported model, ready to generate. Use it as a context manager, or let it go out of scope."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        kv: str = "auto",
        kv_share: str = "none",
        gate: str = "auto",
        prefill_copy: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.bundle = bundle
        self.config = bundle.config
        self.gate = choose_gate(bundle, gate)
        self.kv, self.kv_reason = choose_kv(bundle, kv)
        self.kv_share = check_share(kv_share)
        with large_pages():
            self._block: Block | None = Block(bundle, threads, self.gate, self.kv, prefill_copy, progress)
            self._head: Head | None = Head(bundle, threads, self._block.lock, progress)
        self._embedding = bundle.embedding()
        self._tokenizer = read_tokenizer(bundle)
        self._generation = read_json(bundle, "generation_config.json")
        self._template = read_template(bundle)
        self.stop_ids = read_stop_ids(bundle, self._generation)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the weights. Calls after this raise RequestError."""
        self._block = self._head = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; NoTokenizerError when it came without one."""
        if self._tokenizer is None:
            raise NoTokenizerError(f"{self.bundle.path} has no tokenizer.json, so it works on token ids only")
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be used with this model."""
        return self._tokenizer is not None

    def new_sequence(self) -> TokenSequence:
        """An empty sequence on this model, to be kept between calls of `generate`."""
        kind = SharedKVSequence if self.kv_share == "last" else TokenSequence
        return kind(*self._parts(), self._embedding)

    def default_exit(self) -> ExitPolicy:
        """The fitted gate's exit threshold, else the checkpoint's; full depth when it is 1.0 or there is no gate."""
        threshold = self.config.exit_threshold
        if self.gate is not None and self.gate.threshold is not None:
            threshold = self.gate.threshold
        return ExitThreshold(threshold) if self.config.has_gate and threshold < 1.0 else FullDepth()

    def default_sampler(self, **changes: Any) -> Sampler:
        """What generation_config.json asks for, with `changes` over it; greedy when it does not ask for sampling.

        BundleError when the file asks for what no sampler can do.
        """
        settings = sampler_settings(self._generation)
        try:
            return Sampler(**{**settings, **changes})
        except RequestError as problem:
            Sampler(**changes)  # the caller's own mistake is reported as such
            raise BundleError(f"{self.bundle.path / 'generation_config.json'}: {problem}") from None

    def generate(
        self,
        prompt: str | Iterable[int],
        *,
        max_tokens: int | None = None,
        exit: ExitPolicy | None = None,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        stop_ids: Iterable[int] | None = None,
        top_logprobs: int = 0,
        lens: int = 0,
        constraint: Constraint | None = None,
        cancel: Cancel | None = None,
        sequence: TokenSequence | None = None,
        speculate: Speculate = "auto",
    ) -> Iterator[Event]:
        """Continue a text or a list of token ids; yields a Token for each id and then one Done.

        `exit`, `sampler` and `stop_ids` default to the model's own; `max_tokens` to what the context holds. What a
        `sequence` from `new_sequence` shares with the prompt is kept. Tokens carry the `top_logprobs` likeliest ids at
        their depth and, for `lens`, as many of every loop, each a call of the head. A `constraint`, fresh for this
        answer, says which tokens may come. `speculate` changes time alone. RequestError before anything runs.
        """
        self._parts()
        ids = tuple(self._ids("prompt", prompt))
        if self._tokenizer is None and stop:
            raise NoTokenizerError("stop strings need a tokenizer, which this model lacks: use stop_ids")
        request = make_request(
            self.config,
            ids,
            max_tokens=max_tokens,
            exit=self.default_exit() if exit is None else exit,
            sampler=self.default_sampler() if sampler is None else sampler,
            stop=stop,
            stop_ids=self.stop_ids if stop_ids is None else stop_ids,
            top_logprobs=top_logprobs,
            lens=lens,
            constraint=constraint,
            cancel=cancel,
            speculate=speculate,
            shares_kv=self.kv_share == "last",
        )
        state = self._own(sequence)

        def events() -> Iterator[Event]:
            cached = state.set_prompt(ids)
            yield from generate_events(state, self._tokenizer, request, cached)

        return events()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Event]:
        """Answer the last of `messages` ({"role": ..., "content": ...}); options and events are those of `generate`.

        `template` holds variables for the chat template, such as enable_thinking.
        """
        return self.generate(self.render(messages, **check_variables(template)), **options)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt text that the model's chat template makes of messages. TemplateError when it has none."""
        if self._template is None:
            raise TemplateError(f"{self.bundle.path} has no chat template: use generate with a plain prompt (--raw)")
        return self._template.render(messages, **variables)

    def forward(self, ids: Sequence[int], *, exit: ExitPolicy | None = None, cancel: Cancel | None = None) -> Forward:
        """Logits of every position, each at the depth where the policy stops it.

        A loop runs only as far as the last position that wants it. Raises Cancelled when `cancel` fires.
        """
        states = self._settle(ids, exit, cancel)
        return Forward(self.logits(states.hidden), states.depth, states.exit_probs, states.hidden)

    def score(
        self,
        ids: Sequence[int],
        *,
        exit: ExitPolicy | None = None,
        top: int = 0,
        cancel: Cancel | None = None,
        sequence: TokenSequence | None = None,
    ) -> Score:
        """Log-probability of every token after those before it, and the `top` likeliest in its place.

        Logits are never held for more than 256 positions. A `sequence` is emptied and then holds ids[:-1], so that
        `generate` with the same ids and sequence goes on without computing them again. RequestError and its kinds.
        """
        top = check_count("top", top, self.config.vocab_size)
        ids = check_ids(ids, self.config.vocab_size)
        token_budget(len(ids), None, self.config.max_positions)
        if len(ids) == 1:
            return Score(np.empty(0), (), np.empty(0, np.int64))
        states = self._settle(ids[:-1], exit, cancel, sequence)
        return run_score(states, ids, top, self.logits, cancel)

    def embed(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        exit: ExitPolicy | None = None,
        cancel: Cancel | None = None,
    ) -> Array:
        """Vectors [N, C] of length 1, one for each text or list of token ids; a single string counts as one text.

        A vector is the mean of the normed states, each at its exit. RequestError when a text has no token.
        """
        texts = [texts] if isinstance(texts, str) else list(check_items("texts", texts, "texts or lists of token ids"))
        vectors = np.empty((len(texts), self.config.hidden_size), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            vector[:] = pool(self._settle(self._ids("a text", text), exit, cancel))
        return vectors

    def logits(self, hidden: Array) -> Array:
        """Logits [T, V] of normed hidden rows [T, C], as `forward` and `TokenSequence.advance` give them."""
        _, head = self._parts()
        if getattr(hidden, "shape", ())[1:] != (self.config.hidden_size,) or not len(hidden):
            raise RequestError(f"hidden is no array of rows [T, {self.config.hidden_size}], T at least 1")
        pieces = [head(hidden[i : i + HEAD_ROWS]) for i in range(0, len(hidden), HEAD_ROWS)]
        return np.concatenate(pieces)

    def _ids(self, name: str, text: str | Iterable[int]) -> list[int]:
        """Token ids of a text, or those that were given instead of one."""
        if isinstance(text, str):
            return self.tokenizer.encode(text)
        return check_ids(text, self.config.vocab_size, name)

    def _settle(
        self,
        ids: Sequence[int],
        exit: ExitPolicy | None,
        cancel: Cancel | None,
        sequence: TokenSequence | None = None,
    ) -> States:
        """The states of all positions, each at its exit."""
        check_kind("exit", exit, ExitPolicy, optional=True)
        check_kind("cancel", cancel, Cancel, optional=True)
        ids = check_ids(ids, self.config.vocab_size)
        token_budget(len(ids), None, self.config.max_positions)
        return run_forward(self._own(sequence), ids, exit or self.default_exit(), self.logits, cancel)

    def _own(self, sequence: TokenSequence | None) -> TokenSequence:
        """The sequence, or a new one. RequestError when it belongs to another model."""
        check_kind("sequence", sequence, TokenSequence, optional=True)
        if sequence is not None and sequence.block is not self._parts()[0]:
            raise RequestError("this sequence belongs to another model: make one with new_sequence")
        return self.new_sequence() if sequence is None else sequence

    def _parts(self) -> tuple[Block, Head]:
        if self._block is None or self._head is None:
            raise RequestError("this model is closed: load it again")
        return self._block, self._head
