"""`ouro-edge export`: checkpoint -> bundle or .gguf file, bundle -> .gguf file."""

from __future__ import annotations

from pathlib import Path

import click

from ouro_edge.cli.calibrate import read_text
from ouro_edge.cli.progress import conversion_progress
from ouro_edge.errors import RequestError


@click.command(name="export")
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("-p", "--precision", metavar="int4|int8|fp32|q4_0|q4_1|q8_0|f16|f32",
              help="How weights are stored: int4 (default), int8, fp32, or GGUF's own names for a .gguf file. "
                   "Four bits keep embedding and head in eight.")  # fmt: skip
@click.option(
    "--block-size", type=int, help="Weights that share a scale: 16 to 256, a power of two. Default: 128, for int8 32."
)
@click.option("--symmetric/--asymmetric", default=None, help="Without or with a zero point a block; int8: with.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx", "gguf"]),
    help="Kind of output; gguf: a file in OUT named after model and type, unless OUT ends in .gguf. "
    "Default: what OUT's name says.",
)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--gate-from", metavar="CHECKPOINT", help="Take the exit gate from here; for .gguf files that lack it.")
@click.option("--calibration", "calibration_file", type=click.Path(path_type=Path),
              help="UTF-8 text to measure KV ranges on. Default: a built-in page.")  # fmt: skip
@click.option("--no-calibration", is_flag=True, help="Measure no KV ranges: the cache then stays in float32.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is an exported model.")
@click.option("--report", is_flag=True, help="Print the error of every quantised tensor.")
def command(
    src: str,
    out: Path,
    precision: str | None,
    block_size: int | None,
    symmetric: bool | None,
    format_: str | None,
    revision: str | None,
    gate_from: str | None,
    calibration_file: Path | None,
    no_calibration: bool,
    overwrite: bool,
    report: bool,
) -> None:
    """Turn the checkpoint SRC into a model in the directory OUT, or into a file OUT.gguf.

    SRC is a directory in Hugging Face form, a .gguf file, a hub id, or for a .gguf file also an exported model.
    """
    from ouro_edge.bundle.bundle import open_bundle
    from ouro_edge.cli.tables import error_table, file_size
    from ouro_edge.loading import export_gguf, export_to
    from ouro_edge.quant import preset
    from ouro_edge.system.hub import resolve

    if format_ == "gguf" or (format_ is None and out.suffix.lower() == ".gguf"):
        if block_size is not None or symmetric is not None or calibration_file is not None or report:
            raise RequestError("a .gguf file takes no --block-size, --symmetric, --calibration or --report: its blocks "
                               "are its type's, and KV ranges come with an exported model as SRC")  # fmt: skip
        found, donor = resolve(src, revision=revision), gate_from and resolve(gate_from)
        with conversion_progress("Exporting") as progress:
            file, notes = export_gguf(
                found, out, precision, gate_from=donor or None, overwrite=overwrite, progress=progress
            )
        _show_notes(notes)
        click.echo(f"{file}: {file_size(file.stat().st_size)}")
        return
    if out.suffix.lower() == ".gguf":
        raise RequestError(f"--format {format_} writes a directory, and {out} is a file's name: choose another OUT or "
                           "leave out --format")  # fmt: skip
    recipe = preset(precision or "int4", block_size=block_size, symmetric=symmetric)
    calibration = "" if no_calibration else None if calibration_file is None else read_text(calibration_file)
    found, donor = resolve(src, revision=revision), gate_from and resolve(gate_from)
    with conversion_progress("Exporting") as progress:
        notes = export_to(
            found, out, recipe, calibration=calibration, gate_from=donor or None, overwrite=overwrite, progress=progress
        )
    _show_notes(notes)
    manifest = open_bundle(out).manifest
    if report:
        click.echo(error_table(manifest))
    size = sum(record["size"] for record in manifest.files.values())
    click.echo(f"{out}: {manifest.name}, {manifest.recipe}, {file_size(size)}")


def _show_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        click.echo(f"Note: {note}", err=True)
