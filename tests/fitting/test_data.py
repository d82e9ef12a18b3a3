"""Lines to pieces: which tokens count, what is held out, what is drawn, and every kind of bad line."""

from __future__ import annotations

import json
import re

import pytest
from models import write_checkpoint
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.errors import NoTokenizerError, RequestError
from ouro_edge.fitting import draw, encode, read_lines
from ouro_edge.fitting.gate_data import Line, count


@pytest.fixture(scope="module")
def speaker(tmp_path_factory, bundle_of):
    checkpoint = add_tokenizer(write_checkpoint(tmp_path_factory.mktemp("speaker"), vocab_size=300))
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        yield model


@pytest.fixture(scope="module")
def mute(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        yield model


def line(record):
    return Line(1, json.dumps(record), record)


def counted_text(model, piece):
    return model.tokenizer.decode([piece.ids[i] for i in piece.counted], skip_special=False)


def test_every_token_of_a_text_counts_but_the_first(speaker):
    [piece] = encode(line({"text": "hello there you"}), speaker, 100)
    assert list(piece.ids) == speaker.tokenizer.encode("hello there you")
    assert piece.counted.tolist() == list(range(1, len(piece.ids)))
    for empty in ("", "h"):
        assert [len(p.counted) for p in encode(line({"text": empty}), speaker, 100)] == [0]


def test_only_the_answer_and_its_end_count(speaker):
    record = {"prompt": "how are you?", "answer": "the user"}
    [piece] = encode(line(record), speaker, 5)
    assert counted_text(speaker, piece) == "the user<|im_end|>"
    prompt = speaker.render([{"role": "user", "content": "how are you?"}])
    assert speaker.tokenizer.decode(piece.ids, skip_special=False) == prompt + "the user<|im_end|>"
    asked = speaker.tokenizer.encode(prompt)
    assert list(piece.ids[: len(asked)]) == asked and piece.counted[0] == len(asked)
    messages = [{"role": "user", "content": "how are you?"}, {"role": "assistant", "content": "the user"}]
    [chat] = encode(line({"messages": messages}), speaker, 5)
    assert chat.ids == piece.ids and chat.counted.tolist() == piece.counted.tolist()


def test_every_turn_of_the_assistant_counts(speaker):
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    messages = [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]
    [piece] = encode(line({"messages": messages}), speaker, 100)
    assert counted_text(speaker, piece) == "assistant 2<|im_end|>assistant 4<|im_end|>"
    whole = speaker.render(messages[:5], add_generation_prompt=False)
    assert speaker.tokenizer.decode(piece.ids, skip_special=False) + "\n" == whole


def test_without_a_template_prompt_and_answer_stand_as_they_are(tmp_path, bundle_of):
    checkpoint = add_tokenizer(write_checkpoint(tmp_path / "checkpoint", vocab_size=300))
    (checkpoint / "chat_template.jinja").unlink()
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        [piece] = encode(line({"prompt": "how are ", "answer": "you?"}), model, 100)
        assert model.tokenizer.decode(piece.ids) == "how are you?"
        assert counted_text(model, piece) == "you?"
        [alone] = encode(line({"prompt": "", "answer": "you?"}), model, 100)
        assert alone.counted.tolist() == list(range(1, len(alone.ids)))
        with pytest.raises(RequestError, match="no chat template"):
            encode(line({"messages": [{"role": "assistant", "content": "x"}]}), model, 100)


def test_a_long_text_is_read_in_pieces_that_count_every_token_once(mute):
    ids = [i % 90 for i in range(47)]
    pieces = encode(line({"ids": ids}), mute, 10)
    assert [len(piece.ids) for piece in pieces] == [11, 11, 11, 11, 7]
    assert [piece.ids[i] for piece in pieces for i in piece.counted] == ids[1:]
    assert [len(p.ids) for p in encode(line({"ids": ids[:41]}), mute, 10)] == [11, 11, 11, 11]
    assert {piece.held_out for piece in encode(line({"ids": ids}), mute, 2)} == {True, False}


def test_the_split_hangs_on_the_line_alone_and_the_draw_on_the_seed(mute):
    lines = [line({"ids": [i % 90, i // 90, 3, 4, 5]}) for i in range(300)]

    def drawn(seed, fitted=100000, held_out=100000, some=lines):
        return draw(some, mute, window=64, most_fitted=fitted, most_held_out=held_out, seed=seed, name="data")

    everything = drawn(0)
    assert count(everything[0]) + count(everything[1]) == 1200
    assert 0.1 < count(everything[1]) / 1200 < 0.3
    for part, other in zip(everything, drawn(1, some=lines[::-1]), strict=True):
        assert {piece.ids for piece in part} == {piece.ids for piece in other}
    few = [[[p.ids for p in part] for part in drawn(seed, 202, 51)] for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    fitted, held_out = drawn(0, 202, 51)
    assert (count(fitted), count(held_out)) == (202, 51)
    assert not {p.ids for p in fitted} & {p.ids for p in held_out}
    assert fitted[-1].ids == fitted[-1].ids[: fitted[-1].counted[-1] + 1] and len(fitted[-1].ids) == 3  # cut


def test_blank_lines_a_mark_and_other_fields_do_no_harm(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes('\ufeff{"text": "a\u2028b", "hops": 2}\r\n\n  \n{"ids": [1, 2]}'.encode())
    found = read_lines(file)
    assert [(one.number, one.record) for one in found] == [(1, {"text": "a\u2028b"}), (4, {"ids": [1, 2]})]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{", "not valid JSON"),
        ("[" * 100000, "not valid JSON"),
        ("[1, 2]", "is list; expected an object"),
        ('{"txt": "x", "b": 1}', "fields ['b', 'txt']"),
        ('{"prompt": "x"}', "fields ['prompt']"),
        ('{"text": 3}', "text of int"),
        ('{"prompt": "x", "answer": null}', "answer of NoneType"),
        ('{"ids": "1 2"}', "ids of str"),
        ('{"messages": "x"}', "not a list of objects"),
        ('{"messages": ["x"]}', "not a list of objects"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no message of the assistant"),
    ],
)
def test_a_bad_line_is_named(tmp_path, source, says):
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "fine"}\n' + source + "\n")
    with pytest.raises(RequestError, match=rf"data\.jsonl line 2 .*{re.escape(says)}") as caught:
        read_lines(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"ids": [1, 300]}, "vocabulary"),
        ({"ids": [1, True]}, "vocabulary"),
        ({"ids": [1, "x"]}, "vocabulary"),
        ({"text": "\ud800"}, "Unicode"),
        ({"prompt": "x" * 600, "answer": "y"}, "context of 512"),
        ({"messages": [{"role": "assistant", "content": 5}]}, "content"),
    ],
)
def test_a_line_that_the_model_cannot_read_is_named(speaker, record, says):
    bad = Line(7, json.dumps(record), record)
    with pytest.raises(RequestError, match=rf"^data line 7: .*{says}"):
        draw([bad], speaker, window=64, most_fitted=99, most_held_out=99, seed=0, name="data")


def test_text_needs_a_tokenizer(mute):
    with pytest.raises(NoTokenizerError, match=r"^data line 1: .*no tokenizer.json"):
        draw([line({"text": "x"})], mute, window=64, most_fitted=9, most_held_out=9, seed=0, name="data")


def test_a_template_that_rewrites_what_was_said_is_refused(tmp_path, bundle_of):
    checkpoint = add_tokenizer(write_checkpoint(tmp_path / "checkpoint", vocab_size=300))
    (checkpoint / "chat_template.jinja").write_text("{{ messages|length }}{{ messages[-1].content }}")
    with ouro_edge.load(bundle_of(checkpoint)) as model, pytest.raises(RequestError, match="changes earlier turns"):
        encode(line({"prompt": "x", "answer": "y"}), model, 64)
