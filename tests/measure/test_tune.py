"""Every format and thread count is timed as what it says; how the best is chosen."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest

from ouro_edge.measure import tune
from ouro_edge.measure.tune import FORMATS, Trial, best_format, best_threads, thread_counts, time_formats


@pytest.fixture
def small(monkeypatch):
    shapes = replace(tune.SHAPES, hidden_size=256, intermediate_size=256, num_heads=2, num_kv_heads=2, num_layers=1)
    monkeypatch.setattr(tune, "SHAPES", shapes)


def test_every_format_meets_every_thread_count(small):
    trials = [event for event in time_formats(FORMATS, [1, 2]) if isinstance(event, Trial)]
    assert [(t.format, t.threads) for t in trials] == [(f, n) for f in FORMATS for n in (1, 2)]
    assert all(t.one_row > 0 and t.prefill_copy > 0 and t.cpu_share > 0 for t in trials)
    weights = 256 * 256 * (3 + 1 + 3)
    norms = 4 * 256 * 5
    sizes = {t.format.name: t.weight_bytes - norms for t in trials}
    assert list(sizes.values()) == [
        *(weights // 2 + 4 * weights // block for block in (32, 64, 128, 128)),
        weights + 4 * 7 * 256,
    ]


def test_graphs_are_what_their_names_say(small):
    seen = []
    for format_ in FORMATS:
        nodes = onnx.load_from_string(tune._graph(format_).model).graph.node
        values = [{a.name: a.i for a in node.attribute} for node in nodes if node.op_type == "MatMulNBits"]
        seen.append({(v["bits"], v["block_size"], v["accuracy_level"]) for v in values})
    assert seen == [{(4, 32, 4)}, {(4, 64, 4)}, {(4, 128, 4)}, {(4, 128, 0)}, set()]


def trials(*seconds, threads=1):
    return [Trial(format_, threads, 1, time, 1.0, 1.0) for format_, time in zip(FORMATS, seconds, strict=True)]


def test_the_default_block_stays_unless_another_is_clearly_faster():
    assert best_format(trials(9.5, 9.8, 10, 1, 1)).format.block_size == 128
    assert best_format(trials(8, 7, 10, 1, 1)).format.block_size == 64


def test_as_many_threads_as_do_not_harm():
    def best(*seconds):
        return best_threads(
            [Trial(FORMATS[2], n, 1, time, 1.0, 1.0) for n, time in enumerate(seconds, start=1)]
        ).threads

    assert best(20, 10, 10.5, 10.8) == 4
    assert best(20, 10, 10.5, 14) == 3
    assert best(10, 20) == 1


def test_thread_counts_are_few_and_reach_all():
    assert [thread_counts(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 3, 4, 5, 6], list(range(1, 9))]
    assert thread_counts(128) == [16, 32, 48, 64, 80, 96, 112, 128]
