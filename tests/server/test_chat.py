"""Chat completions over HTTP with OpenAI's own client: what it can ask for, and what it gets."""

from __future__ import annotations

import json

import openai
import pytest

import ouro_edge

QUESTION = [{"role": "user", "content": "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Ben"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "find", "description": "Find a person.", "parameters": PERSON}}


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, **fields):
    return client.chat.completions.create(**{"model": "any", "messages": QUESTION, **fields})


def test_an_answer_is_the_runtimes(client, nano):
    *tokens, done = nano.chat(QUESTION)
    answer = ask(client)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", done.text, "stop")
    assert answer.model == "Ouro-nano" and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert choice.ouro_edge["depths"] == [token.depth for token in tokens]
    assert choice.ouro_edge["exit_probs"][0] == pytest.approx(tokens[0].exit_probs, abs=1e-4)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (done.usage.prompt_tokens, done.usage.completion_tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.ouro_edge["mean_depth"] == pytest.approx(done.usage.mean_depth, abs=1e-4)
    ours = usage.ouro_edge
    assert ours["loops_full"] - ours["loops_run"] == ours["loops_saved"]


def test_a_stream_says_the_same_token_by_token(client, nano):
    *tokens, done = nano.chat(QUESTION, logit_lens=2)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, extra_body={"lens": 2}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == done.text
    shown = [c.choices[0].ouro_edge for c in chunks if c.choices and hasattr(c.choices[0], "ouro_edge")]
    assert [s["depth"] for s in shown] == [token.depth for token in tokens]
    assert [len(loop) for loop in shown[0]["lens"]] == [2] * tokens[0].depth
    assert shown[0]["lens"][-1][0] == {"token": done.text, "prob": pytest.approx(1.0, abs=1e-3)}
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(tokens)
    assert len({c.id for c in chunks}) == 1


def test_the_second_turn_reuses_the_first(client):
    messages = [{"role": "user", "content": "Who are you? Tell me everything."}]
    ask(client, messages=messages)
    usage = ask(client, messages=messages).usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 2


@pytest.mark.parametrize(
    ("fields", "policy"),
    [
        ({"loops": 1}, ouro_edge.FixedDepth(1)),
        ({"exit_threshold": 0.9}, ouro_edge.ExitThreshold(0.9)),
        ({"exit": "confidence:0.5"}, ouro_edge.ConfidenceThreshold(0.5)),
        ({"exit": "agreement"}, ouro_edge.Agreement()),
    ],
)
def test_depth_is_a_field_of_the_request(client, nano, fields, policy):
    *tokens, _ = nano.chat(QUESTION, exit=policy)
    assert ask(client, extra_body=fields).choices[0].ouro_edge["depths"] == [token.depth for token in tokens]


def test_a_budget_of_loops(client, endless):
    depths = ask(client, extra_body={"loop_budget": 1.5}, max_tokens=40, **endless).choices[0].ouro_edge["depths"]
    assert sum(depths) <= 1.5 * len(depths) and set(depths) > {1}


def test_seeds_make_answers_repeatable_and_different(client):
    def texts(seed):
        answer = ask(
            client, messages=[{"role": "user", "content": "hm"}], n=4, seed=seed, temperature=2.5, max_tokens=12
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        return [choice.message.content for choice in answer.choices]

    assert texts(5) == texts(5) != texts(6)
    assert len(set(texts(5))) > 1


def test_choices_of_a_stream_are_those_of_a_complete_answer(client, endless):
    fields = {"n": 3, "seed": 4, "temperature": 2.5, "max_tokens": 20, **endless}
    chunks = [chunk.choices[0] for chunk in ask(client, stream=True, **fields)]
    for choice in ask(client, **fields).choices:
        own = [chunk for chunk in chunks if chunk.index == choice.index]
        assert [chunk.delta.role for chunk in own].count("assistant") == 1 and own[0].delta.role == "assistant"
        assert "".join(chunk.delta.content or "" for chunk in own) == choice.message.content
        assert [chunk.finish_reason for chunk in own if chunk.finish_reason] == ["length"]
    numbers = [chunk.index for chunk in chunks]
    assert numbers != sorted(numbers)  # the answers are generated at the same time


def test_samples_share_the_work_on_the_prompt(client, nano):
    fields = {"max_tokens": 5, "temperature": 1, "seed": 1, "extra_body": {"cache_prompt": False, "loops": 4}}
    one, four = (ask(client, n=n, logit_bias={str(i): -100 for i in nano.stop_ids}, **fields).usage for n in (1, 4))
    prompt = one.prompt_tokens
    assert one.ouro_edge["loops_run"] == 4 * (prompt + 4)
    assert four.prompt_tokens == prompt and four.prompt_tokens_details.cached_tokens == 0
    assert four.ouro_edge["loops_run"] == 4 * (prompt - 2 + 4 * (2 + 4))


def test_a_rollout_has_what_training_needs(client, nano):
    fields = {"n": 2, "seed": 3, "temperature": 1.5, "top_p": 0.9}
    extra = {"rollout": True, "exit": "gate:0.5,floor=2,ceiling=3"}
    answer = ask(client, extra_body=extra, **fields)
    exit = ouro_edge.ExitThreshold(0.5, floor=2, ceiling=3)
    for number, choice in enumerate(answer.choices):
        *tokens, _ = nano.chat(
            QUESTION, exit=exit, sampler=nano.default_sampler(temperature=1.5, top_p=0.9, seed=3 + number)
        )
        assert choice.rollout == {
            "prompt_token_ids": nano.tokenizer.encode(nano.render(QUESTION)),
            "token_ids": [token.id for token in tokens],
            "logprobs": pytest.approx([token.logprob for token in tokens], abs=1e-3),
            "sampling_logprobs": pytest.approx([token.sampling_logprob for token in tokens], abs=1e-3),
            "depths": [token.depth for token in tokens],
            "exit_probabilities": [pytest.approx(token.exit_probs, abs=1e-3) for token in tokens],
        }
        assert {2, 3} >= set(choice.rollout["depths"])
    chunks = [chunk.choices[0] for chunk in ask(client, extra_body=extra, stream=True, **fields)]
    ends = {chunk.index: chunk.rollout for chunk in chunks if chunk.finish_reason}
    assert ends == {choice.index: choice.rollout for choice in answer.choices}


def test_stop_bias_and_length(client, endless):
    assert ask(client, stop="eo").choices[0].message.content == "Cl"
    assert ask(client, stop=["x", "leo"]).choices[0].message.content == "C"
    cut = ask(client, max_completion_tokens=3, **endless)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3
    assert ask(client, logit_bias={"7": 100}, max_tokens=2).choices[0].message.content != "Cleo"


def test_more_tokens_than_the_context_holds_are_cut(client, nano, endless):
    usage = ask(client, max_tokens=100_000, **endless).usage
    assert usage.total_tokens == nano.config.max_positions + 1


def test_logprobs(client, nano):
    *tokens, _ = nano.chat(QUESTION, top_logprobs=3)
    content = ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert [entry.token for entry in content] == ["Cleo"]
    assert content[0].bytes == list(b"Cleo") and content[0].logprob == pytest.approx(tokens[0].logprob, abs=1e-5)
    assert [entry.logprob for entry in content[0].top_logprobs] == pytest.approx(
        [logprob for _, logprob in tokens[0].top_logprobs], abs=1e-5
    )
    streamed = [c.choices[0].logprobs for c in ask(client, logprobs=True, stream=True) if c.choices[0].logprobs]
    assert [entry.token for part in streamed for entry in part.content] == ["Cleo"]
    assert ask(client).choices[0].logprobs is None


@pytest.mark.parametrize("temperature", [0, 2])
def test_a_json_schema_is_kept(client, temperature):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = ask(client, response_format=form, temperature=temperature, seed=1)
    person = json.loads(answer.choices[0].message.content)
    assert person["name"] in ("Ada", "Ben") and 0 <= person["age"] <= 99 and len(person) == 2
    assert answer.choices[0].finish_reason == "stop"


def test_json_object(client):
    content = ask(client, response_format={"type": "json_object"}, max_tokens=200).choices[0].message.content
    assert content.startswith("{")


def test_a_forced_tool_is_called_as_its_schema_says(client):
    named = {"type": "function", "function": {"name": "find"}}
    for choice in ("required", named):
        answer = ask(client, tools=[TOOL], tool_choice=choice).choices[0]
        [call] = answer.message.tool_calls
        assert call.function.name == "find" and set(json.loads(call.function.arguments)) == {"name", "age"}
        assert answer.message.content is None and answer.finish_reason == "tool_calls"


def test_a_forced_tool_in_a_stream(client):
    chunks = list(ask(client, tools=[TOOL], tool_choice="required", stream=True))
    [call] = [call for c in chunks for call in c.choices[0].delta.tool_calls or ()]
    assert call.index == 0 and call.id and set(json.loads(call.function.arguments)) == {"name", "age"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(c.choices[0].delta.content for c in chunks)


def test_a_template_without_tools_cannot_choose_one(client):
    with pytest.raises(openai.BadRequestError, match="ignores tools"):
        ask(client, tools=[TOOL])
    assert ask(client, tools=[TOOL], tool_choice="none").choices[0].message.content == "Cleo"


def test_what_other_clients_send_is_ignored(client):
    ignored = {"user": "u", "store": False, "metadata": {"a": "b"}, "service_tier": "auto"}
    assert ask(client, presence_penalty=0, **ignored).choices[0].message.content == "Cleo"


@pytest.mark.anyio
async def test_the_asynchronous_client_can_run_several(server):
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        jobs = [client.chat.completions.create(model="m", messages=QUESTION) for _ in range(6)]
        answers = await asyncio.gather(*jobs)
    assert [answer.choices[0].message.content for answer in answers] == ["Cleo"] * 6


@pytest.fixture
def anyio_backend():
    return "asyncio"
