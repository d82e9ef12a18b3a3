"""Quality of number formats on a model off their grids, against llama.cpp's own tools: the tables of docs/quality.md.

    python benchmarks/number_formats.py SmolLM2-135M-Instruct.Q4_1.gguf WORK [--llama DIR] [--rows REGEX]

Writes the checkpoint of `off_grid.py` to WORK/off, exports it in every format, and compares each with the checkpoint
on the built-in text by llama-perplexity's protocol. With `--llama`, llama.cpp quantises the same weights, with an
importance matrix of the text that our rows are calibrated on, and measures its own files and ours; its tools are
built in DIR if they are not there. Figures are stored in WORK/results.json: an interrupted run continues. `--rows`
measures the rows whose names match.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import off_grid
from peer_models.llama_quality import Figures, Llama

import ouro_edge
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.directory import is_bundle, open_bundle
from ouro_edge.evaluation.divergence import OriginalWeights, States, compare, token_windows
from ouro_edge.evaluation.stored_weights import StoredWeights
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.fitting.calibrate_weights import WeightCalibration
from ouro_edge.measure.quality import built_in_text
from ouro_edge.runtime.text.tokenizer import Tokenizer
from ouro_edge.system.files import atomic_write

TYPES = ("Q4_0", "Q4_1", "Q4_K_M", "Q8_0")


@dataclass(frozen=True, slots=True)
class Export:
    """A format of ours."""

    precision: str
    block_size: int | None = None
    symmetric: bool | None = None
    rounding: WeightCalibration | None = None

    @property
    def name(self) -> str:
        about = [self.precision]
        if self.block_size is not None:
            about += [f"block {self.block_size}", "symmetric" if self.symmetric else "zero points"]
        how = "nearest"
        if self.rounding is not None:
            how = "calibrated" if self.rounding.codes else "scaled channels"
        return ", ".join([*about, how])

    @property
    def file(self) -> str:
        return re.sub(r"\W+", "-", self.name) + (".gguf" if self.precision.startswith("q") else "")


def exports() -> Iterator[Export]:
    """Our rows."""
    both = None, WeightCalibration()
    yield from (Export("q4_1", rounding=rounding) for rounding in both)
    for precision in ("int8", "q8_0"):
        yield from (Export(precision, rounding=rounding) for rounding in (None, WeightCalibration(codes=False)))
    yield from (Export("q4_0", rounding=rounding) for rounding in both)
    for symmetric in (True, False):
        for size in (128, 32, 64):
            yield from (Export("int4", size, symmetric, rounding) for rounding in both)


class Ours:
    """Exports of the checkpoint, measured by ouro-edge."""

    def __init__(self, work: Path) -> None:
        self.work, self.source = work, work / "off"
        checkpoint = open_checkpoint(self.source)
        self.original = Remembered(OriginalWeights(checkpoint.config, checkpoint.weights), work / "states")
        tokenizer = Tokenizer.from_json(checkpoint.files["tokenizer.json"].decode())
        self.windows = token_windows(tokenizer.encode_text(built_in_text()), checkpoint.config)

    def export(self, row: Export) -> Path:
        """The file or directory of a row, which is made if it is missing."""
        out = self.work / row.file
        if not out.exists():
            ouro_edge.export(
                self.source, out, precision=row.precision, block_size=row.block_size, symmetric=row.symmetric,
                calibration=None, rounding=row.rounding,
            )  # fmt: skip
        return out

    def measure(self, path: Path) -> Figures:
        """What `ouro-edge eval --against` prints of a model."""
        with ouro_edge.load(path, kv="fp32", prefill_weights="none", threads=1) as model:
            return self._compare(model)

    def weights_only(self, path: Path) -> Figures:
        """The same with dequantised weights in float32: activations are not rounded."""
        if is_bundle(path):
            bundle = open_bundle(path)
            return self._compare(OriginalWeights(bundle.config, StoredWeights(bundle)))
        checkpoint = open_checkpoint(path)
        return self._compare(OriginalWeights(checkpoint.config, checkpoint.weights))

    def _compare(self, model: ouro_edge.Model | States) -> Figures:
        score = compare(model, self.windows, self.original)[-1]
        kl = score.divergence
        assert kl is not None
        return {"perplexity": score.perplexity, "kl": kl.mean, "median": kl.median,
                "percentile_99": kl.percentile_99, "same_top": kl.same_top}  # fmt: skip


class Remembered:
    """States of the original model, kept in a file for the comparisons that follow."""

    def __init__(self, model: OriginalWeights, folder: Path) -> None:
        self._model, self._folder, self.config = model, folder, model.config

    def hidden(self, ids: Sequence[int]) -> Array:
        file = self._folder / f"{hashlib.sha256(repr(list(ids)).encode()).hexdigest()[:16]}.npy"
        if not file.is_file():
            self._folder.mkdir(exist_ok=True)
            with atomic_write(file, sync=False) as out:
                np.save(out, self._model.hidden(ids))
        states: Array = np.load(file)
        return states

    def logits(self, hidden: Array) -> Array:
        return self._model.logits(hidden)


class Table:
    """Figures by row, stored after each."""

    def __init__(self, file: Path, wanted: str = "") -> None:
        self.file, self._wanted = file, re.compile(wanted)
        self.rows: dict[str, Figures] = json.loads(file.read_text()) if file.is_file() else {}

    def add(self, row: str, measure: Callable[[], Figures]) -> None:
        """Measure a row that is not there yet, if it is wanted."""
        if row in self.rows or not self._wanted.search(row):
            return
        started = time.process_time(), os.times()
        say(row)
        figures = measure()
        used = os.times()
        children = used.children_user + used.children_system
        children -= started[1].children_user + started[1].children_system
        self.rows[row] = figures | {"cpu_seconds": time.process_time() - started[0] + children}
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.rows, indent=1) + "\n")
        partial.replace(self.file)

    def text(self) -> str:
        """A Markdown table."""
        lines = ["| format | run by | MB | KL | median | 99% | same top | perplexity |", "| --- " * 8 + "|"]
        for name, row in self.rows.items():
            if "kl" in row:
                lines.append(f"| {name} | {row['run_by']} | {row['bytes'] / 1e6:.1f} | {row['kl']:.4f} "
                             f"| {row['median']:.4f} | {row['percentile_99']:.3f} | {row['same_top']:.1%} "
                             f"| {row['perplexity']:.3f} |")  # fmt: skip
            else:
                lines.append(f"| {name} | {row['run_by']} | | | | | | {row['perplexity']:.3f} |")
        return "\n".join(lines)


def size(path: Path) -> int:
    """Bytes of an exported model."""
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure_ours(table: Table, ours: Ours) -> None:
    """Our rows, run by ouro-edge; of some also what the rounding of the weights alone costs."""
    for row in exports():

        def run(row: Export = row) -> Figures:
            out = ours.export(row)
            return {"run_by": "ouro-edge", "bytes": size(out)} | ours.measure(out)

        def alone(row: Export = row) -> Figures:
            out = ours.export(row)
            return {"run_by": "weights only", "bytes": size(out)} | ours.weights_only(out)

        table.add(row.name, run)
        if row.rounding is not None and row.symmetric is not False:
            table.add(f"{row.name}; weights only", alone)


def measure_llama(table: Table, ours: Ours, llama: Llama) -> None:
    """llama.cpp's own files, and ours run by it."""
    files: dict[str, Callable[[], Path]] = {"F32": lambda: llama.floats}
    for kind in TYPES:
        files[kind] = lambda kind=kind: llama.quantize(kind, False)
        if kind != "Q8_0":  # it has no use for one
            files[f"{kind} with imatrix"] = lambda kind=kind: llama.quantize(kind, True)
    files |= {row.name: lambda row=row: ours.export(row) for row in exports() if row.precision.startswith("q")}
    for name, make in files.items():

        def run(make: Callable[[], Path] = make) -> Figures:
            file = make()
            return {"run_by": "llama.cpp", "bytes": size(file)} | llama.measure(file)

        def alone(make: Callable[[], Path] = make) -> Figures:
            file = make()
            return {"run_by": "weights only", "bytes": size(file)} | ours.weights_only(file)

        shown = f"llama.cpp {name}" if name.startswith(("Q", "F")) else name
        table.add(f"{shown}; run by llama.cpp", run)
        if name in ("Q8_0", "Q4_1 with imatrix", "Q4_K_M with imatrix"):
            table.add(f"{shown}; weights only", alone)


def measure_perplexity(table: Table, ours: Ours, llama: Llama, published: Path) -> None:
    """`ouro-edge eval` on a file, on a directory and on a checkpoint, and llama-perplexity, on the same weights."""
    exact, checkpoint = ours.work / "published-fp32", ours.work / "published-hf"
    if not exact.exists():
        ouro_edge.export(published, exact, precision="fp32", calibration=None)
    if not checkpoint.exists():
        ouro_edge.export(published, checkpoint, format="hf", dtype="float32")
    table.add(
        f"{published.name}; llama-perplexity", lambda: {"run_by": "llama.cpp", "perplexity": llama.plain(published)}
    )
    for path in (published, exact, checkpoint):
        table.add(f"{path.name}; eval", lambda path=path: {
            "run_by": "ouro-edge", "perplexity": ouro_edge.evaluate(path, threads=1).best.perplexity})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--llama", type=Path, metavar="DIR", help="folder of llama.cpp's tools")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose names match")
    given = parser.parse_args()
    if not (given.work / "off").is_dir():
        off_grid.write(given.source, given.work / "off")
    ours, table = Ours(given.work), Table(given.work / "results.json", given.rows)
    measure_ours(table, ours)
    if given.llama is not None:
        llama = Llama(given.llama, ours.source, ours.work, say)
        measure_llama(table, ours, llama)
        measure_perplexity(table, ours, llama, given.source)
    print(table.text())


if __name__ == "__main__":
    main()
