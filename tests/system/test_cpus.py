"""The default number of threads, and the name of the CPU."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import ouro_edge
from ouro_edge.runtime.backend import session
from ouro_edge.system import cpus
from ouro_edge.system.cpus import available_threads, cpu_name, cpu_quota


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


def groups(tmp_path, version, path, limits, *, root="/"):
    """A directory as /proc/self, whose control groups below `root` have these limits: {"": "max 100000", ...}."""
    top = tmp_path / "cgroup"
    for name, limit in limits.items():
        group = top / name
        group.mkdir(parents=True, exist_ok=True)
        if version == 2:
            (group / "cpu.max").write_text(limit + "\n")
        else:
            for file, value in zip(("cpu.cfs_quota_us", "cpu.cfs_period_us"), limit.split(), strict=True):
                (group / file).write_text(value + "\n")
    proc = tmp_path / "proc"
    proc.mkdir()
    kind = "cgroup2 cgroup rw" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
    lines = [f"30 23 0:26 {root} {top} rw,nosuid - {kind}", "25 1 8:1 / / rw - ext4 /dev/sda rw",
             f"31 23 0:27 / {tmp_path / 'memory'} rw - cgroup cgroup rw,memory"]  # fmt: skip
    (proc / "mountinfo").write_text("\n".join(lines) + "\n")
    group = f"0::{path}" if version == 2 else f"4:memory:/other\n3:cpu,cpuacct:{path}\n0::/"
    (proc / "cgroup").write_text(group + "\n")
    return proc


@pytest.mark.parametrize(
    ("version", "path", "limits", "quota"),
    [
        (2, "/", {"": "200000 100000"}, 2),
        (2, "/", {"": "max 100000"}, None),
        (2, "/", {"": "150000"}, 1.5),
        (2, "/a/b", {"": "max 100000", "a": "300000 100000", "a/b": "max 100000"}, 3),  # nested: the parent's
        (2, "/a/b", {"a": "300000 100000", "a/b": "50000 100000"}, 0.5),
        (2, "/a", {"a": "max 100000", "other": "100000 100000"}, None),
        (2, "/../..", {"": "400000 200000"}, 2),  # a group outside this namespace
        (1, "/", {"": "-1 100000"}, None),
        (1, "/", {"": "250000 100000"}, 2.5),
        (1, "/a/b", {"": "-1 100000", "a": "100000 100000", "a/b": "-1 100000"}, 1),
        (2, "/gone", {}, None),
    ],
)
def test_quotas(tmp_path, version, path, limits, quota):
    assert cpu_quota(groups(tmp_path, version, path, limits)) == quota


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_sees_its_group_as_the_root_of_the_mount(tmp_path, version):
    proc = groups(tmp_path, version, "/docker/1f", {"": "200000 100000"}, root="/docker/1f")
    assert cpu_quota(proc) == 2


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "threads"), [(None, 16), (2, 2), (1.5, 2), (0.2, 1), (2.001, 2), (64, 16)])
def test_threads_are_the_smaller_of_affinity_and_quota(monkeypatch, quota, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(cpus, "cpu_quota", lambda proc: quota)
    assert available_threads() == threads
