"""/v1/chat/completions: messages in, one answer or several out, whole or as chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ouro_edge.runtime.events import Done, Token
from ouro_edge.runtime.text.reasoning import opened_by
from ouro_edge.server.engine import Engine, GenerationJob, Started
from ouro_edge.server.http.endpoint import Chunks
from ouro_edge.server.http.errors import bad_field
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_ALTERNATIVES
from ouro_edge.server.openai.constraints import Schemas
from ouro_edge.server.openai.messages import read_format, read_messages, read_template_variables, render
from ouro_edge.server.openai.reasoning import ReasoningText
from ouro_edge.server.openai.replies import ResponseHeader, budget, prefix_of
from ouro_edge.server.openai.tokens import chat_logprobs, depth_of, depths_of, rollout_of, usage_of
from ouro_edge.server.openai.tools import read_tools
from ouro_edge.server.options import IGNORED, read_options


class Chat:
    """The endpoint's handler."""

    def __init__(self, engine: Engine, schemas: Schemas, header: ResponseHeader) -> None:
        self._engine, self._schemas, self._header = engine, schemas, header
        self._tags = engine.model.reasoning_tags

    async def __call__(self, fields: Fields) -> dict[str, Any] | Chunks:
        answer = await self.answer(fields)
        return answer.chunks() if answer.job.options.stream else await answer.whole()

    async def answer(self, fields: Fields) -> Answer:
        """The answer to a request, which is not generated yet. ApiError 400 for an invalid request."""
        model = self._engine.model
        options = read_options(fields, model, self._engine.default_exit)
        logprobs = fields.flag("logprobs")
        top = fields.whole("top_logprobs", 0, MAX_ALTERNATIVES)
        if top is not None and not logprobs:
            raise bad_field("top_logprobs", "requires logprobs: true")
        messages = read_messages(fields)
        variables = read_template_variables(fields)
        tools = read_tools(fields)
        schema, param = read_format(fields, tools)
        if fields.items("modalities", 8) not in (None, ["text"]):
            raise bad_field("modalities", "is not ['text'], the only output of this model")
        fields.finish(IGNORED)

        def prepare() -> tuple[GenerationJob, Callable[[], ReasoningText]]:
            prompt = render(model, messages, tools, variables, constrained=schema is not None)
            ids = tuple(model.tokenizer.encode(prompt))
            constraint = None
            if schema is not None and tools.offered and not tools.forced:
                constraint = self._schemas.compile_choice(schema, param, tools.schema(), parallel=tools.parallel)
            elif schema is not None:
                constraint = self._schemas.compile(schema, param)
            most = budget(len(ids), options.max_tokens, model.config.max_positions)
            tags = self._tags
            thinking = schema is None and bool(opened_by(prompt, tags))  # a schema has no room for the closing tag

            def text() -> ReasoningText:
                return ReasoningText(
                    model.tokenizer, tags, tools.text(constrained=schema is not None), thinking=thinking
                )

            job = GenerationJob(
                ids=ids,
                options=options,
                max_tokens=most,
                new_text=True,
                top_logprobs=top or 0,
                prefix=prefix_of(model, options, ids),
                constraint=constraint,
            )
            return job, text

        job, text = await self._engine.prepare(prepare)
        return Answer(self._engine, job, text, logprobs, self._header.new("chatcmpl"))


@dataclass(frozen=True, slots=True)
class Part:
    """What one event adds to one of the answers."""

    number: int
    token: Token | None = None
    delta: dict[str, Any] = field(default_factory=dict)
    done: Done | None = None


class Answer:
    """One request being answered."""

    def __init__(
        self,
        engine: Engine,
        job: GenerationJob,
        text: Callable[[], ReasoningText],
        logprobs: bool,
        header: dict[str, Any],
    ) -> None:
        self._engine = engine
        self.model = engine.model
        self.job = job
        self.logprobs = logprobs
        self.header = header
        self._text = text

    async def whole(self) -> dict[str, Any]:
        """The answer as one object, gathered from the parts."""
        count = self.job.options.choices
        deltas: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        tokens: list[list[Token]] = [[] for _ in range(count)]
        ends: dict[int, Done] = {}
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                deltas[part.number].append(part.delta)
                if part.token is not None:
                    tokens[part.number].append(part.token)
                if part.done is not None:
                    ends[part.number] = part.done
        choices = [self._choice(i, deltas[i], tokens[i], ends[i]) for i in range(count)]
        return {**self.header, "object": "chat.completion", "choices": choices, "usage": usage_of(ends, count)}

    async def chunks(self) -> Chunks:
        """The answer as chunks: a role, a chunk for each token, an end, and the usage when asked for."""
        options, model = self.job.options, self.model
        begun, called = set[int](), set[int]()
        ends: dict[int, Done] = {}
        rollouts: list[list[Token]] = [[] for _ in range(options.choices)]
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                if part.number not in begun:
                    begun.add(part.number)
                    yield self._chunk(part.number, {"role": "assistant", "content": ""})
                if "tool_calls" in part.delta:
                    called.add(part.number)
                if part.token is not None:
                    if options.rollout:
                        rollouts[part.number].append(part.token)
                    logprobs = chat_logprobs(model, [part.token]) if self.logprobs else None
                    depth = depth_of(model, part.token)
                    yield self._chunk(part.number, part.delta, logprobs=logprobs, ouro_edge=depth)
                elif part.delta:
                    yield self._chunk(part.number, part.delta)
                if part.done is not None:
                    ends[part.number] = part.done
                    reason = _finish_reason(part.done, part.number in called)
                    yield self._chunk(part.number, {}, finish_reason=reason, **self._rollout(rollouts[part.number]))
        if options.include_usage:
            usage = usage_of(ends, options.choices)
            yield {**self.header, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    async def parts(self) -> AsyncGenerator[Part, None]:
        """First an empty part, when the request has its slot; then one for every event."""
        texts = [self._text() for _ in range(self.job.options.choices)]
        async with aclosing(self._engine.generate([self.job])) as events:
            async for item in events:
                if isinstance(item, Started):
                    yield Part(0)
                    continue
                number, event = item
                text = texts[number]
                if isinstance(event, Done):
                    yield Part(number, delta=text.finish(), done=event)
                elif isinstance(event, Token):
                    yield Part(number, event, text.push(event))

    def _choice(self, number: int, deltas: list[dict[str, Any]], tokens: list[Token], done: Done) -> dict[str, Any]:
        content = "".join(delta.get("content", "") for delta in deltas)
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
        if thought := "".join(delta.get("reasoning_content", "") for delta in deltas):
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
        return {
            "index": number,
            "message": message,
            "logprobs": chat_logprobs(self.model, tokens) if self.logprobs else None,
            "finish_reason": _finish_reason(done, bool(calls)),
            "ouro_edge": depths_of(self.model, tokens),
            **self._rollout(tokens),
        }

    def _rollout(self, tokens: list[Token]) -> dict[str, Any]:
        return {"rollout": rollout_of(self.job.ids, tokens)} if self.job.options.rollout else {}

    def _chunk(self, number: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return {**self.header, "object": "chat.completion.chunk", "choices": [choice]}


def _finish_reason(done: Done, called: bool) -> str:
    return "tool_calls" if called and done.reason == "stop" else done.reason
