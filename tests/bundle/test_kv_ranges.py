"""KV ranges of a directory: stored, read back, and refused when the files are not what the record says."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from conftest import Bundles

from ouro_edge.bundle.directory import DirectoryBundle, open_bundle
from ouro_edge.bundle.kv_ranges import RANGES_FILE, RECORD_FILE, ranges_shape, read_ranges, write_ranges
from ouro_edge.errors import BundleError


@pytest.fixture
def bundle(bundle_of: Bundles, tmp_path: Path) -> DirectoryBundle:
    """A bundle with ranges."""
    opened = open_bundle(shutil.copytree(bundle_of(), tmp_path / "model"))
    assert (opened.has_kv_ranges, opened.kv_ranges()) == (False, None)
    ranges = np.arange(np.prod(ranges_shape(opened.config)), dtype=np.float32)
    write_ranges(opened, ranges.reshape(ranges_shape(opened.config)), {"tokens": 3})
    return opened


def test_ranges_come_back(bundle: DirectoryBundle) -> None:
    assert bundle.has_kv_ranges
    ranges = bundle.kv_ranges()
    assert ranges is not None and ranges.dtype == np.float32 and ranges.flat[7] == 7
    np.testing.assert_array_equal(read_ranges(bundle.with_context(9)), ranges)
    assert json.loads((bundle.path / RECORD_FILE).read_text())["about"] == {"tokens": 3}


def archive(shape: tuple[int, ...]) -> bytes:
    """A zip of arrays, which NumPy reads as another type than an array."""
    file = io.BytesIO()
    np.savez(file, np.ones(shape, np.float32))
    return file.getvalue()


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        lambda shape: b"",
        archive,
        lambda shape: array(np.ones(shape)),
        lambda shape: array(np.ones(shape[1:], np.float32)),
        lambda shape: array(np.full(shape, np.inf, np.float32)),
    ],
    ids=["empty", "archive", "float64", "shape", "infinite"],
)
def test_a_checksum_does_not_make_content_valid(
    bundle: DirectoryBundle, content: Callable[[tuple[int, ...]], bytes]
) -> None:
    data = content(ranges_shape(bundle.config))
    (bundle.path / RANGES_FILE).write_bytes(data)
    record = json.loads((bundle.path / RECORD_FILE).read_text()) | {"sha256": sha256(data).hexdigest()}
    (bundle.path / RECORD_FILE).write_text(json.dumps(record))
    with pytest.raises(BundleError, match=r"kv_ranges\.npy cannot be used, .*: run ouro-edge calibrate"):
        bundle.kv_ranges()


def test_a_directory_in_place_of_a_file_is_one_line(bundle: DirectoryBundle) -> None:
    (bundle.path / RECORD_FILE).unlink()
    (bundle.path / RECORD_FILE).mkdir()
    with pytest.raises(BundleError, match=r"kv_ranges\.json is not a file of at most 64 MiB: delete it"):
        bundle.kv_ranges()
