"""Which models, machines and requests get a prefill copy, and what the copy belongs to."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Bundles

import ouro_edge
from ouro_edge import prefill_weights
from ouro_edge.bundle.directory import DATA_FILE, open_bundle
from ouro_edge.errors import ExportError, RequestError
from ouro_edge.prefill_weights import AutoRule, Machine, check_prefill, prefill_copy_for
from ouro_edge.runtime.backend import prefill_session

HERE = frozenset({platform.machine()})
ANY_SIZE = AutoRule(HERE, min_copy_bytes=0, min_free_memory_to_copy_ratio=0, min_free_disk_to_copy_ratio=0)
GIB = 1 << 30


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("OURO_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(bundle_of: Bundles, checkpoint_of: Bundles) -> Path:
    """int4 in blocks of 16: the checkpoint's rows are 48 wide."""
    return bundle_of(checkpoint_of(), "int4", block_size=16)


@pytest.mark.parametrize(
    ("copy_bytes", "bits", "machine", "expected"),
    [
        (GIB, {4}, Machine("x86_64", 4 * GIB), True),
        (GIB, {4}, Machine("AMD64", 3 * GIB), True),
        (GIB, {4}, Machine("aarch64", 4 * GIB), False),
        (GIB, {8}, Machine("x86_64", 4 * GIB), False),
        (GIB, {4, 8}, Machine("x86_64", 4 * GIB), False),
        (0, set(), Machine("x86_64", 4 * GIB), False),
        (GIB, {4}, Machine("x86_64", 3 * GIB - 1), False),
        (GIB // 2 - 1, {4}, Machine("x86_64", 4 * GIB), False),
    ],
)
def test_when_auto_takes_the_copy(copy_bytes: int, bits: set[int], machine: Machine, expected: bool) -> None:
    assert AutoRule().pays(copy_bytes, bits, machine) is expected


def test_room_on_disk_for_two_copies() -> None:
    assert AutoRule().fits(GIB, 2 * GIB) and not AutoRule().fits(GIB, 2 * GIB - 1)


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_auto_makes_a_copy_of_int4_only(
    bundle_of: Bundles, checkpoint_of: Bundles, cache: Path, precision: str
) -> None:
    bundle = open_bundle(bundle_of(checkpoint_of(), precision, block_size=16))
    assert prefill_copy_for(bundle, "auto") is None and not cache.exists()  # a small model
    assert prefill_copy_for(bundle, "auto", rule=replace(ANY_SIZE, min_free_memory_to_copy_ratio=1e12)) is None
    assert (prefill_copy_for(bundle, "auto", rule=ANY_SIZE) is not None) == (precision == "int4")


def test_auto_leaves_a_full_disk_alone(bundle: Path, cache: Path) -> None:
    opened, full = open_bundle(bundle), replace(ANY_SIZE, min_free_disk_to_copy_ratio=1e18)
    assert prefill_copy_for(opened, "auto", rule=full) is None and not cache.exists()
    made = prefill_copy_for(opened, "int8")
    assert made is not None and prefill_copy_for(opened, "auto", rule=full) == made  # needs no more room


def test_a_cpu_that_multiplies_inexactly(bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill_session, "multiplies_exactly", lambda probe: False)
    assert prefill_copy_for(open_bundle(bundle), "auto", rule=ANY_SIZE) is None
    with pytest.raises(RequestError, match="needs a CPU that multiplies int8 exactly"):
        prefill_copy_for(open_bundle(bundle), "int8")
    assert not cache.exists()  # nothing is written for a CPU that cannot use it


def test_an_app_without_onnx_runs_without_a_copy(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ouro_edge.export.prefill_copy", None)  # as if what it imports were missing
    assert prefill_copy_for(open_bundle(bundle), "auto", rule=ANY_SIZE) is None
    with pytest.raises(
        ExportError, match=r"needs ouro_edge\.export\.prefill_copy to make its copy of the weights: use none"
    ):
        prefill_copy_for(open_bundle(bundle), "int8")


@pytest.mark.parametrize("problem", [PermissionError(13, "Permission denied"), RuntimeError("no home directory")])
def test_no_cache_directory_is_one_line_and_silent_for_auto(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def fail() -> Path:
        raise problem

    monkeypatch.setattr(prefill_weights, "cache_directory", fail)
    assert prefill_copy_for(open_bundle(bundle), "auto", rule=ANY_SIZE) is None
    with pytest.raises(ExportError, match=r"cannot be stored: .*use --prefill-weights none"):
        prefill_copy_for(open_bundle(bundle), "int8")


def test_the_copy_belongs_to_the_file_and_to_its_config(bundle: Path, cache: Path, tmp_path: Path) -> None:
    """Not to the checksum that a manifest claims: a large file is not hashed when it is opened."""
    same = shutil.copytree(bundle, tmp_path / "same")
    config, made = open_bundle(bundle).config, list[Path | None]()
    for path, changes in ((bundle, {}), (same, {}), (same, {"rms_norm_eps": 2 * config.rms_norm_eps})):
        opened = open_bundle(path)
        opened.config = replace(config, **changes)
        made.append(prefill_copy_for(opened, "int8"))
        assert prefill_copy_for(opened.with_context(50), "int8") == made[-1]
    assert len(set(made)) == 3 and set(cache.iterdir()) == {made[0], made[2]}  # the newest of each file is kept
    data = same / DATA_FILE
    os.utime(data, ns=(0, data.stat().st_mtime_ns + 1))
    newest = prefill_copy_for(open_bundle(same), "int8")
    assert newest not in made and set(cache.iterdir()) == {made[0], newest}


def test_the_old_names_of_the_choices(bundle: Path, cache: Path) -> None:
    assert [check_prefill(choice) for choice in ("auto", "fast", "lean")] == ["auto", "int8", "none"]
    assert prefill_copy_for(open_bundle(bundle), "lean") is None and not cache.exists()
    made = prefill_copy_for(open_bundle(bundle), "fast")
    assert made is not None and prefill_copy_for(open_bundle(bundle), "int8") == made


def test_other_choices_are_refused(bundle_of: Bundles) -> None:
    with pytest.raises(RequestError, match="prefill_weights is 'slow'; expected auto, int8 or none"):
        ouro_edge.load(bundle_of(), prefill_weights="slow")
    with pytest.raises(RequestError, match=r"computes in float32: use none"):
        ouro_edge.load(bundle_of(), prefill_weights="int8")
