"""A Raven model with text: commands, server, chats; prompts are kept while rules and numbers of loops change."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from models import GOLDEN
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.cli import main

SOURCE = GOLDEN.parent / "retrofit-olmo-tiny"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    checkpoint = add_tokenizer(shutil.copytree(SOURCE, tmp_path_factory.mktemp("raven") / "checkpoint"))
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    ouro_edge.export(checkpoint, checkpoint.with_name("model"), precision="fp32", calibration=None)
    return checkpoint.with_name("model")


@pytest.fixture(scope="module")
def model(exported):
    with ouro_edge.load(exported, kv="fp32", parallel=2, threads=1) as loaded:
        yield loaded


def test_stop_ids_come_from_the_tokenizer(model):
    assert model.config.eos_token_ids == () and model.config.stop_token_ids == ()
    assert model.stop_ids == (model.tokenizer.token_id("<|im_end|>"),)


def test_completions_keep_a_prompt_and_change_its_depth(model, serve):
    server = serve(model)
    prompts = ["hello there", "hello there, how are you?", "hello there, how"]
    for fields, exit in (
        ({"loops": 6}, ouro_edge.FixedDepth(6)),
        ({"exit": "change:0.6"}, ouro_edge.parse_exit("change:0.6")),
        ({}, ouro_edge.FullDepth()),
        ({"loops": 2}, ouro_edge.FixedDepth(2)),
        ({"exit": "kl:0.2"}, ouro_edge.parse_exit("kl:0.2")),
    ):
        for prompt in prompts:
            *_, done = model.generate(prompt, max_tokens=6, exit=exit, sampler=ouro_edge.Sampler())
            reply = server.complete(prompt, max_tokens=6, temperature=0, **fields)
            assert reply.status_code == 200, reply.text
            assert reply.json()["choices"][0]["text"] == done.text
    reply = server.complete("hello", loops=129)
    assert reply.status_code == 400 and "128" in reply.json()["error"]["message"]


def test_commands(exported, tmp_path):
    run = CliRunner()
    for arguments in (
        ["run", str(exported), "-p", "hello", "-n", "4", "--loops", "6"],
        ["run", str(exported), "-p", "hello", "-n", "4", "--exit", "agreement", "--state-noise", "3"],
        ["trace", str(exported), "-p", "hello there", "-n", "4", "--exit", "kl:0.2"],
        ["calibrate", str(exported), "--tokens", "64"],
        ["run", str(exported), "-p", "hello", "-n", "4", "--kv", "int8", "--loops", "8"],
    ):
        result = run.invoke(main, [*arguments, "--threads", "1"])
        assert result.exit_code == 0, (arguments, result.output)
    for arguments, says in (
        (["run", str(exported), "-p", "hello", "--loops", "129"], "128"),
        (["run", str(exported), "-p", "hello", "--exit-threshold", "0.5"], "no exit gate"),
        (["run", str(exported), "-p", "hello", "--kv-share", "last"], "cannot share"),
        (["run", "-p", "hello", "--state-noise", "3"], "does not start from noise"),
        (["fit-gate", str(exported)], "gate"),
    ):
        result = run.invoke(main, arguments)
        assert result.exit_code != 0 and says in result.output, (arguments, result.output)
        assert "Traceback" not in result.output


def test_a_chat_continues(model):
    messages = [{"role": "user", "content": "hello"}]
    sequence = model.new_sequence()
    for rule in ("change:0.6", "depth:5", "kl:0.2"):
        exit = ouro_edge.parse_exit(rule)
        options = {"max_tokens": 5, "exit": exit, "sampler": ouro_edge.Sampler()}
        *_, kept = model.chat(messages, sequence=sequence, **options)
        *_, fresh = model.chat(messages, **options)
        assert kept.text == fresh.text
        messages += [{"role": "assistant", "content": kept.text}, {"role": "user", "content": "and you?"}]
    assert kept.usage.cached_tokens > 0
