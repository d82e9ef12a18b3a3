"""A sequence on disk: tokens, frontiers, keys and values, waiting rows, in a strict format with a checksum.

    one line of JSON    format, version, identity of model and cache, frontier
    int32 tokens        in models with a coda then the int32 exits
    keys and values     the valid positions of every buffer of every cache; then the waiting rows
    32 bytes            SHA-256 of all preceding bytes

All sizes follow from the header; the size of the file is compared with them before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ouro_edge.arch.json_object import load_json
from ouro_edge.errors import ContextOverflowError, RequestError
from ouro_edge.runtime.backend.kv import kv_bytes_per_layer
from ouro_edge.runtime.checks import check_kind
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.system.files import atomic_write

_FORMAT, _VERSION = "ouro-edge sequence", 1
_MAX_HEADER_BYTES = 1 << 16
_CHECKSUM_BYTES = 32


def save_sequence(sequence: TokenSequence, path: str | os.PathLike[str]) -> None:
    """Write a sequence's state, all or nothing, readable by its owner only. RequestError when that fails."""
    check_kind("sequence", sequence, TokenSequence)
    header = {
        "format": _FORMAT, "version": _VERSION, "model": sequence.backend.state_id, "kv": sequence.backend.kv,
        "shared": sequence.kv_share == "last", "frontier": sequence.frontier,
    }  # fmt: skip
    header |= {"prefix": sequence.prefix} if sequence.prefix else {}
    header |= {"exits": len(sequence.exits)} if sequence.exits else {}
    path = _checked(path)
    if path.exists() and not path.is_file():
        raise RequestError(f"{path} exists and is not a file: choose another name")
    digest = hashlib.sha256()
    try:
        with atomic_write(path, private=True, sync=False) as file:  # large; reading verifies the checksum
            for piece in (json.dumps(header).encode() + b"\n", *_content(sequence)):
                data = (
                    piece if isinstance(piece, bytes) else np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
                )
                digest.update(data)
                file.write(data)
            file.write(digest.digest())
    except OSError as problem:
        raise RequestError(f"{path} cannot be written: {problem.strerror or problem}") from None


def load_sequence(model: Model, path: str | os.PathLike[str]) -> TokenSequence:
    """The sequence that `save_sequence` wrote, on the same model with the same type of cache.

    RequestError when the file is damaged, of another version, or belongs to another model.
    """
    check_kind("model", model, Model)
    path = _checked(path)
    try:
        if path.exists() and not path.is_file():  # a pipe without a writer would never open
            raise RequestError(f"{path} is not a regular file; expected what save_sequence wrote")
        with path.open("rb") as file:
            return _read(model, path, file)
    except OSError as problem:
        raise RequestError(f"{path} cannot be read: {problem.strerror or problem}") from None


def is_saved_sequence(path: Path) -> bool:
    """Whether a file starts like those of `save_sequence`."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return bool(load_json(file.readline(_MAX_HEADER_BYTES))["format"] == _FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checked(path: str | os.PathLike[str]) -> Path:
    try:
        if not os.fspath(path) or b"\0" in os.fsencode(path):
            raise ValueError
        return Path(path)
    except (TypeError, ValueError):  # a lone surrogate raises UnicodeEncodeError, a ValueError
        raise RequestError(f"{path!r} is not a valid file name") from None


def _read(model: Model, path: Path, file: IO[bytes]) -> TokenSequence:
    line = file.readline(_MAX_HEADER_BYTES)
    try:
        header = load_json(line)
        if header["format"] != _FORMAT:
            raise ValueError
        version, frontier = header["version"], header["frontier"]
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"{path} is not a saved sequence of ouro-edge") from None
    if version != _VERSION:
        raise RequestError(f"{path} is version {version!r} of a saved sequence; this program reads {_VERSION}")
    sequence = model.new_sequence()
    share = "last" if header.get("shared") else "none"
    if header.get("kv") != sequence.backend.kv or share != sequence.kv_share:
        options = f"--kv {header.get('kv')} --kv-share {share}"
        raise RequestError(f"{path} was saved with another KV cache: load the model with {options}")
    if header.get("model") != sequence.backend.state_id:
        raise RequestError(f"{path} was saved with another model, or before it was calibrated again")
    most = model.config.max_positions
    if isinstance(frontier, list) and frontier and type(frontier[0]) is int and frontier[0] > most:
        raise ContextOverflowError(f"{path} holds {frontier[0]} tokens, this model was loaded for {most}: set a larger "
                                   "context (--ctx)")  # fmt: skip
    count = header.get("exits", 0)
    size = _size(model, sequence, frontier, count)
    if size is None or len(line) + size + _CHECKSUM_BYTES != os.fstat(file.fileno()).st_size:
        raise RequestError(f"{path} is damaged: its size does not fit its header")
    prefix = header.get("prefix", 0)
    whole = type(prefix) is int and 0 <= prefix <= frontier[0] and (model.config.prefix_lm or not prefix)
    if not whole or any(0 < at < prefix for at in frontier):
        raise RequestError(f"{path} is damaged: its prefix does not fit its header")
    digest = hashlib.sha256(line)

    def read(array: NDArray[Any]) -> NDArray[Any]:
        view = array.reshape(-1).view(np.uint8).data
        if file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise RequestError(f"{path} is damaged: it ends too early")
        digest.update(view)
        return array

    width, (_, counts) = sequence.backend.program.width, sequence.layout(frontier)
    tokens = read(np.empty(frontier[0], "<i4"))
    if ((tokens < 0) | (tokens >= model.config.vocab_size)).any():
        raise RequestError(f"{path} is damaged: it holds token ids outside the vocabulary")
    exits = read(np.empty(count, "<i4")).tolist()
    loops = range(1, len(frontier) - sequence.backend.program.first_loop)
    if any(
        left not in loops or frontier[sequence.backend.program.step_of(left)] <= at for at, left in enumerate(exits)
    ):
        raise RequestError(f"{path} is damaged: it holds exits that no loop has reached")
    sequence.load_state(tokens.tolist(), frontier, [np.empty((0, width), np.float32)] * len(counts), prefix, exits)
    for cache, valid in sequence.caches():
        cache.fill(valid, (read(np.empty(array.shape, array.dtype)) for array in cache.valid(valid)))
    waiting = [read(np.empty((count, width), "<f4")) for count in counts]
    if file.read(_CHECKSUM_BYTES) != digest.digest():
        raise RequestError(f"{path} is damaged: it differs from its checksum")
    sequence.load_waiting(waiting)
    return sequence


def _content(sequence: TokenSequence) -> Iterator[NDArray[Any]]:
    yield np.array(sequence.tokens, "<i4")
    yield np.array(sequence.exits, "<i4")
    for cache, valid in sequence.caches():
        if valid:
            yield from cache.valid(valid)
    yield from sequence.waiting()


def _size(model: Model, sequence: TokenSequence, frontier: Any, exits: Any) -> int | None:
    """Bytes of the arrays for a frontier and a number of exits; None when they are not valid."""
    program = sequence.backend.program
    if (
        not isinstance(frontier, list)
        or len(frontier) != len(program.passes) + 1
        or any(type(n) is not int for n in frontier)
    ):
        return None
    falls = all(a >= b for a, b in pairwise(frontier))
    if not falls or frontier[-1] < 0 or frontier[0] > model.config.max_positions:
        return None
    try:
        valid, waiting = sequence.layout(frontier)
    except RequestError:
        return None
    coda = program.coda
    if type(exits) is not int or not 0 <= exits <= (frontier[program.step_of(1)] if coda is not None else 0):
        return None
    valid += [exits] * (coda is not None)
    layers = sum(count * len(program.stack_of(cache).layers) for cache, count in enumerate(valid))
    per_layer = kv_bytes_per_layer(model.config, sequence.backend.kv)
    return 4 * (frontier[0] + exits) + layers * per_layer + 4 * sum(waiting) * program.width
