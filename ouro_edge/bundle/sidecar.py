"""Reads the small files that are added to a finished bundle: the fitted gate and the KV ranges."""

from __future__ import annotations

from pathlib import Path

from ouro_edge.errors import BundleError

_MAX_FILE_BYTES = 64 << 20


def read_sidecar(file: Path) -> bytes | None:
    """The content of a file, or None without the file. BundleError when it is not a regular file or too large."""
    try:
        if not file.exists():
            return None
        if not file.is_file() or file.stat().st_size > _MAX_FILE_BYTES:  # reading a pipe might block forever
            raise BundleError(f"{file} is not a file of at most {_MAX_FILE_BYTES >> 20} MiB: delete it")
        return file.read_bytes()
    except OSError as problem:
        raise BundleError(f"{file} cannot be read: {problem.strerror}") from None
