"""The data: true hops, honest splits, and rows that compute what single questions would."""

import re
from random import Random

import pytest
import torch

from training.batch import ROW, Packer
from training.families import FAMILIES, MAX_HOPS, tokenizer_corpus
from training.model import ModelConfig, Ouro
from training.question import split_of
from training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tokenizer_corpus(0, scenes=700), 768)


def scenes(family: str, count: int = 40):
    rng = Random(1)
    return [FAMILIES[family](rng, MAX_HOPS[family], rng.random()) for _ in range(count)]


@pytest.mark.parametrize(("family", "fact"), [("likes", r"(\w+) likes (\w+)\."), ("boss", r"(\w+) leads (\w+)\.")])
def test_pointers_answer_by_following_the_facts(family: str, fact: str) -> None:
    for scene in scenes(family):
        pairs = re.findall(fact, scene.facts)
        onward = dict(pairs) if family == "likes" else {b: a for a, b in pairs}
        for tail in scene.tails:
            at = re.search(r" ([A-Z]\w+)(?: likes|'s boss)", tail.text)
            person = at[1]
            for _ in range(tail.hops):
                person = onward[person]
            assert person == tail.answer
        if len(set(onward) | set(onward.values())) == len(pairs):  # a cycle
            assert len(pairs) >= 2 * max(t.hops for t in scene.tails) + 1


def test_mixed_questions_follow_both_relations_in_the_order_of_the_words() -> None:
    for scene in scenes("mixed"):
        boss = {b: a for a, b in re.findall(r"(\w+) leads (\w+)\.", scene.facts)}
        liked = dict(re.findall(r"(\w+) likes (\w+)\.", scene.facts))
        for tail in scene.tails:
            steps = re.findall(r"boss|likes", tail.text)
            person = re.search(r"([A-Z]\w+)(?: likes|'s)", tail.text)[1]
            for step in steps:
                person = (boss if step == "boss" else liked)[person]
            assert person == tail.answer and len(steps) == tail.hops


def test_comparison_hops_are_links_between_the_two() -> None:
    for scene in scenes("compare"):
        below = {a: b for a, _, b in re.findall(r"(\w+) is (\w+) than (\w+)\.", scene.facts)}
        for tail in scene.tails:
            pair = set(re.findall(r"[A-Z]\w+", tail.text.replace("Who", "")))
            person = tail.answer
            for _ in range(tail.hops):
                person = below[person]
            assert {person, tail.answer} == pair


def test_swaps_replay() -> None:
    for scene in scenes("swaps"):
        holds, moves = {}, {}
        for a, thing, b, c in re.findall(r"(\w+) has the (\w+)\.|(\w+) and (\w+) swap\.", scene.facts):
            if thing:
                holds[a], moves[thing] = thing, 1
            else:
                holds[b], holds[c] = holds[c], holds[b]
                moves[holds[b]] += 1
                moves[holds[c]] += 1
        for tail in scene.tails:
            thing = re.search(r"the (\w+)\?", tail.text)[1]
            assert holds[tail.answer] == thing and moves[thing] == tail.hops


def test_sums_are_right_and_stay_within_one_digit() -> None:
    for scene in scenes("sums"):
        for tail in scene.tails:
            words = tail.text.removeprefix("What is ").removesuffix("?").split()
            assert len(words) == 2 * tail.hops + 1
            assert all(0 <= eval(" ".join(words[: k + 1])) <= 9 for k in range(0, len(words), 2))
            assert str(eval(" ".join(words))) == tail.answer


def test_training_rows_hold_training_questions_only(tokenizer) -> None:
    for split in ("train", "test"):
        batch = Packer(tokenizer).batch(Random(3), [(f, MAX_HOPS[f], 1.0) for f in FAMILIES], split)
        assert {split_of(q.prompt) for q in batch.questions} == {split}
        assert {q.family for q in batch.questions} == set(FAMILIES)


def test_a_packed_question_computes_what_it_would_alone(tokenizer) -> None:
    batch = Packer(tokenizer).batch(Random(5), [("likes", 1, 0.0), ("sums", 2, 0.0), ("boss", 3, 1.0)], "train")
    model = Ouro(ModelConfig(tokenizer.get_vocab_size(), 32, 64, 2, 2))
    model.init_weights(torch.Generator().manual_seed(0), post_norm_gain=1.0)
    with torch.no_grad():
        packed = [h.reshape(3 * ROW, -1)[batch.at] for h in model.states(batch.ids, batch.positions, batch.mask)]
        for i, question in enumerate(batch.questions):
            mine = batch.owner == i
            ids = tokenizer.encode(question.text, add_special_tokens=False).ids
            assert ids[-int(mine.sum()) :] == batch.labels[mine].tolist()
            alone = [h[0, -1 - int(mine.sum()) : -1] for h in model.states(torch.tensor([ids]))]
            for a, b in zip(alone, packed, strict=True):
                torch.testing.assert_close(a, b[mine], atol=1e-4, rtol=1e-4)
