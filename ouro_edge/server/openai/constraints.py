"""JSON schemas as token constraints. The only module that imports llguidance.

The JSON is compact except for a space after commas and colons: with free white space, a small model may never finish.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.errors import RequestError, one_line
from ouro_edge.runtime.sampling.constraint import Constraint
from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.limits import MAX_SCHEMA
from ouro_edge.server.openai.call_text import CLOSING_TAG, OPENING_TAG
from ouro_edge.server.openai.json_guard import JsonGuard, Vocabulary
from ouro_edge.server.openai.schemas import UnsupportedSchema, enforceable

if TYPE_CHECKING:
    import llguidance

    from ouro_edge.runtime.model import Model

ANY_OBJECT: dict[str, Any] = {"type": "object"}


_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Schemas:
    """Compiles JSON schemas into constraints for one model; thread-safe."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._bytes: Vocabulary | None = None

    def compile(self, schema: Mapping[str, Any], param: str) -> Callable[[], Constraint]:
        """A factory of constraints, one per answer. ApiError 400 for `param` when the schema is not supported."""
        import llguidance

        text = json.dumps(_rewritten(schema, param))
        # Overrides take precedence over the schema's "x-guidance".
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_LAYOUT)
        return self._factory(grammar, param)

    def compile_choice(
        self, schema: Mapping[str, Any], param: str, call: Mapping[str, Any], *, parallel: bool
    ) -> Callable[[], Constraint]:
        """As `compile`, but the answer may instead be a call, or several if `parallel`, between <tool_call> tags."""
        import llguidance

        self.compile(call, "tools")  # each on its own, so that an error names the right field
        self.compile(schema, param)
        answer, called = (json.dumps({**_rewritten(part, param), "x-guidance": _LAYOUT}) for part in (schema, call))
        opening, closing = (json.dumps(text) for text in (f"{OPENING_TAG}\n", f"\n{CLOSING_TAG}"))
        more = ' ("\\n" call)*' if parallel else ""
        grammar = llguidance.LLMatcher.grammar_from_lark(
            f"start: answer | call{more}\nanswer: %json {answer}\ncall: {opening} object {closing}\n"
            f"object: %json {called}\n"
        )
        return self._factory(grammar, param)

    def _factory(self, grammar: str, param: str) -> Callable[[], Constraint]:
        import llguidance

        try:
            vocabulary = self._vocabulary()
        except ValueError as problem:
            message = (
                f"{param} requires a byte-level or byte-fallback BPE tokenizer, but the tokenizer of this model is "
                f"another one ({one_line(problem, 120)}); remove {param}"
            )
            raise ApiError(400, message, param=param, code="unsupported_tokenizer") from None
        matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0)
        trial = matcher.deep_copy()
        trial.compute_logit_bias()  # some errors appear at the first step only
        if trial.is_error():
            raise ApiError(400, f"{param} cannot be used: {_reason(trial)}", param=param, code="invalid_schema")
        words = self._words(vocabulary)
        return lambda: SchemaConstraint(matcher.deep_copy(), JsonGuard(words))

    def _vocabulary(self) -> llguidance.LLTokenizer:
        import llguidance

        if self._tokenizer is None:
            self._model.tokenizer  # noqa: B018  (raises when the model has none)
            text = self._model.text.tokenizer_json
            assert text is not None
            ends = list(self._model.stop_ids) or None
            self._tokenizer = llguidance.LLTokenizer(text, self._model.config.vocab_size, ends)
        return self._tokenizer

    def _words(self, tokenizer: llguidance.LLTokenizer) -> Vocabulary:
        if self._bytes is None:
            self._bytes = Vocabulary([tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)])
        return self._bytes


class SchemaConstraint:
    """Running state of one answer constrained by a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, guard: JsonGuard) -> None:
        self._matcher, self._guard = matcher, guard

    def mask(self, logits: Array) -> None:
        """Set the logits [V] of tokens that the grammar forbids to -inf."""
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)
        self._check()
        allowed = allowed[: len(logits)] != 0
        kept = allowed.copy()
        for ids in self._guard.forbidden():
            kept[ids[ids < len(kept)]] = False
        logits[~(kept if kept.any() else allowed)] = -np.inf  # the grammar may leave nothing else

    def accept(self, token: int) -> None:
        """Advance by one token."""
        self._matcher.consume_token(token)
        self._guard.accept(token)
        self._check()

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"the answer cannot follow the schema further: {_reason(self._matcher)}")


def _rewritten(schema: Mapping[str, Any], param: str) -> dict[str, Any]:
    """The schema as it is enforced; ApiError 400 when it is too large or cannot be enforced."""
    size = len(json.dumps(schema))
    if size > MAX_SCHEMA:
        raise ApiError(400, f"{param} has {size} characters; expected at most {MAX_SCHEMA}", param=param)
    try:
        return enforceable(schema)
    except UnsupportedSchema as problem:
        message = f"{param} cannot be used: {problem}"
        raise ApiError(400, message, param=param, code="invalid_schema") from None


def _reason(matcher: llguidance.LLMatcher) -> str:
    """An error of llguidance on one line: without its list of states, but with what a regular expression lacks."""
    lines = [line.strip() for line in matcher.get_error().split("\n\n")[0].splitlines()]
    return " ".join(line for line in lines if line.strip("^ "))[:300] or "unknown reason"
