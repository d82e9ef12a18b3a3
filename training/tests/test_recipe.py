"""The recipe end to end at toy size: resuming, the exported directory, stage II and the exit rule."""

import json
from pathlib import Path
from random import Random

import jinja2
import pytest
import torch
from safetensors.torch import load_file

from training.checkpoint import load_model
from training.evaluate import Readout, exit_depth
from training.gate import apply, fit, targets
from training.question import PROMPT_HEAD, PROMPT_TAIL, Question
from training.tokenizer import CHAT_TEMPLATE
from training.train import TrainConfig, stage_one
from training.worlds import likes

from .test_model import GOLDEN


def toy(steps: int) -> TrainConfig:
    return TrainConfig(
        steps=steps, rows=2, hidden_size=32, layers=1, heads=2, beta=0.05, compile=False, save_every=2, log_every=2
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    stage_one(toy(4), out)
    return out


def test_a_resumed_run_continues_where_it_stopped(run: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.train.set_rate", lambda *a: 1.0)  # the rate depends on the length of the run
        straight, _ = stage_one(toy(4), tmp_path / "straight")
        stage_one(toy(2), tmp_path / "broken")
        resumed, _ = stage_one(toy(4), tmp_path / "broken")
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_export_is_a_normal_checkpoint(run: Path) -> None:
    directory = run / "stage1"
    _, tokenizer = load_model(directory)
    names = set(load_file(directory / "model.safetensors"))
    assert {n.replace("layers.0.", "layers.N.") for n in names} >= {
        "model.embed_tokens.weight", "model.layers.N.self_attn.q_proj.weight",
        "model.layers.N.input_layernorm_2.weight", "model.layers.N.post_attention_layernorm_2.weight",
        "model.norm.weight", "model.early_exit_gate.weight", "model.early_exit_gate.bias", "lm_head.weight",
    }  # fmt: skip
    assert [tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    if GOLDEN.exists():
        wanted = json.loads((GOLDEN / "config.json").read_text())
        assert set(wanted) <= set(json.loads((directory / "config.json").read_text()))


def test_the_chat_template_renders_what_was_trained() -> None:
    scene = likes(Random(0), 2, 0.0)
    question: Question = scene.question(scene.tails[0])
    messages = [{"role": "user", "content": question.prompt}]
    rendered = jinja2.Template(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    assert rendered == PROMPT_HEAD + question.prompt + PROMPT_TAIL
    assert question.text.startswith(rendered)


def test_exit_depth_follows_the_cumulated_probability() -> None:
    gate = torch.tensor([[0.0, 0.0, 0.0, 0.0]])  # lambda 1/2: cumulated 0.5, 0.75, 0.875, 1
    assert [exit_depth(gate, q).item() for q in (0.5, 0.51, 0.8, 0.9, 1.0)] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("kind", ["look-ahead", "horizon"])
def test_stage_two_learns_to_stop_where_nothing_is_gained(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    n, deep = 400, torch.arange(400) % 2 == 0
    states = torch.randn(4, n, 8, generator=generator) * 0.1
    states[:, :, 0] = torch.where(deep, 1.0, -1.0)
    loss = torch.where(deep, torch.tensor([3.0, 2.0, 1.0, 0.0])[:, None], torch.zeros(4, 1))
    blank = torch.zeros(n, dtype=torch.bool)
    r = Readout(states, loss, loss < 0.5, torch.zeros(n, 4), torch.arange(n), blank, ())
    depth = exit_depth(apply(r, *fit(r, kind, torch.zeros(1, 8), torch.zeros(1))), 0.5)
    assert (depth[deep] == 4).all() and (depth[~deep] == 1).all()


def test_published_targets_look_back_and_horizon_looks_past_a_plateau() -> None:
    loss = torch.tensor([[2.0], [2.0], [0.0], [0.0]])  # nothing gained by loop 2, all by loop 3
    assert targets(loss, "published")[0][:, 0].round().tolist() == [0, 1, 0]
    assert targets(loss, "look-ahead")[0][:, 0].round().tolist() == [0, 1, 0]
    assert targets(loss, "horizon")[0][:, 0].round().tolist() == [1, 1, 0]
    assert targets(loss, "published")[1] == slice(1, None)
