"""The command line as a user meets it: every command, its help, and one clear line when something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from models import GOLDEN, write_checkpoint
from toy_text import add_tokenizer

from ouro_edge import convert, loading
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.bundle.fitted_gate import FittedGate, write_gate
from ouro_edge.cli import main
from ouro_edge.errors import RequestError

COMMANDS = ("cache", "calibrate", "chat", "export", "fit-gate", "inspect", "run", "trace", "verify")


def ouro(*arguments, stdin=None):
    """Run the command in this process; exceptions that are not ours surface as failures."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments, says, stdin=None):
    """The command ends with 1 and one line on stderr that contains `says`."""
    result = ouro(*arguments, stdin=stdin)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    assert says in result.stderr, result.stderr


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """An exported model with a tokenizer and a chat template."""
    root = tmp_path_factory.mktemp("talker")
    add_tokenizer(write_checkpoint(root / "checkpoint", vocab_size=300))
    assert ouro("export", root / "checkpoint", root / "model", "-p", "fp32").exit_code == 0
    return root / "model"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command):
    result = ouro(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output and "--help" in result.output
    assert all(len(line) <= 100 for line in result.output.splitlines())


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from ouro_edge.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted(set(sys.modules) & {'numpy','onnx','onnxruntime','gguf','tokenizers','jinja2',"
        "'huggingface_hub','safetensors','torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
    assert done.stdout.rstrip().endswith("[]")


def test_golden_answers_through_the_command_line(golden, bundle_of):
    for row in (0, 1):
        prompt = " ".join(map(str, golden["input_ids"][row, :12]))
        for threshold in ("0.3", "0.7", "1.0"):
            wanted = golden[f"greedy_threshold_{threshold}_row{row}"].tolist()
            result = ouro("run", bundle_of(), "--ids", prompt, "-n", 24, "--exit-threshold", threshold, "--json")
            data = json.loads(result.stdout)
            stop = next((i + 1 for i, token in enumerate(wanted) if token in (0, 2)), len(wanted))
            assert data["ids"] == wanted[:stop]
            assert len(data["depth"]) == stop and set(data["depth"]) <= {1, 2, 3, 4}
            assert data["usage"]["loops_saved"] == data["usage"]["loops_full"] - data["usage"]["loops_run"]
            assert data["timings"]["total"] > 0


def test_run_prints_text_and_reads_standard_input(talker):
    by_option = ouro("run", talker, "-p", "hello there", "-n", 8)
    by_stdin = ouro("run", talker, "-n", 8, stdin="hello there\n")
    assert by_option.exit_code == by_stdin.exit_code == 0
    assert by_option.stdout == by_stdin.stdout
    data = json.loads(ouro("run", talker, "-p", "hello there", "-n", 8, "--json").stdout)
    assert data["text"] + "\n" == by_option.stdout
    raw = json.loads(ouro("run", talker, "-p", "hello there", "-n", 8, "--json", "--raw").stdout)
    assert raw["usage"]["prompt_tokens"] < data["usage"]["prompt_tokens"]
    system = json.loads(ouro("run", talker, "-p", "hi", "--system", "be kind", "-n", 2, "--json").stdout)
    assert system["usage"]["prompt_tokens"] > data["usage"]["prompt_tokens"]


@pytest.mark.parametrize("form", ["onnx", "gguf"])
@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"model": {}}', b"[]", b"", "too large"])
def test_a_checkpoint_with_a_broken_tokenizer_is_not_exported(tmp_path, form, content):
    source = add_tokenizer(write_checkpoint(tmp_path / "checkpoint"))  # its tokenizer has more ids than the model
    if content != "too large":
        (source / "tokenizer.json").write_bytes(content)
    refused("export", source, tmp_path / "new" / "out", "--format", form, says="tokenizer.json")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("form", ["onnx", "gguf"])
@pytest.mark.parametrize("content", [b"{% for", b"\xff", b"{{ 'a"])
def test_a_checkpoint_with_a_broken_template_is_not_exported(tmp_path, form, content):
    source = add_tokenizer(write_checkpoint(tmp_path / "checkpoint", vocab_size=300))
    (source / "chat_template.jinja").write_bytes(content)
    refused("export", source, tmp_path / "new" / "out", "--format", form, says="chat_template.jinja")
    assert list(tmp_path.iterdir()) == [source]


def test_run_without_tokenizer_works_on_ids_and_refuses_text(bundle_of):
    result = ouro("run", bundle_of(), "--ids", "5,17 3", "-n", 4)
    assert len(result.stdout.split()) == 4 and all(part.isdigit() for part in result.stdout.split())
    refused("run", bundle_of(), "-p", "hello", says="no tokenizer.json")
    refused("chat", bundle_of(), says="no tokenizer.json", stdin="hello\n")


def test_chat_answers_line_by_line(talker):
    result = ouro(
        "chat", talker, "-n", 6, "--temp", 0, stdin="hello\n/clear\nhello\n/nonsense\n/help\n/bye\nnot read\n"
    )
    first, second = result.stdout.splitlines()[:2]
    assert result.exit_code == 0
    assert first == second and len(result.stdout.splitlines()) == 2
    assert "/nonsense is not a command" in result.stderr


def test_a_failed_turn_in_a_pipe_is_told_by_the_exit_code(talker):
    result = ouro("chat", talker, "--ctx", 12, stdin="hello there, how are you today my friend\n")
    assert result.exit_code == 1 and "/clear starts a new conversation" in result.stderr
    slash = ouro("chat", talker, "-n", 2, stdin="//etc\n")
    assert slash.exit_code == 0 and "not a command" not in slash.stderr


def test_an_unexpected_exception_is_one_line(talker, monkeypatch):
    monkeypatch.setattr("ouro_edge.runtime.model.Model.render", lambda *a, **k: 1 / 0)
    refused("run", talker, "-p", "x", says="unexpected ZeroDivisionError")


def test_sampling_options_reach_the_sampler(talker):
    arguments = (
        "run",
        talker,
        "-p",
        "hi",
        "-n",
        12,
        "--json",
        "--temp",
        2,
        "--top-p",
        0.95,
        "--min-p",
        0.001,
        "--seed",
    )
    one, again, other = (json.loads(ouro(*arguments, seed).stdout)["ids"] for seed in (1, 1, 2))
    assert one == again != other
    biased = ouro("run", talker, "-p", "hi", "-n", 3, "--logit-bias", 9, 1000, "--json")
    assert json.loads(biased.stdout)["ids"] == [9, 9, 9]


def test_exit_rules(talker):
    for rule, depth in (("confidence:0", 1), ("entropy:99", 1), ("change:9", 2), ("confidence:1", 4)):
        data = json.loads(ouro("run", talker, "-p", "hello", "-n", 5, "--exit", rule, "--json").stdout)
        assert set(data["depth"]) == {depth}, rule
    assert ouro("run", talker, "-p", "hello", "-n", 5, "--exit", "agreement").exit_code == 0


def test_stop_text(talker):
    text = json.loads(ouro("run", talker, "-p", "hello", "-n", 40, "--json").stdout)["text"]
    cut = text[len(text) // 2 : len(text) // 2 + 3]
    stopped = json.loads(ouro("run", talker, "-p", "hello", "-n", 40, "--stop", cut, "--json").stdout)
    assert stopped["text"] == text[: text.index(cut)] and stopped["reason"] == "stop"


def test_inspect_names_what_matters(talker, bundle_of):
    for source in (GOLDEN, talker, bundle_of(precision="int4")):
        result = ouro("inspect", source)
        assert result.exit_code == 0
        for fact in ("loops", "exit gate", "KV per token", "tensor types", "vocabulary"):
            assert fact in result.stdout
        facts = json.loads(ouro("inspect", source, "--json").stdout)
        assert facts["loops"] == 4 and facts["exit gate"] == "yes"
    assert "down_proj" in ouro("inspect", bundle_of(precision="int4"), "--tensors").stdout


def test_the_built_in_model_is_inspected_and_verified_when_none_is_named(monkeypatch):
    result = ouro("inspect", "--json")
    assert result.exit_code == 0 and "built-in model" in result.stderr
    assert json.loads(result.stdout) == json.loads(ouro("inspect", loading.default_model(), "--json").stdout)
    result = ouro("verify", "--tokens", 4)
    assert result.exit_code == 0 and "built-in model" in result.stderr and "logits after loop 4" in result.stdout
    monkeypatch.setattr(loading, "default_model", lambda: None)
    for command in ("inspect", "verify"):
        result = ouro(command)
        assert result.exit_code == 1 and "this build has no built-in model" in result.stderr


def test_inspect_shows_the_gate_that_will_be_used(bundle_of, tmp_path):
    path = shutil.copytree(bundle_of(precision="int4"), tmp_path / "model")
    write_gate(open_bundle(path), FittedGate(np.zeros(64, np.float32), 0.0, threshold=0.35))
    facts = json.loads(ouro("inspect", path, "--json").stdout)
    assert "fitted" in facts["exit gate"] and facts["exit threshold"] == 0.35


def test_verify_passes_what_is_right_and_fails_what_is_not(bundle_of, tmp_path):
    for precision in ("fp32", "int8", "int4"):
        result = ouro("verify", bundle_of(precision=precision), "--against", GOLDEN)
        assert result.exit_code == 0 and "FAILED" not in result.stdout
        assert "logits after loop 4" in result.stdout and "checksums" in result.stdout
    other = write_checkpoint(tmp_path / "other", seed=5)
    assert ouro("export", other, tmp_path / "model", "-p", "fp32").exit_code == 0
    wrong = write_checkpoint(tmp_path / "wrong", seed=6)
    result = ouro("verify", tmp_path / "model", "--against", wrong)
    assert result.exit_code == 1 and "FAILED" in result.stdout and "out of tolerance" in result.stderr
    refused("verify", tmp_path / "model", "--against", GOLDEN / "config.json", says="not a checkpoint")


def test_verify_sees_a_graph_that_computes_something_else(tmp_path):
    import hashlib

    import onnx

    write_checkpoint(tmp_path / "checkpoint")
    ouro("export", tmp_path / "checkpoint", tmp_path / "model", "-p", "fp32")
    file = tmp_path / "model" / "model.onnx"
    graph = onnx.load(file, load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "alpha":
                attribute.f = 1.702
    file.write_bytes(graph.SerializeToString())
    manifest = json.loads((tmp_path / "model" / "ouro_edge.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["files"]["model.onnx"] = {"size": file.stat().st_size, "sha256": digest}
    (tmp_path / "model" / "ouro_edge.json").write_text(json.dumps(manifest))
    assert ouro("verify", tmp_path / "model").exit_code == 1


def test_a_checkpoint_can_be_run_directly_and_is_converted_once(talker, tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    checkpoint = shutil.copytree(talker.parent / "checkpoint", tmp_path / "checkpoint")
    assert ouro("run", checkpoint, "-p", "hello", "-n", 2).exit_code == 0
    [made] = (tmp_path / "cache").iterdir()
    before = (made / "ouro_edge.json").stat().st_mtime_ns
    assert ouro("run", checkpoint, "-p", "hello", "-n", 2).exit_code == 0
    assert (made / "ouro_edge.json").stat().st_mtime_ns == before
    (made / "head.onnx").unlink()
    assert ouro("run", checkpoint, "-p", "hello", "-n", 2).exit_code == 0  # a damaged conversion is made anew
    (made / "kv_ranges.json").unlink()
    assert ouro("run", checkpoint, "-p", "hello", "-n", 2, "--kv", "int8").exit_code == 0  # one without KV ranges too


def test_two_conversions_at_once_make_one(talker, tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    checkpoint = shutil.copytree(talker.parent / "checkpoint", tmp_path / "checkpoint")
    real = convert.export_directory

    def late(found, out, recipe, **options):
        real(found, out, recipe)  # by another process, meanwhile
        return real(found, out, recipe, **options)

    monkeypatch.setattr(convert, "export_directory", late)
    assert ouro("run", checkpoint, "-p", "hello", "-n", 2).exit_code == 0


def test_what_cannot_be_is_said_before_a_conversion(talker, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "export_directory", None)
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    for option, value in (("kv", "int16"), ("kv_share", "first"), ("gate", "mine"), ("prefill_weights", "faster")):
        with pytest.raises(RequestError, match=f"{option} is '{value}'"):
            loading.load(talker.parent / "checkpoint", **{option: value})


def test_a_text_too_short_to_calibrate_on_is_said_before_the_export(talker, tmp_path):
    (tmp_path / "tiny.txt").write_text("hi")
    arguments = ("export", talker.parent / "checkpoint", tmp_path / "out", "--calibration", tmp_path / "tiny.txt")
    refused(*arguments, says="expected some hundreds")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.txt"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("export", "nowhere/at/all", "out"), "neither a directory nor"),
        (("export", GOLDEN, "out", "-p", "int3"), "int3"),
        (("export", GOLDEN, "out", "--block-size", 48), "48"),
        (("export", GOLDEN, "out", "--revision", "main"), "revision"),
        (("run", GOLDEN / "config.json", "-p", "x"), "not a checkpoint"),
        (("inspect", "./nowhere"), "neither a directory nor"),
        (("verify", GOLDEN), "not an exported model"),
    ],
)
def test_mistakes_are_one_line(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    refused(*arguments, says=says)
    assert not (tmp_path / "out").exists()


def test_option_mistakes_are_one_line(talker, bundle_of):
    refused("run", talker, "-p", "x", "--loops", 5, says="1 to 4")
    refused("run", talker, "-p", "x", "--loops", 2, "--exit-threshold", 0.5, says="exclude each other")
    refused("run", talker, "-p", "x", "--exit-threshold", 1.5, says="1.5")
    refused("run", talker, "-p", "x", "--temp", -1, says="temperature")
    for rule in ("agreement:1", "confidence", "entropy:x", "luck:3", ""):
        refused("run", talker, "-p", "x", "--exit", rule, says="confidence:P")
    refused("run", talker, "-p", "x", "--exit", "confidence:2", says="0 to 1")
    refused("run", talker, "-p", "x", "--raw", "--system", "y", says="--raw")
    refused("run", talker, "--ids", "1 two", says="whole numbers")
    refused("run", talker, "--ids", "1", "-p", "x", says="--ids")
    refused("run", talker, "-p", "", "--raw", says="empty")
    refused("run", bundle_of(), "--ids", "999", says="vocabulary")


def test_an_exported_model_is_not_exported_again(talker, tmp_path):
    refused("export", talker, tmp_path / "out", says="already")
