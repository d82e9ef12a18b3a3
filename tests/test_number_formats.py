"""benchmarks/number_formats.py without llama.cpp: what it reads, stores and compares."""

from __future__ import annotations

import json

import number_formats
import numpy as np
import pytest
from models import write_checkpoint
from peer_models import llama_quality
from peer_models.install import build_llama_cpp
from toy_text import add_tokenizer

import ouro_edge
from ouro_edge.evaluation.divergence import OriginalWeights
from ouro_edge.export.open_checkpoint import open_checkpoint

PRINTED = """
====== Perplexity statistics ======
Mean PPL(Q)                   :  30.142071 ±   2.103390
Mean PPL(base)                :  28.170807 ±   1.931842
====== KL divergence statistics ======
Mean    KLD:   0.064911 ±   0.001676
Maximum KLD:   1.122344
99.9%   KLD:   0.513339
99.0%   KLD:   0.283337
Median  KLD:   0.050311
Minimum KLD:  -0.000004
====== Token probability statistics ======
Same top p: 84.118 ± 0.935 %
"""


def test_the_output_of_llama_perplexity_is_read():
    assert llama_quality.printed(PRINTED) == pytest.approx(
        {"perplexity": 30.142071, "kl": 0.064911, "median": 0.050311, "percentile_99": 0.283337, "same_top": 0.84118}
    )
    assert llama_quality.final_estimate("Final estimate: PPL = 28.1708 +/- 1.93184") == 28.1708
    with pytest.raises(SystemExit, match="printed no median"):
        llama_quality.printed(PRINTED.replace("Median", ""))


def test_a_row_that_is_there_is_not_measured_again(tmp_path):
    table = number_formats.Table(tmp_path / "results.json")
    figures = {"run_by": "x", "bytes": 5_000_000, "kl": 0.1, "median": 0.2, "percentile_99": 0.3, "same_top": 0.5,
               "perplexity": 7.0}  # fmt: skip
    table.add("a", lambda: figures)
    again = number_formats.Table(tmp_path / "results.json")
    again.add("a", lambda: pytest.fail("measured again"))
    number_formats.Table(tmp_path / "results.json", "^c").add("b", lambda: pytest.fail("not wanted"))
    assert json.loads((tmp_path / "results.json").read_text())["a"]["kl"] == 0.1
    assert again.text().splitlines()[-1] == "| a | x | 5.0 | 0.1000 | 0.2000 | 0.300 | 50.0% | 7.000 |"


def test_every_format_has_its_own_name_and_file():
    rows = list(number_formats.exports())
    assert len({row.name for row in rows}) == len({row.file for row in rows}) == len(rows) == 20
    assert sum(row.precision == "int4" and row.rounding is not None for row in rows) == 6


def test_an_export_is_compared_with_the_checkpoint(tmp_path):
    source = write_checkpoint(tmp_path / "off", model_type="llama", vocab_size=320, max_position_embeddings=512)
    add_tokenizer(source)
    ours = number_formats.Ours(tmp_path)
    ours.windows = [ids[:40] for ids in ours.windows[:1]]
    path = ours.export(number_formats.Export("int8"))
    with_activations, alone = ours.measure(path), ours.weights_only(path)
    assert 0 < alone["kl"] < with_activations["kl"] < 0.1
    assert number_formats.size(path) == sum(f.stat().st_size for f in path.iterdir())
    assert len(list((tmp_path / "states").iterdir())) == 1
    checkpoint = open_checkpoint(source)
    np.testing.assert_array_equal(
        ours.original.hidden(ours.windows[0]),
        OriginalWeights(checkpoint.config, checkpoint.weights).hidden(ours.windows[0]),
    )
    assert ours.export(number_formats.Export("int8")) == path and ouro_edge.load(path, threads=1)


def test_tools_that_are_there_are_not_built(tmp_path):
    (tmp_path / "llama-quantize").touch()
    build_llama_cpp(tmp_path, ("llama-quantize",), lambda text: pytest.fail(text))
