"""What a conversation remembers: messages that stay sound whatever happens, and KV that is not computed twice."""

from __future__ import annotations

import pytest
from toy_text import add_tokenizer

from ouro_edge.errors import ContextOverflowError, RequestError
from ouro_edge.loading import load
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.events import Done
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.terminal.conversation import Conversation

QUESTION = "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"


def ask(talk, text, *, cancel=None, **options):
    return list(talk.ask(text, template={}, cancel=cancel, **options))


def retry(talk, **options):
    return list(talk.retry(template={}, cancel=None, **options))


def cached(events):
    assert isinstance(events[-1], Done)
    return events[-1].usage.cached_tokens, events[-1].usage.prompt_tokens


@pytest.fixture
def talk(bundle_of, checkpoint_of, tmp_path_factory):
    """A conversation with a random model whose template shows it the whole history."""
    with load(bundle_of(add_tokenizer(checkpoint_of(vocab_size=300)))) as model:
        yield Conversation(model)


def test_no_turn_reads_again_what_was_read_before(talk):
    ask(talk, "hello", max_tokens=5)
    said = len(talk.sequence)
    kept, prompt = cached(ask(talk, "and you", max_tokens=5))
    assert said <= kept < prompt  # all but what the template has put after the answer, and the new question


def test_undo_and_retry_reuse_what_is_left(talk):
    ask(talk, "hello", max_tokens=5)
    first = talk.messages
    events = ask(talk, "and you", max_tokens=5)
    prompt = events[-1].usage.prompt_tokens
    assert cached(retry(talk, max_tokens=5)) == (prompt - 2, prompt)  # the last two positions are always computed
    assert talk.undo() == "and you" and talk.messages == first
    kept, _ = cached(ask(talk, "and you too", max_tokens=5))
    assert kept >= prompt - 12


def test_retry_follows_new_settings(talk):
    ask(talk, "hello", max_tokens=5)
    before = talk.messages[-1]["content"]
    retry(talk, max_tokens=40, sampler=Sampler(temperature=3.0, seed=1))
    assert len(talk.messages) == 2 and talk.messages[-1]["content"] != before


def test_nano_answers_and_forgets(nano):
    talk = Conversation(nano)
    ask(talk, QUESTION)
    assert talk.messages == [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Cleo"}]
    assert talk.last.text == "Cleo" and talk.totals.turns == 1
    talk.clear()
    assert talk.messages == [] and talk.last is None and len(talk.sequence) == 0
    with pytest.raises(RequestError, match="has no messages yet"):
        talk.undo()


def test_a_stopped_answer_keeps_what_was_said(scripted):
    talk, cancel = Conversation(scripted(["one ", "two ", "three"])), Cancel()
    events = talk.ask("count", template={}, cancel=cancel)
    next(events), next(events)
    cancel.cancel()
    list(events)
    assert talk.messages[-1]["content"] == "one two "


def test_a_turn_that_said_nothing_is_forgotten(scripted, refusal):
    talk = Conversation(scripted(["hi"], refusal, [refusal], []))
    ask(talk, "hello")
    before = list(talk.messages)
    for text in ("refused", "refused later"):
        with pytest.raises(RequestError, match="refuses"):
            ask(talk, text)
        assert talk.messages == before
    ask(talk, "stopped at once")
    assert talk.messages == before and talk.last.text == "hi"


def test_what_breaks_in_the_middle_loses_neither_words_nor_conversation(scripted):
    talk = Conversation(scripted(["hi"], ["half ", RuntimeError("device lost")], ["fine"]))
    ask(talk, "hello")
    sequence = talk.sequence
    with pytest.raises(RuntimeError):
        ask(talk, "again")
    assert talk.messages[-1]["content"] == "half " and talk.sequence is not sequence
    ask(talk, "and now")
    assert [m["content"] for m in talk.messages] == ["hello", "hi", "again", "half ", "and now", "fine"]


def test_a_failed_retry_leaves_the_old_answer(scripted, refusal):
    talk = Conversation(scripted(["hi"], refusal))
    ask(talk, "hello")
    with pytest.raises(RequestError):
        retry(talk)
    assert talk.messages[-1]["content"] == "hi" and talk.last.text == "hi"


def test_a_context_that_is_full_is_refused_and_the_conversation_stays(bundle_of, checkpoint_of):
    with load(bundle_of(add_tokenizer(checkpoint_of(vocab_size=300))), context=40) as model:
        talk = Conversation(model)
        ask(talk, "hello", max_tokens=3)
        with pytest.raises(ContextOverflowError):
            ask(talk, "x" * 60)
        assert len(talk.messages) == 2


def test_thoughts_in_special_tokens_are_told_apart_and_kept_in_the_history(scripted):
    model = scripted([7, "why ", "so", 8, "because", 9], ["fine"])
    talk = Conversation(model)
    events = ask(talk, "hello")
    assert [(p.text, p.thinking) for p in events[:-1]] == [
        ("", True),
        ("why ", True),
        ("so", True),
        ("", False),
        ("because", False),
        ("", False),
    ]
    assert (talk.last.thought, talk.last.text) == ("why so", "because")
    ask(talk, "next")
    assert model.prompts[1].startswith(model.prompts[0] + "<think>why so</think>because\n")


def test_a_template_that_opens_the_thought(scripted):
    model = scripted(["why", "</think>", "because"], ["fine"], opening="<think>\n")
    talk = Conversation(model)
    ask(talk, "hello")
    assert (talk.last.thought, talk.last.text) == ("why", "because")
    ask(talk, "next")
    assert model.prompts[1].startswith(model.prompts[0] + "why</think>because\n")


def test_figures_name_what_a_user_asks_for(nano):
    talk = Conversation(nano)
    ask(talk, QUESTION)
    figures = dict(talk.figures())
    assert figures["turns"] == "1" and figures["context"].endswith("of 512 tokens")
    assert {"tokens generated", "prompt tokens read", "KV cache", "mean depth", "loops"} <= set(figures)
