"""/v1/completions: prompts as text or token ids in, continuations out; with `echo` the prompt is scored as well."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ouro_edge.runtime.events import Done, Token
from ouro_edge.runtime.forward import Score
from ouro_edge.server.engine import Engine, GenerationJob, Started
from ouro_edge.server.http.endpoint import Chunks
from ouro_edge.server.http.errors import bad_field
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_ALTERNATIVES, MAX_INPUTS
from ouro_edge.server.openai.prompts import Prompt, read_prompts
from ouro_edge.server.openai.replies import ResponseHeader, budget, prefix_of
from ouro_edge.server.openai.tokens import CompletionLogprobs, depth_of, depths_of, rollout_of, usage_of
from ouro_edge.server.options import IGNORED, Options, read_options

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model

_USUAL = 16  # max_tokens when none is given: OpenAI's


@dataclass(frozen=True, slots=True)
class _Form:
    """How completions are to look."""

    options: Options
    logprobs: int | None
    echo: bool


class Completions:
    """The endpoint's handler."""

    def __init__(self, engine: Engine, header: ResponseHeader) -> None:
        self._engine, self._header = engine, header

    async def __call__(self, fields: Fields) -> dict[str, Any] | Chunks:
        model = self._engine.model
        echo = fields.flag("echo")
        options = read_options(fields, model, self._engine.default_exit, least_tokens=0 if echo else 1)
        logprobs = fields.whole("logprobs", 0, MAX_ALTERNATIVES)
        best_of = fields.whole("best_of", 1)
        if best_of not in (None, options.choices):
            raise bad_field("best_of", "differs from n: this server returns every answer, so leave it out")
        if fields.text("suffix"):
            raise bad_field("suffix", "is not supported, because this model only continues a prompt; leave it out")
        if echo and options.stream:
            raise bad_field("echo", "and stream exclude each other")
        prompts = await self._engine.prepare(read_prompts, fields, "prompt", model, MAX_INPUTS)
        fields.finish(IGNORED)
        form = _Form(options, logprobs, echo)
        jobs = [self._job(prompt, form) for prompt in prompts]
        header = {**self._header.new("cmpl"), "object": "text_completion"}
        if options.stream:
            return self._chunks(jobs, form, header)
        return await self._whole(jobs, prompts, form, header)

    def _job(self, prompt: Prompt, form: _Form) -> GenerationJob:
        wanted = _USUAL if form.options.max_tokens is None else form.options.max_tokens
        most = budget(len(prompt.ids), wanted, self._engine.model.config.max_positions)
        scored = form.logprobs if form.echo else None
        prefix = prefix_of(self._engine.model, form.options, prompt.ids, is_text=prompt.is_text)
        return GenerationJob(
            ids=prompt.ids, options=form.options, max_tokens=most, top_logprobs=form.logprobs or 0, score=scored,
            prefix=prefix,
        )  # fmt: skip

    async def _whole(
        self, jobs: list[GenerationJob], prompts: list[Prompt], form: _Form, header: dict[str, Any]
    ) -> dict[str, Any]:
        count = len(jobs) * form.options.choices
        tokens: list[list[Token]] = [[] for _ in range(count)]
        scores: list[Score | None] = [None] * count
        ends: dict[int, Done] = {}
        async with aclosing(self._engine.generate(jobs)) as events:
            async for item in events:
                if isinstance(item, Started):
                    continue
                number, event = item
                if isinstance(event, Done):
                    ends[number] = event
                elif isinstance(event, Token):
                    tokens[number].append(event)
                else:
                    scores[number] = event
        choices = [
            self._choice(i, prompts[i // form.options.choices], form, tokens[i], scores[i], ends[i])
            for i in range(count)
        ]
        return {**header, "choices": choices, "usage": usage_of(ends, form.options.choices)}

    def _choice(
        self, number: int, prompt: Prompt, form: _Form, tokens: list[Token], score: Score | None, done: Done
    ) -> dict[str, Any]:
        model = self._engine.model
        logprobs = None
        if form.logprobs is not None:
            gathered = CompletionLogprobs(model, after=() if form.echo else prompt.ids)
            if score is not None:
                scored = zip((None, *score.logprobs.tolist()), ((), *score.top), strict=True)
                for i, (token, (logprob, top)) in enumerate(zip(prompt.ids, scored, strict=True)):
                    gathered.add(token, logprob, top, in_text=i >= prompt.added)
            for event in tokens:
                gathered.add(event.id, event.logprob, event.top_logprobs, in_text=_has_text(model, event))
            logprobs = gathered.json
        return {
            "index": number,
            "text": (prompt.text if form.echo else "") + done.text,
            "logprobs": logprobs,
            "finish_reason": done.reason,
            "ouro_edge": depths_of(model, tokens),
            **({"rollout": rollout_of(prompt.ids, tokens)} if form.options.rollout else {}),
        }

    async def _chunks(self, jobs: list[GenerationJob], form: _Form, header: dict[str, Any]) -> Chunks:
        model = self._engine.model
        ends: dict[int, Done] = {}
        offsets = [0] * (len(jobs) * form.options.choices)
        rollouts: list[list[Token]] = [[] for _ in offsets]
        async with aclosing(self._engine.generate(jobs)) as events:
            async for item in events:
                number, event = (0, None) if isinstance(item, Started) else item
                chunk: dict[str, Any] = {"index": number, "text": "", "logprobs": None, "finish_reason": None}
                prompt = jobs[number // form.options.choices].ids
                if isinstance(event, Token):
                    if form.options.rollout:
                        rollouts[number].append(event)
                    chunk |= {"text": event.text, "ouro_edge": depth_of(model, event)}
                    if form.logprobs is not None:
                        gathered = CompletionLogprobs(model, offsets[number], after=prompt)
                        gathered.add(event.id, event.logprob, event.top_logprobs)
                        chunk["logprobs"] = gathered.json
                    offsets[number] += len(event.text)
                elif isinstance(event, Done):
                    ends[number] = event
                    chunk["finish_reason"] = event.reason
                    if form.options.rollout:
                        chunk["rollout"] = rollout_of(prompt, rollouts[number])
                yield {**header, "choices": [chunk]}
        if form.options.include_usage:
            yield {**header, "choices": [], "usage": usage_of(ends, form.options.choices)}


def _has_text(model: Model, token: Token) -> bool:
    """Whether a generated token has a part in the answer's text; special tokens have none."""
    return not (model.has_tokenizer and model.tokenizer.is_special(token.id))
