"""Generated tokens as JSON: text, log-probabilities in OpenAI's two formats, depth, and usage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ouro_edge.runtime.events import Candidate, Done, Token
from ouro_edge.runtime.text.tokenizer import TextStream

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model

_MIN_LOGPROB = -9999.0  # stands for minus infinity, which JSON cannot represent


def depth_of(model: Model, token: Token) -> dict[str, Any]:
    """The exit depth of a token, its exit probability at each loop, and the top candidates of each loop."""
    probs = [None if math.isnan(p) else round(p, 4) for p in token.exit_probs]
    shown: dict[str, Any] = {"depth": token.depth, "exit_probs": probs}
    if token.logit_lens:
        shown["lens"] = [
            [{"token": token_text(model, i), "prob": round(p, 6)} for i, p in candidates]
            for candidates in token.logit_lens
        ]
    return shown


def depths_of(model: Model, tokens: Iterable[Token]) -> dict[str, list[Any]]:
    """The same for many tokens, as lists with one item per token."""
    shown = [depth_of(model, token) for token in tokens]
    names = {"depth": "depths", "exit_probs": "exit_probs", "lens": "lens"}
    return {plural: [s[name] for s in shown] for name, plural in names.items() if all(name in s for s in shown)}


def rollout_of(prompt: Sequence[int], tokens: Sequence[Token]) -> dict[str, list[Any]]:
    """What training on an answer needs, unrounded: one item per token, stop token included."""
    return {
        "prompt_token_ids": list(prompt),
        "token_ids": [token.id for token in tokens],
        "logprobs": [max(token.logprob, _MIN_LOGPROB) for token in tokens],
        "sampling_logprobs": [max(token.sampling_logprob, _MIN_LOGPROB) for token in tokens],
        "depths": [token.depth for token in tokens],
        "exit_probabilities": [[None if math.isnan(p) else p for p in token.exit_probs] for token in tokens],
    }


def chat_logprobs(model: Model, tokens: Iterable[Token]) -> dict[str, Any]:
    """The `logprobs` of a chat choice, without the token that ended the answer, which has no text."""

    def entry(i: int, logprob: float) -> dict[str, Any]:
        data = model.tokenizer.token_bytes(i)
        text = data.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, _MIN_LOGPROB), "bytes": list(data)}

    content = [
        {**entry(t.id, t.logprob), "top_logprobs": [entry(*candidate) for candidate in t.top_logprobs]}
        for t in tokens
        if t.id not in model.stop_ids
    ]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """The `logprobs` of a completion choice, collected token by token."""

    def __init__(self, model: Model, offset: int = 0, *, after: Sequence[int] = ()) -> None:
        self._model, self._offset = model, offset
        self._text = TextStream(model.tokenizer, skip_special=False, after=after) if model.has_tokenizer else None
        self.json: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add(self, token: int, logprob: float | None, top: Iterable[Candidate], *, in_text: bool = True) -> None:
        """Add a token and its candidates, which then include the token; `logprob` is None for the first token.

        The text has no characters of a token that is not `in_text`: an added BOS, a generated special token.
        """
        text = completion_text(self._model, token)
        likely = None
        if logprob is not None:
            likely = {completion_text(self._model, i): max(p, _MIN_LOGPROB) for i, p in top}
            likely.setdefault(text, max(logprob, _MIN_LOGPROB))
            logprob = max(logprob, _MIN_LOGPROB)
        values = (text, logprob, likely, self._offset)
        for name, value in zip(self.json, values, strict=True):
            self.json[name].append(value)
        if self._text is None:
            self._offset += len(text)
        elif in_text:
            self._offset += len(self._text.push(token))  # a character may span several tokens


def token_text(model: Model, token: int) -> str:
    """A token's text by itself; U+FFFD for incomplete characters."""
    if not model.has_tokenizer:
        return str(token)
    return model.tokenizer.token_bytes(token).decode("utf-8", "replace")


def completion_text(model: Model, token: int) -> str:
    """A token's text in completions. OpenAI writes incomplete UTF-8 as bytes:\\xe2, so that names stay distinct."""
    data = model.tokenizer.token_bytes(token) if model.has_tokenizer else str(token).encode()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def usage_of(ends: Mapping[int, Done], choices: int) -> dict[str, Any]:
    """The `usage` of a request from its answers by number; a prompt counts once for all of its choices."""
    answers = [ends[number] for number in sorted(ends)]
    usages = [done.usage for done in answers]
    firsts = usages[::choices]
    prompt, completion = sum(u.prompt_tokens for u in firsts), sum(u.completion_tokens for u in usages)
    run, saved = sum(u.loops_run for u in usages), sum(u.loops_saved for u in usages)
    depth = sum(u.mean_depth * u.completion_tokens for u in usages) / completion if completion else 0.0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in firsts)},
        "ouro_edge": {
            "loops_run": run,
            "loops_full": run + saved,
            "loops_saved": saved,
            "mean_depth": round(depth, 4),
            "first_token_seconds": round(answers[0].timings.first_token, 4) if answers else 0.0,
            "seconds": round(sum(done.timings.total for done in answers), 4),
        },
    }
