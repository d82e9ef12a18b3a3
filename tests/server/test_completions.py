"""Completions and embeddings over HTTP, with OpenAI's client; scores as an evaluation harness reads them."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest

TEXT = "Ada likes Ben. Ben likes"


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_continuation(client, nano):
    *tokens, done = nano.generate(TEXT, max_tokens=16)
    answer = client.completions.create(model="any", prompt=TEXT)
    assert answer.choices[0].text == done.text
    assert answer.choices[0].ouro_edge["depths"] == [token.depth for token in tokens]
    assert answer.object == "text_completion"
    chunks = list(client.completions.create(model="any", prompt=TEXT, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == done.text


def test_prompts_of_all_forms(client, nano):
    ids = nano.tokenizer.encode(TEXT)

    def texts(prompt):
        answer = client.completions.create(model="any", prompt=prompt, max_tokens=4)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    assert texts(TEXT) == texts(ids) == texts([TEXT]) == texts([ids])
    assert texts([TEXT, "hello"]) == texts(TEXT) + texts("hello")


def test_usage_counts_each_prompt_once(client, nano):
    usage = client.completions.create(model="any", prompt=[TEXT, "hello"], n=3, max_tokens=2, temperature=1).usage
    assert usage.prompt_tokens == len(nano.tokenizer.encode(TEXT)) + len(nano.tokenizer.encode("hello"))


def test_echo_scores_the_prompt(client, nano):
    ids = nano.tokenizer.encode(TEXT)
    expected = nano.score(ids, top=2)
    answer = client.completions.create(model="any", prompt=ids, echo=True, logprobs=2, max_tokens=1, temperature=0)
    choice = answer.choices[0]
    assert choice.text.startswith(TEXT)
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens[: len(ids)]) == TEXT and len(logprobs.tokens) == len(ids) + 1
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected.logprobs, abs=1e-5)
    assert logprobs.text_offset[1] == len(logprobs.tokens[0])
    for token, likely, chosen in zip(
        expected.top, logprobs.top_logprobs[1:], logprobs.token_logprobs[1:], strict=False
    ):
        assert max(likely.values()) == pytest.approx(token[0][1], abs=1e-5) and chosen in likely.values()
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_echo_alone(client, nano):
    answer = client.completions.create(model="any", prompt=TEXT, echo=True, logprobs=0, max_tokens=0)
    assert answer.choices[0].text == TEXT and answer.usage.completion_tokens == 0
    assert len(answer.choices[0].logprobs.tokens) == len(nano.tokenizer.encode(TEXT))


def test_streamed_logprobs_have_offsets(client):
    chunks = list(client.completions.create(model="any", prompt="hello", logprobs=1, stream=True, max_tokens=5))
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [part.text_offset[0] for part in parts] == [
        sum(len(p.tokens[0]) for p in parts[:i]) for i in range(len(parts))
    ]


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings(client, nano, form):
    answer = client.embeddings.create(model="any", input=[TEXT, "hello"], encoding_format=form)
    vectors = [
        np.frombuffer(base64.b64decode(item.embedding), "<f4") if form == "base64" else item.embedding
        for item in answer.data
    ]
    np.testing.assert_allclose(vectors, nano.embed([TEXT, "hello"]), atol=1e-6)
    assert answer.usage.prompt_tokens == len(nano.tokenizer.encode(TEXT)) + len(nano.tokenizer.encode("hello"))


def test_the_clients_usual_embedding_call(client, nano):
    [item] = client.embeddings.create(model="any", input=TEXT).data
    np.testing.assert_allclose(item.embedding, nano.embed(TEXT)[0], atol=1e-6)


def test_models(client, nano):
    [model] = client.models.list().data
    assert model.id == "Ouro-nano" and model.ouro_edge["loops"] == 4
    assert model.ouro_edge["context"] == nano.config.max_positions
    assert client.models.retrieve("Ouro-nano").id == "Ouro-nano"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("some/other")
