"""Prelude, core and coda in NumPy against what the published modelling code computed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import GOLDEN

from ouro_edge.arch.config import ModelConfig, from_hf
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.arch.programs import raven, raven_reference
from ouro_edge.arch.reference import entry, rope_tables, run_pass
from ouro_edge.errors import ConfigError
from ouro_edge.export.open_checkpoint import open_checkpoint

HUGINN, LLAMA, OLMO = (GOLDEN.parent / name for name in ("raven-tiny", "retrofit-tiny", "retrofit-olmo-tiny"))
PROMPT = 12
ROWS = pytest.mark.parametrize("row", [0, 1])


class Case:
    """A golden model: config, weights and the arrays of the published code."""

    def __init__(self, path):
        checkpoint = open_checkpoint(path)
        self.config, self.weights = checkpoint.config, dict(checkpoint.weights)
        self.weights.setdefault("head", self.weights["embedding"])
        with np.load(path / "expected.npz") as arrays:
            self.expected = dict(arrays)

    def states(self, ids, steps, start=None):
        return raven_reference.core_states(self.config, self.weights, np.asarray(ids), steps, start)

    def logits(self, rows):
        return raven_reference.coda(self.config, self.weights, rows) @ self.weights["head"].T


@pytest.fixture(scope="module", params=[HUGINN, LLAMA, OLMO], ids=lambda path: path.name)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def huginn():
    return Case(HUGINN)


@ROWS
def test_every_step(case, row):
    ids, width = case.expected["input_ids"][row], case.config.hidden_size
    states = case.states(ids, 8)
    np.testing.assert_allclose(states[..., width:], case.expected["core_states"][:, row], atol=1e-4)
    for step in range(8):
        np.testing.assert_allclose(states[step, :, :width], case.expected["prelude_out"][row], atol=1e-4)
    for steps in (1, 2, 4, 8):
        np.testing.assert_allclose(
            case.logits(states[steps - 1]), case.expected[f"logits_steps{steps}"][row], atol=1e-4
        )
    coda = loop_program(case.config).stack(raven.CODA)
    entered = entry(case.config, case.weights, coda, states[7])
    np.testing.assert_allclose(entered, case.expected["coda_in_steps8"][row], atol=1e-4)
    trained = states[case.config.loops - 1]
    np.testing.assert_allclose(case.logits(trained), case.expected["logits"][row], atol=1e-4)


@ROWS
def test_another_first_state(case, row):
    states = case.states(case.expected["input_ids"][row], 4, case.expected["init_state"][row])
    np.testing.assert_allclose(case.logits(states[-1]), case.expected["logits_state_steps4"][row], atol=1e-4)


@pytest.mark.parametrize(("steps", "name"), [(2, "greedy_zero_steps2"), (4, "greedy_zero_steps4"), (None, "greedy")])
@ROWS
def test_greedy_continuation(case, row, steps, name):
    ids = case.expected["input_ids"][row, :PROMPT].tolist()
    for token in case.expected[name][row]:
        assert int(np.argmax(case.logits(case.states(ids, steps or case.config.loops)[-1])[-1])) == token
        ids.append(int(token))


@pytest.mark.parametrize(
    ("name", "prompt_depth", "depths"),
    [("mixed_pre4_dec2_full", 4, [2] * 12), ("mixed_pre2_dec4_latest", 2, [4] * 12),
     ("mixed_pre3_decvar_latest", 3, None)],
)  # fmt: skip
@ROWS
def test_caches_of_the_published_code(huginn, row, name, prompt_depth, depths):
    """Theirs differ from `exact`: at step s, a token reads token j at step min(s, depth of j)."""
    depths = huginn.expected["mixed_steps"].tolist() if depths is None else depths
    depths = [prompt_depth] * PROMPT + depths
    found = _cached(huginn, huginn.expected["input_ids"][row], depths, lambda step, depth, at: min(step, depth))
    np.testing.assert_allclose(found, huginn.expected[name][row], atol=1e-4)


@ROWS
def test_the_published_cache_of_the_last_step_only(huginn, row):
    """`compress-s4` at 4 steps: the prompt is read step by step, later tokens read the last step of earlier ones."""

    def look_up(step, depth, at):
        return step if at < PROMPT else depth

    found = _cached(huginn, huginn.expected["input_ids"][row], [4] * 24, look_up)
    np.testing.assert_allclose(found, huginn.expected["compress_s4_steps4"][row], atol=1e-4)


@ROWS
def test_exact_equals_the_published_cache_when_no_token_goes_deeper_than_the_prompt(huginn, row):
    depths, rows = raven_reference.exact(
        huginn.config, huginn.weights, huginn.expected["input_ids"][row], 4, lambda states, _: len(states) == 2,
        prompt=PROMPT + 1,
    )  # fmt: skip
    assert depths.tolist() == [4] * PROMPT + [2] * 12
    expected = huginn.expected["mixed_pre4_dec2_full"][row]
    np.testing.assert_allclose(rows @ huginn.weights["head"].T, expected, atol=1e-4)


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_exact_without_exits_is_a_fixed_number_of_steps(case, limit):
    ids = case.expected["input_ids"][0]
    depths, rows = raven_reference.exact(case.config, case.weights, ids, limit, lambda *_: False)
    assert set(depths.tolist()) == {limit}
    np.testing.assert_allclose(rows @ case.weights["head"].T, case.expected[f"logits_steps{limit}"][0], atol=1e-4)


def _cached(case, ids, depths, look_up):
    """Logits [T, V] of tokens with these depths, if a token at `at` and a step reads an earlier one of this depth at
    `look_up(step, depth, at)`.
    """
    config, weights = case.config, case.weights
    program, (cos, sin) = loop_program(config), rope_tables(config, len(ids))
    kept = {}  # (stack, step, layer, position) -> key, value
    out = []
    for at, token in enumerate(ids):

        def run(rows, name, step=0, at=at):
            def extend_layer(layer):
                def extend(key, value):
                    kept[name, step, layer, at] = key, value
                    earlier = [kept[name, look_up(step, depths[j], at) if step and j < at else step, layer, j]
                               for j in range(at + 1)]  # fmt: skip
                    return tuple(np.concatenate(part) for part in zip(*earlier, strict=True))

                return extend

            stack = program.stack(name)
            extends = [extend_layer(layer) for layer in range(len(stack.layers))]
            return run_pass(config, weights, stack, rows, cos[at : at + 1], sin[at : at + 1], extends)

        rows = run(program.first_rows(weights["embedding"][[token]]), raven.PRELUDE)
        for step in range(1, depths[at] + 1):
            rows = run(rows, raven.CORE, step)
        out.append(program.output(run(rows, raven.CODA), config.hidden_size)[0] @ weights["head"].T)
    return np.stack(out)


def hf(path=HUGINN, **changes):
    data = {**json.loads((path / "config.json").read_text()), **changes}
    return {name: value for name, value in data.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "value"),
    [("initial_state_mode", "skip-adapter"), ("initial_state_mode", "embed-init"), ("bias", True),
     ("block_class_name", "TransformerPreNormBlock"), ("injection_type", "add"),
     ("mlp_class_name", "BaseMLP"), ("nonlin_name", "GELU"), ("norm_class_name", "LayerNorm"), ("n_layers", 9),
     ("n_layers_in_coda", 0), ("n_layers_in_prelude", None), ("mean_recurrence", None), ("mean_recurrence", 0),
     ("head_dim", 16), ("padded_vocab_size", 319), ("n_embd", 50), ("num_key_value_heads", 2), ("rope_base", None),
     ("test_time_noise", 0.1), ("init_values", {}), ("block_size", None), ("attention_window", 7),
     ("hidden_size", 64)],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name.removeprefix("padded_").replace("init_values", "std|init_values")
                       .replace("nonlin_name", "hidden_act").replace("rope_base", "rope_theta")):  # fmt: skip
        from_hf(hf(**{name: value}))


def test_the_variants_differ_in_what_they_read():
    huginn, llama = from_hf(hf()), from_hf(hf(LLAMA, rope_scaling=None), raven.LLAMA)
    assert huginn.stop_token_ids == (317,) and huginn.max_positions == 256 and huginn.rope_theta == 50000
    assert llama.stop_token_ids == () and llama.max_positions == 131072 and llama.rope_theta == 500000
    assert (huginn.embedding_scale, llama.embedding_scale) == (48**0.5, 1.0)
    assert huginn.qkv_bias and not llama.qkv_bias and llama.num_kv_heads == 2
    for config in (huginn, llama):
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="qk_bias"):
        from_hf(hf(LLAMA, rope_scaling=None, qk_bias=True), raven.OLMO)
    with pytest.raises(ConfigError, match="model_type"):
        from_hf(hf(model_type=raven.LLAMA))


def test_the_head_may_be_stored_or_tied(tmp_path, huginn):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(HUGINN / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hf()))
    assert "head" not in dict(open_checkpoint(tmp_path).weights)
    np.testing.assert_array_equal(open_checkpoint(tmp_path).weights["head"], huginn.weights["head"])
    (tmp_path / "config.json").write_text(json.dumps(hf(tie_embeddings=False)))
    save_file(load_file(HUGINN / "model.safetensors"), tmp_path / "model.safetensors")
    assert "head" in dict(open_checkpoint(tmp_path).weights)
