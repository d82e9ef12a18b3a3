"""`ouro-edge export`: checkpoint -> bundle."""

from __future__ import annotations

from pathlib import Path

import click

from ouro_edge.cli.calibrate import read_text
from ouro_edge.cli.progress import conversion_progress


@click.command(name="export")
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("-p", "--precision", default="int4", show_default=True, metavar="int4|int8|fp32",
              help="How weights are stored. int4 keeps embedding and head in int8.")  # fmt: skip
@click.option(
    "--block-size", type=int, help="Weights that share a scale: 16 to 256, a power of two. Default: 128, for int8 32."
)
@click.option("--symmetric/--asymmetric", default=None, help="Without or with a zero point a block; int8: with.")
@click.option(
    "--format", "format_", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Kind of output."
)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--calibration", "calibration_file", type=click.Path(path_type=Path),
              help="UTF-8 text to measure KV ranges on. Default: a built-in page.")  # fmt: skip
@click.option("--no-calibration", is_flag=True, help="Measure no KV ranges: the cache then stays in float32.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is an exported model.")
@click.option("--report", is_flag=True, help="Print the error of every quantised tensor.")
def command(
    src: str,
    out: Path,
    precision: str,
    block_size: int | None,
    symmetric: bool | None,
    format_: str,
    revision: str | None,
    calibration_file: Path | None,
    no_calibration: bool,
    overwrite: bool,
    report: bool,
) -> None:
    """Turn the checkpoint SRC into a model in the directory OUT.

    SRC is a directory in Hugging Face form, a .gguf file, or a hub id.
    """
    from ouro_edge.bundle import open_bundle
    from ouro_edge.cli.tables import error_table, file_size
    from ouro_edge.hub import resolve
    from ouro_edge.loading import export_to
    from ouro_edge.quant import preset

    recipe = preset(precision, block_size=block_size, symmetric=symmetric)
    calibration = "" if no_calibration else None if calibration_file is None else read_text(calibration_file)
    found = resolve(src, revision=revision)
    with conversion_progress("Exporting") as progress:
        notes = export_to(found, out, recipe, calibration=calibration, overwrite=overwrite, progress=progress)
    for note in notes:
        click.echo(f"Note: {note}", err=True)
    manifest = open_bundle(out).manifest
    if report:
        click.echo(error_table(manifest))
    size = sum(record["size"] for record in manifest.files.values())
    click.echo(f"{out}: {manifest.name}, {manifest.recipe}, {file_size(size)}")
