"""`ouro-edge export`: checkpoint -> bundle or .gguf file, bundle -> .gguf file, any of them -> checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ouro_edge.cli.calibrate import read_text
from ouro_edge.cli.progress import conversion_progress
from ouro_edge.errors import OuroEdgeError, RequestError

if TYPE_CHECKING:
    from ouro_edge.system.progress import Progress

_WINDOWS = 2  # of 512 tokens, for --report


@click.command(name="export", short_help="Export a checkpoint to a directory or a .gguf file.")
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("-p", "--precision", metavar="int4|int8|fp32|q4_0|q4_1|q8_0|f16|f32",
              help="How weights are stored: int4 (default), int8, fp32, or GGUF's own names for a .gguf file. "
                   "Four bits keep embedding and head in eight.")  # fmt: skip
@click.option(
    "--block-size",
    type=int,
    help="Number of weights that share a scale: a power of two from 16 to 256. Default: 128; for int8: 32.",
)
@click.option("--symmetric/--asymmetric", default=None, help="Without or with a zero point per block; int8: with.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx", "gguf", "hf"]),
    help="Kind of output; gguf: a file in OUT named after model and type, unless OUT ends in .gguf; hf: a checkpoint "
    "in Hugging Face form. Default: onnx or gguf, as the name OUT says.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
              help="Type of all weights of --format hf. Default: as stored in SRC; float32 if quantised.")  # fmt: skip
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--gate-from", metavar="CHECKPOINT", help="Source of the exit gate, for .gguf files without one.")
@click.option("--calibration", "calibration_file", type=click.Path(path_type=Path),
              help="UTF-8 text for KV ranges and calibrated rounding. Default: built-in texts.")  # fmt: skip
@click.option("--no-calibration", is_flag=True, help="Do not measure KV ranges; the cache then stays in float32.")
@click.option("--rounding", type=click.Choice(["auto", "nearest", "calibrated"]), default="auto", show_default=True,
              help="How weights become codes: each to the nearest value, or calibrated, so that the outputs on a text "
                   "are closest, which takes minutes and continues after an interruption. auto: calibrated for 4 bits; "
                   "for 8 bits only channels are scaled; nearest without a tokenizer or memory.")  # fmt: skip
@click.option("--memory", type=float, metavar="GB", help="Limit of calibrated rounding; it then uses less text.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is an exported model.")
@click.option(
    "--report", is_flag=True, help="Print the error of every quantised tensor, and the divergence from SRC on a text."
)
def command(
    src: str,
    out: Path,
    precision: str | None,
    block_size: int | None,
    symmetric: bool | None,
    format_: str | None,
    dtype: str | None,
    revision: str | None,
    gate_from: str | None,
    calibration_file: Path | None,
    no_calibration: bool,
    rounding: str,
    memory: float | None,
    overwrite: bool,
    report: bool,
) -> None:
    """Turn the checkpoint SRC into a model in the directory OUT, or into a file OUT.gguf.

    SRC is a directory in Hugging Face form, a .gguf file, a hub id, or for a .gguf file also an exported model. With
    --format hf, OUT becomes a checkpoint in Hugging Face form, for other programs.
    """
    from ouro_edge.cli.tables import error_table, file_size
    from ouro_edge.convert import Format, export
    from ouro_edge.fitting.calibrate_kv import Calibration
    from ouro_edge.fitting.calibrate_weights import WeightCalibration

    is_gguf = format_ == "gguf" or (format_ is None and out.suffix.lower() == ".gguf")
    kind: Format = "gguf" if is_gguf else "hf" if format_ == "hf" else "bundle"
    if report and kind == "hf":
        raise RequestError("--report is for exported models; a checkpoint has the weights of its source")
    if memory is not None and rounding == "nearest":
        raise RequestError("--memory limits calibrated rounding: add --rounding calibrated")
    text = None if calibration_file is None else read_text(calibration_file)
    weights = None if rounding == "nearest" else WeightCalibration(text, memory=memory, optional=rounding == "auto")
    if kind == "hf" and rounding == "auto":
        weights = None
    if is_gguf and weights is not None:
        text = None  # the file has no KV ranges
    with conversion_progress("Exporting") as progress:
        result = export(
            src, out, precision=precision, block_size=block_size, symmetric=symmetric,
            format=kind, revision=revision, gate_from=gate_from, dtype=dtype,
            calibration=None if no_calibration else Calibration(text),
            rounding=weights, overwrite=overwrite, progress=_announced(progress) if rounding == "auto" else progress,
        )  # fmt: skip
    for note in result.notes:
        click.echo(f"Note: {note}", err=True)
    about = ""
    if (manifest := result.manifest) is not None:
        if report:
            click.echo(error_table(manifest))
        how = manifest.rounding.get("method")
        about = f"{manifest.name}, {manifest.recipe}{f', {how}' if how else ''}, "
    click.echo(f"{result.path}: {about}{file_size(result.size)}")
    if report:
        click.echo(divergence(result.path, src, revision))


def _announced(progress: Progress) -> Progress:
    """A callback that tells the user when a calibration begins that was not asked for."""
    from ouro_edge.fitting.calibrate_weights import ROUNDING

    def show(done: int, total: int, what: str, /) -> None:
        if what == ROUNDING:
            click.echo("Rounding by calibration takes minutes for a large model, and continues after an interruption; "
                       "--rounding nearest takes none.", err=True)  # fmt: skip
        progress(done, total, what)

    return show


def divergence(model: Path, source: str, revision: str | None) -> str:
    """One line about how far the exported model is from its source on the built-in text."""
    from ouro_edge.measure.quality import evaluate
    from ouro_edge.system.hub import resolve

    with conversion_progress("Measuring") as progress:
        try:
            found = evaluate(
                model, against=resolve(source, revision=revision).path, windows=_WINDOWS, progress=progress
            )
        except OuroEdgeError as problem:
            return f"KL from the source: not measured, {problem}"
    score = found.best
    assert score.divergence is not None
    return (f"KL from the source: {score.divergence.mean:.4f} nats a token, same top token "
            f"{score.divergence.same_top:.1%}, perplexity {score.perplexity:.2f} instead of "
            f"{score.other_perplexity:.2f} ({found.tokens} tokens of the built-in text)")  # fmt: skip
