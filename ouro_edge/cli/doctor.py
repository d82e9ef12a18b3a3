"""`ouro-edge doctor`: a report on a model and this machine, to check new weights and to paste into an issue."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ouro_edge.errors import RequestError, VerificationError

if TYPE_CHECKING:
    from ouro_edge.arch.weights import Array
    from ouro_edge.bundle.bundle import Bundle
    from ouro_edge.measure.doctor import Finding
    from ouro_edge.system.progress import Progress

_MARKS = {True: "ok", False: "FAILED", None: ""}


@click.command(name="doctor", short_help="Report on MODEL and this machine, for an issue.")
@click.argument("model", required=False)
@click.option("--against", metavar="CHECKPOINT", help="The checkpoint that an exported MODEL was made of.")
@click.option("--tokens", type=click.IntRange(2, 512), default=48, show_default=True, help="Length of the text.")
@click.option("--quick", is_flag=True, help="Omit the comparison with the reference, and the speed.")
def command(model: str | None, against: str | None, tokens: int, quick: bool) -> None:
    """Print a report on MODEL: config, tokenizer, template, accuracy at every depth, answers, speed, memory.

    Checks what an untested checkpoint can get wrong: whether config, token ids and chat template are those of the
    published Ouro models, and at every depth the divergence (KL) between the running model and the checkpoint in
    float32, computed by a NumPy reference that reads one tensor at a time (minutes for 1.4B parameters). A checkpoint
    is first converted to int4 in the cache. An exported MODEL is compared with its checkpoint if --against names it,
    otherwise with its own stored weights. Nothing is downloaded. The report contains no paths; paste it into an issue.
    """
    from ouro_edge.cli.options import BUILT_IN, say
    from ouro_edge.cli.progress import conversion_progress
    from ouro_edge.cli.tables import printable, table
    from ouro_edge.loading import open_model_files
    from ouro_edge.measure import doctor
    from ouro_edge.runtime.open_model import open_model

    if model is None:
        say(BUILT_IN)
    for finding in doctor.machine():
        _print(finding)
    with conversion_progress() as progress:
        path, origin = _files(model, against, progress)
        bundle = open_model_files(path)
    failed: list[str] = []
    weights, source = _reference_weights(bundle, origin)

    def report(finding: Finding) -> None:
        _print(finding)
        if finding.passed is False:
            failed.append(finding.name)

    for finding in doctor.config_findings(bundle):
        report(finding)
    with open_model(bundle, kv="fp32") as opened:
        for finding in doctor.text_findings(opened):
            report(finding)
        if not quick:
            ids = doctor.text_ids(opened, min(tokens, bundle.config.max_positions))
            click.echo(f"\n{len(ids)} tokens of English, the second half compared with {source}; KL in nats\n")
            head = ("", "KL", "same top token", "perplexity of the reference", "perplexity")
            rows = [
                (score.name, f"{score.divergence.mean:.4f}", f"{score.divergence.same_top:.0%}",
                 f"{score.other_perplexity:.2f}", f"{score.perplexity:.2f}")
                for score in doctor.depth_errors(opened, weights, ids) if score.divergence is not None
            ]  # fmt: skip
            click.echo(table(head, rows))
        click.echo()
        for finding in doctor.answers(opened):
            _print(finding)
    if not quick:
        click.echo()
        for finding in doctor.speed(path, bundle.config.depths):
            _print(finding)
    if failed:
        raise VerificationError(f"{printable(bundle.name)} is not as published: {', '.join(failed)}")


def _files(model: str | None, against: str | None, progress: Progress) -> tuple[Path, Path | None]:
    """The exported directory or .gguf file to run, and the checkpoint to compare it with. Nothing is downloaded."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: a hub id must be in its cache
    from ouro_edge.bundle.directory import is_bundle
    from ouro_edge.loading import named_or_built_in, resolve_model
    from ouro_edge.system.hub import resolve

    given = resolve(named_or_built_in(model)).path
    origin = given if against is None else resolve(against).path
    if is_bundle(origin):
        if against is not None:
            raise RequestError(f"{against} is an exported model; --against expects the checkpoint that it was made of")
        return given, None
    return resolve_model(model, progress), origin


def _reference_weights(bundle: Bundle, origin: Path | None) -> tuple[Mapping[str, Array], str]:
    """The weights of the reference, and what they are. RequestError for a checkpoint of another model."""
    from ouro_edge.evaluation.stored_weights import StoredWeights
    from ouro_edge.export.open_checkpoint import open_checkpoint

    if origin is None:
        return StoredWeights(bundle), "its own stored weights in float32"
    checkpoint = open_checkpoint(origin)
    for name in ("num_layers", "loops", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "vocab_size"):
        found, expected = getattr(checkpoint.config, name), getattr(bundle.config, name)
        if found != expected:
            raise RequestError(
                f"{origin} has {name} {found} and MODEL {expected}: it is the checkpoint of another model"
            )
    return checkpoint.weights, "the checkpoint in float32"


def _print(finding: Finding) -> None:
    from ouro_edge.cli.tables import printable

    click.echo(f"{finding.name}: {printable(finding.text)}{'  ' if finding.passed is not None else ''}"
               f"{_MARKS[finding.passed]}")  # fmt: skip
