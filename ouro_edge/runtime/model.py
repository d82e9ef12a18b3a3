"""A loaded model: the face of the runtime. Puts bundle, block, head and tokenizer together; holds no running state.

Everything that a Model holds is fixed after loading, so threads may share one; each generation has its own sequence,
and block calls take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ouro_edge.bundle import Bundle, open_bundle
from ouro_edge.errors import BundleError, NoTokenizerError, RequestError, TemplateError
from ouro_edge.exit_gate import read_gate
from ouro_edge.reference import exit_probabilities
from ouro_edge.runtime.block import Block, Head
from ouro_edge.runtime.bundle_text import read_json, read_stop_ids, read_template, read_tokenizer
from ouro_edge.runtime.cancel import Cancel
from ouro_edge.runtime.events import Event
from ouro_edge.runtime.evidence import Evidence
from ouro_edge.runtime.exits import ExitPolicy, ExitThreshold, FullDepth
from ouro_edge.runtime.generate import Request, generate_events, token_budget
from ouro_edge.runtime.generation_config import sampler_settings
from ouro_edge.runtime.kv_choice import choose_kv
from ouro_edge.runtime.sampler import Sampler
from ouro_edge.runtime.sequence import TokenSequence, check_ids
from ouro_edge.runtime.shared_kv import SharedKVSequence
from ouro_edge.runtime.stopping import StopStrings
from ouro_edge.runtime.tokenizer import Tokenizer
from ouro_edge.weights import Array

_HEAD_ROWS = 256  # rows of logits made at a time: 48 MiB at a vocabulary of 49152


@dataclass(frozen=True, slots=True)
class Forward:
    """What one pass over a prompt gives; each position at its own exit."""

    logits: Array  # [T, V]
    depth: NDArray[np.int64]  # [T], counted from 1
    exit_probs: NDArray[np.float64]  # [T, R]; NaN beyond a position's depth, where no gate was asked
    hidden: Array  # [T, C], the normed states that the logits are made of


class Model:
    """An exported model, ready to generate. Use it as a context manager, or let it go out of scope."""

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, kv: str = "auto", kv_share: str = "none",
        gate: str = "auto",
    ) -> None:  # fmt: skip
        self.bundle = bundle
        self.config = bundle.config
        self.gate = read_gate(bundle) if _wants_fitted(gate) else None
        self.kv, self.kv_reason = choose_kv(bundle, kv)
        if kv_share not in ("none", "last"):
            raise RequestError(f"kv_share is {kv_share!r}; wanted 'none' (exact) or 'last' (all loops share one cache)")
        self.kv_share = kv_share
        self._block: Block | None = Block(bundle, threads, self.gate, self.kv)
        self._head: Head | None = Head(bundle, threads)
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
        cancel: Cancel | None = None,
        sequence: TokenSequence | None = None,
    ) -> Iterator[Event]:
        """Continue a text or a list of token ids; yields a Token for each id and then one Done.

        `exit`, `sampler` and `stop_ids` default to the model's own; `max_tokens` to what the context holds. With a
        `sequence` from `new_sequence`, what it shares with the prompt is not computed again. Arguments are checked at
        once, before the first event is asked for: RequestError and its kinds.
        """
        self._parts()
        ids = tuple(self.tokenizer.encode(prompt) if isinstance(prompt, str) else _ids("prompt", prompt))
        check_ids(ids, self.config.vocab_size)
        _check_kind("exit", exit, ExitPolicy)
        _check_kind("sampler", sampler, Sampler)
        _check_kind("cancel", cancel, Cancel)
        if sequence is not None and sequence.block is not self._block:
            raise RequestError("this sequence belongs to another model: make one with new_sequence")
        stops = StopStrings(stop)
        if stops and self._tokenizer is None:
            raise NoTokenizerError("stop strings need a tokenizer, which this model lacks: use stop_ids")
        policy = exit or self.default_exit()
        policy.limit(self.config)
        ends = self.stop_ids if stop_ids is None else tuple(_ids("stop_ids", stop_ids))
        check_ids(ends, self.config.vocab_size)
        budget = token_budget(len(ids), max_tokens, self.config.max_positions)
        request = Request(ids, budget, policy, sampler or self.default_sampler(), frozenset(ends), stops, cancel)
        state = self.new_sequence() if sequence is None else sequence

        def events() -> Iterator[Event]:
            cached = state.resume(ids)
            yield from generate_events(state, self._tokenizer, request, cached)

        return events()

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, template: Mapping[str, Any] | None = None, **options: Any
    ) -> Iterator[Event]:
        """Answer the last of `messages` ({"role": ..., "content": ...}); options and events are those of `generate`.

        `template` holds variables for the chat template, such as enable_thinking.
        """
        return self.generate(self.render(messages, **(template or {})), **options)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt text that the model's chat template makes of messages. TemplateError when it has none."""
        if self._template is None:
            raise TemplateError(f"{self.bundle.path} has no chat template: use generate with a plain prompt (--raw)")
        return self._template.render(messages, **variables)

    def forward(self, ids: Sequence[int], *, exit: ExitPolicy | None = None, cancel: Cancel | None = None) -> Forward:
        """Logits of every position, each at the depth where the policy stops it.

        A loop runs only as far as the last position that wants it. Raises Cancelled when `cancel` fires.
        """
        ids = list(ids)
        token_budget(len(ids), None, self.config.max_positions)
        sequence = self.new_sequence()
        sequence.feed(ids)
        policy = exit or self.default_exit()
        limit = policy.limit(self.config)
        depth = np.zeros(len(ids), np.int64)
        gates = np.full((len(ids), self.config.loops), np.nan)
        hidden = np.empty((len(ids), self.config.hidden_size), np.float32)

        evidence: dict[int, Evidence] = {}  # by first position: calls of all loops start at the same places

        def collect(loop: int, start: int, rows: Array, logits: Array) -> None:
            part = slice(start, start + len(rows))
            gates[part, loop - 1] = logits
            before = evidence.get(start)
            now = Evidence(gates[part, :loop], rows.copy(), self.logits, before and before.first(len(rows)))
            evidence[start] = now
            running = depth[part] == 0
            stopping = running & (np.ones(len(rows), bool) if loop == limit else policy.stops(now))
            if stopping.any():
                hidden[part][stopping] = policy.output(now).hidden[stopping]
                depth[part][stopping] = loop

        for loop in range(1, limit + 1):
            sequence.advance(loop, int(np.flatnonzero(depth == 0)[-1]) + 1, collect, cancel)
            if depth.all():
                break
        probs = np.full((len(ids), self.config.loops), np.nan)
        for loop in range(1, limit + 1):
            at = depth == loop
            probs[at] = exit_probabilities(gates[at, :loop], self.config.loops)
        return Forward(self.logits(hidden), depth, probs, hidden)

    def logits(self, hidden: Array) -> Array:
        """Logits [T, V] of normed hidden rows [T, C], as `forward` and `TokenSequence.advance` give them."""
        _, head = self._parts()
        pieces = [head(hidden[i : i + _HEAD_ROWS]) for i in range(0, len(hidden), _HEAD_ROWS)]
        return np.concatenate(pieces)

    def _parts(self) -> tuple[Block, Head]:
        if self._block is None or self._head is None:
            raise RequestError("this model is closed: load it again")
        return self._block, self._head


def load(
    path: Path, *, threads: int | None = None, kv: str = "auto", kv_share: str = "none", context: int | None = None,
    gate: str = "auto",
) -> Model:  # fmt: skip
    """Open an exported directory. BundleError in one line when it cannot be used."""
    bundle = open_bundle(path)
    bundle = bundle if context is None else bundle.with_context(context)
    return Model(bundle, threads=threads, kv=kv, kv_share=kv_share, gate=gate)


def _wants_fitted(gate: str) -> bool:
    if gate not in ("auto", "original"):
        raise RequestError(f"gate is {gate!r}; wanted 'auto' (the fitted one where there is one) or 'original'")
    return gate == "auto"


def _ids(name: str, value: Any) -> Iterable[int]:
    if not isinstance(value, Iterable):
        raise RequestError(f"{name} is {value!r}; wanted a list of token ids")
    return value


def _check_kind(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise RequestError(f"{name} is {value!r}; wanted {kind.__name__} or None")
