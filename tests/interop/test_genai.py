"""onnxruntime-genai answers with the tokens that ouro-edge answers with, from the same directory."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from genai_example import write_genai

import ouro_edge
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.loading import default_model

og = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
pytestmark = pytest.mark.optimum
QUESTION = "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"


def test_same_tokens_as_the_published_code(bundle_of, tmp_path, golden):
    path = shutil.copytree(bundle_of(), tmp_path / "model")
    write_genai(open_bundle(path))
    for row in (0, 1):
        prompt = golden["input_ids"][row, :12].tolist()
        answer = golden[f"greedy_threshold_1.0_row{row}"].tolist()
        assert generate(og.Model(str(path)), prompt, len(answer)) == answer


def test_same_answer_from_the_built_in_model(tmp_path):
    path = shutil.copytree(default_model(), tmp_path / "model")
    write_genai(open_bundle(path))
    model = og.Model(str(path))
    with ouro_edge.load(path) as ours:
        prompt = ours.tokenizer.encode(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
        events = ours.generate(prompt, exit=ouro_edge.FullDepth(), sampler=ouro_edge.Sampler(temperature=0))
        answer = [event.id for event in events if isinstance(event, ouro_edge.Token)]
    assert answer.pop() in ours.stop_ids  # genai stops there as well, and leaves it out
    assert og.Tokenizer(model).decode(np.array(answer, np.int32)) == "Cleo"
    assert generate(model, prompt, 20) == answer


def generate(model, prompt, count):
    """Greedy ids by genai, at most `count`."""
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0)[len(prompt) :].tolist()
