"""The default number of threads, and the name of the CPU."""

from __future__ import annotations

import json

import numpy as np

import ouro_edge
from ouro_edge.runtime.backend import session
from ouro_edge.system.cpus import available_threads, cpu_name


def test_the_default_is_the_cpus_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path))
    old = {"version": 1, "cpu": cpu_name(), "cpus": 3, "threads": 2, "measured": {}}
    old["onnxruntime"] = session.import_onnxruntime().__version__
    (tmp_path / "tune.json").write_text(json.dumps(old))  # written by earlier versions
    monkeypatch.setattr(session, "available_threads", lambda: 3)
    assert session.default_threads() == 3
    assert available_threads() >= 1


def test_threads_change_no_result():
    ids = np.random.default_rng(0).integers(3, 200, 300).tolist()
    outputs = []
    for threads in (1, 2, 3):
        with ouro_edge.load(threads=threads) as model:
            outputs.append(model.forward(ids).logits)
    assert (outputs[0] == outputs[1]).all() and (outputs[0] == outputs[2]).all()


def test_the_cpu_has_a_name():
    assert cpu_name() and cpu_name() == cpu_name().strip() and "\n" not in cpu_name()
