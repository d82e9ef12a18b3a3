"""`ouro-edge verify`: compares an exported model with the NumPy reference and with its checkpoint."""

from __future__ import annotations

import click

from ouro_edge.errors import VerificationError


@click.command(name="verify", short_help="Check an exported MODEL against a NumPy reference.")
@click.argument("model", required=False)
@click.option("--against", metavar="CHECKPOINT", help="Also compare every weight with the original checkpoint.")
@click.option("--tokens", type=click.IntRange(1), help="Length of the random input. Default: 24.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random input.")
@click.option("--threads", type=int, help="CPU threads. Default: as for run.")
def command(model: str | None, against: str | None, tokens: int | None, seed: int, threads: int | None) -> None:
    """Check MODEL's files and compare it with a plain NumPy reference. Fails if it is out of tolerance.

    The reference reads one layer at a time: 1.4B parameters need several minutes and 2 GB.
    """
    from ouro_edge.cli.options import BUILT_IN, say
    from ouro_edge.cli.progress import conversion_progress
    from ouro_edge.cli.tables import table
    from ouro_edge.evaluation.verify import verify
    from ouro_edge.loading import named_or_built_in

    if model is None:
        say(BUILT_IN)
    path = named_or_built_in(model)
    with conversion_progress("Checking") as progress:
        checks = list(verify(path, against, tokens=tokens, seed=seed, threads=threads, progress=progress))
    rows = [
        (check.name, f"{check.found:.4g}", f"{check.unit} {check.expected:.4g}", "ok" if check.passed else "FAILED")
        for check in checks
    ]
    click.echo(table(("check", "found", "expected", ""), rows))
    if failed := [check.name for check in checks if not check.passed]:
        raise VerificationError(f"{path if model is None else model} is out of tolerance: {', '.join(failed)}")
