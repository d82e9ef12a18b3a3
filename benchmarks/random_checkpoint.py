"""Writes a random checkpoint with published shapes, to measure speed and memory without real weights.

    python benchmarks/random_checkpoint.py OUT --shape NAME [--tokenizer DIR|tokenizer.json] [--seed 0]

`--help` lists the names: 1.4b and 2.6b are Ouro's.
Contains the published config, tensor names and safetensors layout; needs only NumPy and about 100 MB of memory.
Sampling 1.4e9 normals would take minutes, so every matrix consists of pieces of one pool of four million bfloat16
normals, at random offsets. Sizes and distributions are correct, but values repeat: do not measure compression or text
quality.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapes.configs import hf_config
from shapes.sizes import SHAPES, Shape
from shapes.tensor_shapes import tensors

Bf16 = NDArray[np.uint16]  # bits of bfloat16

POOL_VALUES = 4_194_301  # a prime, so that no width of a tensor divides it and rows differ
PIECE_VALUES = 1 << 20  # values taken from the pool at one random offset
GATE_SPREAD = 1.5  # standard deviation of a gate logit over hidden states of unit variance
GATE_BIAS = -0.5  # mean gate logit: with threshold 0.5, exits occur at every depth
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class CheckpointExists(Exception):
    """The destination exists, or the working directory of an interrupted run."""


def write(
    out: Path,
    shape: Shape,
    *,
    tokenizer: Path | None = None,
    seed: int = 0,
    shard_bytes: int = 5_000_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the checkpoint next to `out` and rename it; `progress(bytes done, bytes in all)` is called meanwhile.

    One model.safetensors if it fits in `shard_bytes`, otherwise shards with an index, as in transformers. The values
    depend only on the seed, not on the shards. A tokenizer with more ids than the shape extends the vocabulary.
    CheckpointExists when `out` is not empty.
    """
    partial = out.with_name(out.name + ".partial")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CheckpointExists(f"{out} is not empty; give a new directory or delete this one")
    if partial.exists():
        raise CheckpointExists(f"{partial} is left from an interrupted run; delete it")
    files = _tokenizer_files(tokenizer) if tokenizer else {}
    if "tokenizer.json" in files:
        ids = _vocabulary(files["tokenizer.json"])
        shape = Shape(**{f: getattr(shape, f) for f in Shape.__slots__} | {"vocab": max(ids, shape.vocab)})
    partial.mkdir(parents=True)
    try:
        for name, data in files.items():
            (partial / name).write_bytes(data)
        _write_json(partial / "config.json", hf_config(shape))
        _write_weights(partial, shape, seed, shard_bytes, progress or (lambda done, total: None))
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def to_bf16(values: NDArray[np.float32]) -> Bf16:
    """float32 to the bits of the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class Values:
    """The source of values: one pool of normals for matrices, and a separate generator per small tensor."""

    def __init__(self, seed: int, hidden: int) -> None:
        self.seed, self.hidden = seed, hidden
        self.pool = to_bf16(np.random.default_rng(seed).standard_normal(POOL_VALUES, np.float32) * np.float32(0.02))

    def pieces(self, name: str, index: int, size: tuple[int, ...]) -> Iterator[Bf16]:
        """The values of a tensor in pieces; `index` is its position among all tensors."""
        rng = np.random.default_rng([self.seed, index])
        count = math.prod(size)
        if name.endswith("early_exit_gate.bias"):
            yield to_bf16(np.full(1, GATE_BIAS, np.float32))
        elif name.endswith("early_exit_gate.weight"):
            yield to_bf16(rng.standard_normal(count, np.float32) * np.float32(GATE_SPREAD / self.hidden**0.5))
        elif len(size) == 1:
            yield to_bf16(1 + rng.standard_normal(count, np.float32) * np.float32(0.1))
        else:
            for start in range(0, count, PIECE_VALUES):
                offset = int(rng.integers(POOL_VALUES - PIECE_VALUES))
                yield self.pool[offset : offset + min(PIECE_VALUES, count - start)]


def _write_weights(
    folder: Path, shape: Shape, seed: int, shard_bytes: int, progress: Callable[[int, int], None]
) -> None:
    sizes = tensors(shape)
    order = {name: index for index, name in enumerate(sizes)}
    bytes_of = {name: 2 * math.prod(size) for name, size in sizes.items()}
    shards: list[list[str]] = [[]]
    for name in sizes:  # greedy and in order, as transformers shards
        if shards[-1] and sum(bytes_of[n] for n in shards[-1]) + bytes_of[name] > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    total, done = sum(bytes_of.values()), 0
    values = Values(seed, shape.hidden)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        single = len(shards) == 1
        file = folder / ("model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in sorted(names):
            end = offset + bytes_of[name]
            header[name] = {"dtype": "BF16", "shape": sizes[name], "data_offsets": [offset, end]}
            weight_map[name], offset = file.name, end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with file.open("xb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in sorted(names):
                for piece in values.pieces(name, order[name], sizes[name]):
                    stream.write(piece.astype("<u2", copy=False).data)
                done += bytes_of[name]
                progress(done, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _tokenizer_files(source: Path) -> dict[str, bytes]:
    folder = source if source.is_dir() else source.parent
    names = TOKENIZER_FILES if source.is_dir() else (source.name,)
    files = {n: (folder / n).read_bytes() for n in names if (folder / n).is_file()}
    if "tokenizer.json" not in files:
        raise FileNotFoundError(f"{source} is neither a tokenizer.json nor a directory with one")
    return files


def _vocabulary(tokenizer_json: bytes) -> int:
    data = json.loads(tokenizer_json)
    ids = [*data["model"]["vocab"].values(), *(token["id"] for token in data.get("added_tokens") or ())]
    return 1 + max(map(int, ids))


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a random checkpoint with published shapes.")
    parser.add_argument("out", type=Path, help="directory to create")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--tokenizer", type=Path, help="directory with a tokenizer.json, or the file itself")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--shard-gb", type=float, default=5.0, help="largest file in 1e9 bytes (default: 5, as published)"
    )
    args = parser.parse_args()
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        seconds = time.monotonic() - began
        end = "\r" if sys.stderr.isatty() and done < total else "\n"
        if sys.stderr.isatty() or done == total:
            print(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB in {seconds:.0f} s", end=end, file=sys.stderr, flush=True)

    try:
        write(args.out, SHAPES[args.shape], tokenizer=args.tokenizer, seed=args.seed,
              shard_bytes=int(args.shard_gb * 1e9), progress=progress)  # fmt: skip
    except (CheckpointExists, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
