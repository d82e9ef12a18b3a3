"""JSON schemas as token constraints. The only module that imports llguidance.

The JSON is compact except for a space after commas and colons: with free white space, a small model may never finish.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ouro_edge.arch.weights import Array
from ouro_edge.errors import RequestError
from ouro_edge.runtime.sampling.constraint import Constraint
from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.limits import MAX_SCHEMA

if TYPE_CHECKING:
    import llguidance

    from ouro_edge.runtime.model import Model

ANY_OBJECT: dict[str, Any] = {"type": "object"}


class Schemas:
    """Compiles JSON schemas into constraints for one model; thread-safe."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tokenizer: llguidance.LLTokenizer | None = None

    def compile(self, schema: Mapping[str, Any], param: str) -> Callable[[], Constraint]:
        """A factory of constraints, one per answer. ApiError 400 for `param` when the schema is not supported."""
        import llguidance

        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA:
            raise ApiError(400, f"{param} has {len(text)} characters; expected at most {MAX_SCHEMA}", param=param)
        # Overrides take precedence over the schema's "x-guidance".
        layout: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=layout)
        matcher = llguidance.LLMatcher(self._vocabulary(), grammar, log_level=0)
        trial = matcher.deep_copy()
        trial.compute_logit_bias()  # some errors appear at the first step only
        if trial.is_error():
            raise ApiError(400, f"{param} cannot be used: {_reason(trial)}", param=param, code="invalid_schema")
        return lambda: SchemaConstraint(matcher.deep_copy())

    def _vocabulary(self) -> llguidance.LLTokenizer:
        import llguidance

        if self._tokenizer is None:
            self._model.tokenizer  # noqa: B018  (raises when the model has none)
            text = self._model.text.tokenizer_json
            assert text is not None
            ends = list(self._model.stop_ids) or None
            self._tokenizer = llguidance.LLTokenizer(text, self._model.config.vocab_size, ends)
        return self._tokenizer


class SchemaConstraint:
    """Running state of one answer constrained by a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, logits: Array) -> None:
        """Set the logits [V] of tokens that the grammar forbids to -inf."""
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)
        self._check()
        logits[allowed[: len(logits)] == 0] = -np.inf

    def accept(self, token: int) -> None:
        """Advance by one token."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"the answer cannot follow the schema further: {_reason(self._matcher)}")


def _reason(matcher: llguidance.LLMatcher) -> str:
    return (matcher.get_error().splitlines() or ["unknown reason"])[0][:300]
