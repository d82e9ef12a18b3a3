"""Free memory is the least of what the machine, the container and the process's own limit leave."""

from __future__ import annotations

import subprocess
import sys

import pytest
from metered import onnx_backend

import ouro_edge
from ouro_edge.runtime.backend import session
from ouro_edge.system import memory
from ouro_edge.system.memory import available_memory

PARALLEL = "session.prepack.enable_parallel"


def group(path, limit, used=0, cached=0):
    path.mkdir(exist_ok=True)
    (path / "memory.max").write_text(limit)
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 3\n")


@pytest.fixture(autouse=True)
def groups(monkeypatch, tmp_path):
    """A tree of control groups, in which this process is a/b."""
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/a/b\n")
    monkeypatch.setattr(memory, "OWN_CGROUP_FILE", tmp_path / "own")
    monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path / "groups")
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    return tmp_path / "groups"


def test_the_machine_has_memory(monkeypatch, groups):
    assert 1 << 20 < available_memory() < 1 << 50
    monkeypatch.setattr(memory, "OWN_CGROUP_FILE", groups / "nowhere")
    assert 1 << 20 < available_memory() < 1 << 50


def test_groups_have_less_and_their_cached_files_count_as_free(groups):
    group(groups / "a" / "b", "5000\n", 4000, 700)
    assert available_memory() == 5000 - 4000 + 703
    group(groups / "a" / "b", "5000\n", 9000)
    assert available_memory() == 0
    group(groups / "a" / "b", "max\n", 9000)
    assert available_memory() > 1 << 20
    group(groups / "a", "800\n")  # around it
    assert available_memory() == 803
    group(groups, "600\n")
    assert available_memory() == 603


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space")
def test_a_process_may_be_held_to_less():
    code = (
        "import resource, psutil\n"
        "from ouro_edge.system.memory import available_memory\n"
        "held = psutil.Process().memory_info().vms + 64_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held, held))\n"
        "print(available_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) <= 64_000_000


@pytest.mark.parametrize("plenty", [True, False])
def test_weights_are_packed_in_parallel_where_memory_is_plentiful(monkeypatch, bundle_of, checkpoint_of, plenty):
    monkeypatch.setattr(session, "available_memory", lambda: 1 << 40 if plenty else 1 << 10)
    with ouro_edge.load(bundle_of(checkpoint_of(), "int4", block_size=32)) as model:
        options = onnx_backend(model).session_for(1).get_session_options()
        if plenty:
            assert options.get_session_config_entry(PARALLEL) == "1"
        else:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry(PARALLEL)
        assert model.forward([1, 2, 3], exit=ouro_edge.FullDepth()).logits.shape[0] == 3
