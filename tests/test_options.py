"""One table of options: the typed classes, the command line, `/set`, the server, the plugin and the page agree."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import click
import pydantic
import pytest
from click.testing import CliRunner

import ouro_edge
from ouro_edge import ExitThreshold, FixedDepth, GenerationOptions, LoadOptions, LoopBudget, RequestError, Sampler
from ouro_edge.cli import main
from ouro_edge.cli.reference import options_page
from ouro_edge.runtime.backend.kv import KV_TYPES
from ouro_edge.runtime.exits.parse import RULES, parse_exit
from ouro_edge.runtime.options import GENERATION_OPTIONS, LOAD_OPTIONS, KVType
from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_ALTERNATIVES
from ouro_edge.server.options import read_options
from ouro_edge.terminal.settings import CHAT_OPTIONS, OPTIONS, changed

ROOT = Path(__file__).parents[1]
TABLE = {**GENERATION_OPTIONS, **LOAD_OPTIONS, **CHAT_OPTIONS}


@pytest.fixture(scope="module")
def nano():
    with ouro_edge.load(threads=1) as model:
        yield model


@pytest.fixture
def plugin(monkeypatch):
    """The plugin for llm, with a stand-in for llm; tests/integrations/test_llm_plugin.py uses the real one."""
    stub: Any = ModuleType("llm")
    stub.Model, stub.hookimpl = object, lambda function: function
    stub.Options = type("Options", (pydantic.BaseModel,), {"model_config": pydantic.ConfigDict(extra="forbid")})
    monkeypatch.setitem(sys.modules, "llm", stub)
    monkeypatch.delitem(sys.modules, "ouro_edge.integrations.llm_plugin", raising=False)
    import ouro_edge.integrations.llm_plugin as module

    yield module
    del sys.modules["ouro_edge.integrations.llm_plugin"]


def parameters(command):
    """The visible options of a command, by name."""
    found = main.get_command(click.Context(main), command)
    return {p.name: p for p in found.params if isinstance(p, click.Option) and not p.hidden}


def test_every_field_of_the_classes_is_one_option():
    for options, table in ((GenerationOptions, GENERATION_OPTIONS), (LoadOptions, LOAD_OPTIONS)):
        fields = {field.name: field.type for field in dataclasses.fields(options)}
        assert list(fields) == list(table) == [option.name for option in table.values()]
    assert len(TABLE) == len(GENERATION_OPTIONS) + len(LOAD_OPTIONS) + len(CHAT_OPTIONS)


def test_every_help_is_one_short_sentence():
    for option in TABLE.values():
        most = 160 if option.name == "exit" else 110  # it lists all rules
        assert len(option.help) <= most and option.help.endswith(".") and "\n" not in option.help, option.name
    assert all(rule.form in GENERATION_OPTIONS["exit"].help for rule in RULES.values())


@pytest.mark.parametrize("command", ["run", "chat", "trace"])
def test_the_command_line_has_the_options_of_the_table(command):
    found = parameters(command)
    tables = [GENERATION_OPTIONS, LOAD_OPTIONS] + [CHAT_OPTIONS] * (command == "chat")
    wanted = {name: option for table in tables for name, option in table.items() if "cli" in option.interfaces}
    assert set(wanted) <= set(found)
    for name, option in wanted.items():
        flags = tuple("/".join(pair) for pair in zip(found[name].opts, found[name].secondary_opts, strict=False))
        assert (flags or tuple(found[name].opts)) == option.flags
        assert found[name].help.startswith(option.help), name


def test_serve_has_the_options_of_the_depth_and_of_loading():
    depth = {name for name, option in GENERATION_OPTIONS.items() if option.group == "depth"}
    loading = {name for name, option in LOAD_OPTIONS.items() if "cli" in option.interfaces}
    assert depth | loading <= set(parameters("serve"))
    assert not set(parameters("serve")) & (set(GENERATION_OPTIONS) - depth)


def test_set_has_the_options_of_the_table():
    assert {option.name for option in OPTIONS.values()} == {n for n, o in TABLE.items() if "set" in o.interfaces}
    flags = {flag for parameter in parameters("chat").values() for flag in parameter.opts}
    assert {f"--{name}" for name in OPTIONS} <= flags


def test_the_page_is_made_from_the_table():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == options_page(), "run python -m ouro_edge.cli.reference > docs/options.md"
    assert set(re.findall(r"^\| `([a-z_]+)` \| [-`]", page, re.M)) == set(TABLE)


def test_the_plugin_has_the_options_of_the_table(plugin):
    fields = plugin.OuroEdge.Options.model_fields
    assert set(fields) == {"model"} | {name for name, option in TABLE.items() if "llm" in option.interfaces}
    assert fields["exit_threshold"].annotation == float | None and fields["loops"].annotation == int | None


def test_the_server_knows_the_fields_of_the_table(nano):
    given = {"exit": "agreement", "loop_budget": 2.0, "temperature": 0.5, "top_k": -1, "top_p": 0.5, "min_p": 0.1,
             "repetition_penalty": 1.1, "logit_bias": {"5": 1}, "seed": -1, "stop": "x", "max_tokens": 3,
             "lens": 2, "prefix": 3, "force_loops": True}  # fmt: skip
    read_elsewhere = {"top_logprobs", "exit_threshold", "loops"}  # by chat; the last two exclude exit
    known = {option.json_name or name for name, option in GENERATION_OPTIONS.items() if "http" in option.interfaces}
    assert set(given) == known - read_elsewhere
    fields = Fields(given, "")
    options = read_options(fields, nano, nano.default_exit())
    fields.finish()
    assert options.exit == LoopBudget(2.0, parse_exit("agreement")) and options.lens == 2
    assert options.prefix == 3
    loops = read_options(Fields({"loops": 2, "force_loops": True}, ""), nano, nano.default_exit())
    assert loops.exit == FixedDepth(2, force=True)
    assert options.sampler == Sampler(temperature=0.5, top_k=0, top_p=0.5, min_p=0.1, repetition_penalty=1.1,
                                      logit_bias={5: 1.0}, seed=2**64 - 1)  # fmt: skip
    assert GENERATION_OPTIONS["top_logprobs"].maximum == GENERATION_OPTIONS["logit_lens"].maximum == MAX_ALTERNATIVES


@pytest.mark.parametrize("name", [n for n, o in GENERATION_OPTIONS.items() if o.minimum is not None])
def test_a_range_is_the_same_everywhere(nano, name):
    option = GENERATION_OPTIONS[name]
    step = 1 if option.kind == "whole" else 0.001
    for value in {option.minimum - step} | ({option.maximum + step} if option.maximum is not None else set()):
        with pytest.raises(RequestError, match=f"{name} is .*; expected {re.escape(option.expected)}"):
            GenerationOptions(**{name: value})
        if "http" in option.interfaces and name not in ("max_tokens", "top_logprobs"):  # these two are read elsewhere
            with pytest.raises(ApiError) as refused:
                read_options(Fields({option.json_name or name: value}, ""), nano, nano.default_exit())
            assert refused.value.param == (option.json_name or name)
        if "set" in option.interfaces:
            with pytest.raises(RequestError, match=f"{name} is "):
                changed({}, option.setting, str(value))
        if "cli" in option.interfaces:
            result = CliRunner().invoke(main, ["run", "-p", "hello", f"--{option.setting}={value}"])
            assert result.exit_code == 1 and result.stderr.startswith(f"Error: {name} is "), result.stderr


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": "0.5"}, {"temperature": float("nan")}, {"temperature": True}, {"top_k": 1.5}, {"seed": "x"},
        {"loops": 2.0}, {"loops": True}, {"max_tokens": None, "stop": 5}, {"stop": (5,)}, {"speculate": "auto"},
        {"speculate": 1}, {"exit": 0.7}, {"exit": "luck"}, {"exit": "depth:0"}, {"logit_bias": [1]},
        {"logit_lens": None}, {"top_logprobs": 21}, {"temperature": 10**5000},
        {"exit": "agreement", "loops": 2}, {"exit": "depth:2,budget=2", "loop_budget": 2},
    ],
)  # fmt: skip
def test_wrong_generation_options_are_refused_in_one_line(values):
    with pytest.raises(RequestError) as refused:
        GenerationOptions(**values)
    assert list(values)[-1] in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"threads": 0}, {"threads": 1025}, {"threads": 1.5}, {"threads": "2"}, {"threads": True}, {"kv": "int16"},
        {"kv": None}, {"kv": 8}, {"kv_share": "first"}, {"context": 0}, {"context": "long"}, {"gate": "mine"},
        {"prefill_weights": "fast"}, {"prefill_weights": None},
    ],
)  # fmt: skip
def test_wrong_load_options_are_refused_in_one_line(values, bundle_of):
    [name] = values
    with pytest.raises(RequestError, match=f"^{name} is .*; expected .*") as refused:
        LoadOptions(**values)
    with pytest.raises(RequestError) as by_load:
        ouro_edge.load(bundle_of(), **values)
    assert str(by_load.value) == str(refused.value) and "\n" not in str(refused.value)


def test_types_of_the_cache_are_those_that_there_are():
    assert set(get_args(KVType)) == {"auto", *KV_TYPES}


def test_options_become_arguments(nano):
    options = GenerationOptions(exit="gate:0.7,ceiling=3", temperature=0.8, top_k=-1, seed=-1, stop="x", max_tokens=5)
    arguments = options.arguments(nano)
    assert arguments["exit"] == ExitThreshold(0.7, ceiling=3) and arguments["stop"] == ("x",)
    sampler = arguments["sampler"]
    assert (sampler.temperature, sampler.top_k, sampler.seed) == (0.8, 0, 2**64 - 1)
    assert arguments["speculate"] == "auto" and arguments["max_tokens"] == 5
    assert GenerationOptions().arguments(nano)["exit"] is None
    assert GenerationOptions(loop_budget=2).arguments(nano)["exit"] == LoopBudget(2, nano.default_exit())
    events = list(nano.generate("Ada", **GenerationOptions(max_tokens=1, logit_lens=2, top_logprobs=3).arguments(nano)))
    assert len(events[0].top_logprobs) == 3


def test_load_options_become_arguments(bundle_of):
    options = LoadOptions(threads=1, context=64, kv="fp32")
    with ouro_edge.load(bundle_of(), **options.arguments()) as model:
        assert model.config.max_positions == 64 and model.kv == "fp32"


def test_options_are_hashable_and_compare():
    assert hash(GenerationOptions(loops=2)) == hash(GenerationOptions(loops=2))
    assert GenerationOptions(loops=2) == GenerationOptions(loops=2) != GenerationOptions(loops=3)


def by_command_line(nano, plugin, options):
    flags = [part for name, value in options.items() for part in (GENERATION_OPTIONS[name].flags[-1], str(value))]
    result = CliRunner().invoke(main, ["run", "-p", "Ada likes Ben. Ada likes who?", *flags])
    if result.exit_code:
        raise RequestError(result.stderr.removeprefix("Error: ").strip())


def by_set(nano, plugin, options):
    """The exit rule in use, as in `chat`; `/set` itself replaces one rule by another."""
    return GenerationOptions(**options).arguments(nano).get("exit")


def by_server(nano, plugin, options):
    try:
        return read_options(Fields(dict(options), ""), nano, nano.default_exit()).exit
    except ApiError as problem:
        raise RequestError(problem.message) from None


def by_plugin(nano, plugin, options):
    """What the plugin reports of an answer."""
    model, usage = plugin.OuroEdge(), {}
    model._loaded[None] = nano  # spares loading it for each case
    message = SimpleNamespace(role="user", parts=[SimpleNamespace(text="Ada likes Ben. Ada likes who?")])
    prompt = SimpleNamespace(options=model.Options(**options), messages=[message])
    assert list(model.execute(prompt, True, SimpleNamespace(set_usage=usage.update)))
    return usage


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"exit_threshold": 0.7, "loops": 3}, "exit_threshold and loops exclude each other"),
        ({"exit": "agreement", "loops": 3}, "exit and loops exclude each other"),
        ({"exit": "agreement", "exit_threshold": 0.5}, "exit and exit_threshold exclude each other"),
        ({"exit": "agreement,budget=2", "loop_budget": 2.0}, "loop_budget and the budget in exit exclude each other"),
        ({"exit": "luck:3"}, "'luck' is not a rule"),
        ({"exit": "depth:3,ceiling=2"}, "depth takes no ceiling"),
        ({"exit": "gate:0.5,floor=3,ceiling=2"}, "ceiling 2 is below floor 3"),
    ],
)
def test_every_interface_refuses_with_the_same_message(nano, plugin, options, says):
    messages = set()
    for give in (by_command_line, by_set, by_server, by_plugin):
        with pytest.raises(RequestError, match=re.escape(says)) as refused:
            give(nano, plugin, options)
        messages.add(str(refused.value))
    assert len(messages) == 1


@pytest.mark.parametrize("text", [*[f"gate:0.5{rest}" for rest in ("", ",floor=2", ",ceiling=3,budget=2")],
                                  "depth:2", "full", "confidence:0.9", "entropy:1", "kl:0.1", "change:0.1", "agreement",
                                  "entropy-change:0.1", "turn:0.1", "stable:2",
                                  "weighted"])  # fmt: skip
def test_every_interface_takes_every_rule(nano, plugin, text):
    assert by_set(nano, plugin, {"exit": text}) == by_server(nano, plugin, {"exit": text}) == parse_exit(text)
    by_command_line(nano, plugin, {"exit": text})
    assert by_plugin(nano, plugin, {"exit": text})["output"] > 0


def test_the_options_of_the_plugin_count(nano, plugin):
    usage = by_plugin(nano, plugin, {"exit": "depth:2", "max_tokens": 3})
    assert usage["details"]["mean_depth"] == 2 and usage["output"] <= 3


def test_set_takes_rules_and_replaces_one_by_another(nano):
    values = changed(changed({}, "loops", "2"), "exit", "gate:0.7,ceiling=3")
    assert values == {"loops": None, "exit": "gate:0.7,ceiling=3", "exit_threshold": None}
    assert GenerationOptions(**values).arguments(nano)["exit"] == ExitThreshold(0.7, ceiling=3)
    assert changed(values, "exit", "default")["exit"] is None
    assert changed({}, "speculate", "off") == {"speculate": False}


def test_a_setting_is_checked_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr("ouro_edge.loading.load", None)
    for command in (["run", "-p", "x"], ["chat"], ["trace", "-p", "x"], ["serve", "--port", "0"]):
        result = CliRunner().invoke(main, [*command, "--exit", "luck"], input="")
        assert result.exit_code == 1 and "'luck' is not a rule" in result.stderr, command
        result = CliRunner().invoke(main, [*command, "--kv", "int16"], input="")
        assert result.stderr == "Error: kv is 'int16'; expected auto, fp32, int8 or int4\n", command


def test_a_trace_refuses_a_budget_in_the_rule_as_well(monkeypatch):
    monkeypatch.setattr("ouro_edge.loading.load", None)
    for budget in (["--exit", "gate:0.5,budget=2"], ["--loop-budget", "2"]):
        result = CliRunner().invoke(main, ["trace", "-p", "x", *budget])
        assert result.exit_code == 1 and "omit it" in result.stderr


@pytest.mark.parametrize(("old", "new"), [("fast", "int8"), ("lean", "none"), ("auto", "auto")])
def test_the_old_name_of_prefill_weights(monkeypatch, old, new):
    seen = []
    monkeypatch.setattr("ouro_edge.loading.prefill_copy_for", lambda bundle, choice, progress: seen.append(choice))
    with pytest.warns(DeprecationWarning, match="prefill_weights"):
        ouro_edge.load(threads=1, prefill=old).close()
    for flags in (["--prefill", old], ["--prefill-weights", new]):
        assert CliRunner().invoke(main, ["run", "-p", "hello", "-n", "1", *flags]).exit_code == 0
    assert seen == [new] * 3
    assert "--prefill " not in CliRunner().invoke(main, ["run", "--help"]).output


def test_wrong_values_of_the_old_name_are_refused():
    with pytest.raises(RequestError, match="prefill is 'faster'; expected auto, fast or lean"):
        ouro_edge.load(prefill="faster")
    for flags, says in (
        (["--prefill", "faster"], "--prefill is 'faster'; expected"),
        (["--prefill", "fast", "--prefill-weights", "none"], "give one of them"),
        (["--prefill-weights", "none", "--prefill", "fast"], "give one of them"),
    ):
        result = CliRunner().invoke(main, ["run", "-p", "x", *flags])
        assert result.exit_code == 1 and says in result.stderr, flags


def test_bench_takes_both_names_of_prefill_weights():
    for flags in (["--prefill", "lean"], ["--prefill-weights", "none"]):
        arguments = ["bench", "-p", "", "-n", "1", "--depths", "1", "--repeat", "1", "--threads", "1", *flags]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output


def test_no_summary_of_a_command_is_cut_off():
    result = CliRunner().invoke(main, ["--help"], terminal_width=80)
    commands = result.output.split("Commands:\n")[1].splitlines()
    assert len(commands) == len(main.list_commands(click.Context(main)))
    for line in commands:
        assert len(line) <= 80 and not line.endswith("..."), line


def test_fixed_depth_by_rule_and_by_shorthand_are_the_same():
    assert GenerationOptions(exit="depth:3").exit_policy() == GenerationOptions(loops=3).exit_policy() == FixedDepth(3)
