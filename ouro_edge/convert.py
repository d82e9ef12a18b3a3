"""From a checkpoint to an exported model. Above export and runtime: the last step, calibration, runs the model.

One pipeline, for `ouro_edge.export`, the command line and the cache of conversions (`cached_export`): read the
checkpoint and validate its text files, quantise and build the graphs, calibrate the KV ranges, and only then publish
the directory under its name. Until then everything is in a hidden directory that nothing takes for a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ouro_edge.bundle.directory import is_bundle, open_bundle
from ouro_edge.bundle.manifest import Manifest
from ouro_edge.errors import BundleError, CheckpointError, RequestError, TemplateError
from ouro_edge.export.checkpoint import Checkpoint, with_gate
from ouro_edge.export.exporter import Step, export_bundle
from ouro_edge.export.hf.bundle_checkpoint import open_to_publish
from ouro_edge.export.hf.writer import write_huggingface
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.fitting.calibrate_kv import Calibration, calibrate, calibration_ids
from ouro_edge.fitting.calibrate_weights import WeightCalibration
from ouro_edge.fitting.export_rounding import Rounding, calibrated, gguf_bits, gguf_grids, scheme_grids, settle
from ouro_edge.quant import Recipe, Scheme, preset
from ouro_edge.runtime.checks import check_kind
from ouro_edge.runtime.text.chat_template import ChatTemplate
from ouro_edge.runtime.text.model_text import fitting_tokenizer
from ouro_edge.runtime.text.tokenizer import Tokenizer
from ouro_edge.system.hub import Resolved, resolve
from ouro_edge.system.progress import Progress, stages

T = TypeVar("T")

Format = Literal["bundle", "gguf", "hf"]
BUILT_IN_TEXT = Calibration()
_NO_OPTION = {
    "gguf": "a .gguf file takes no {}: its blocks are those of its type, and KV ranges come with an exported model as "
    "source",
    "hf": "a checkpoint takes no {}, only a dtype: its weights are numbers, not codes",
}
_QUANTISING, _CALIBRATING = 2, 1  # shares of the time of an export


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote."""

    path: Path  # the exported directory, or the .gguf file
    size: int  # bytes of the model's files
    notes: tuple[str, ...]  # one line each: what a user should know about the source, or about the file
    manifest: Manifest | None = None  # of a directory: name, recipe, the error of every tensor
    calibration_tokens: int = 0  # on which KV ranges were measured; 0: there are none


def export(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    precision: str | None = None,
    block_size: int | None = None,
    symmetric: bool | None = None,
    format: Format | None = None,
    revision: str | None = None,
    gate_from: str | os.PathLike[str] | None = None,
    calibration: Calibration | None = BUILT_IN_TEXT,
    rounding: WeightCalibration | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Turn a checkpoint into an exported model: a directory that `load` opens, or one .gguf file. All or nothing.

    With format "hf", the other direction: a checkpoint in Hugging Face form, with the fitted gate of the source.

    Args:
        src: A checkpoint directory in Hugging Face form, a .gguf file or a hub id; for a .gguf file or a checkpoint
            also an exported directory, which keeps its number format and KV ranges (.gguf) and its fitted gate.
        out: The directory or the .gguf file to write. With format "gguf" a name without that ending is a directory,
            in which the file is named after model and type.
        precision: int4 (default), int8 or fp32; for a .gguf file also q4_0, q4_1, q8_0, f16, f32.
        block_size: Weights per scale, 16 to 256, a power of two. Default: 128, for int8 32. Not for .gguf files.
        symmetric: Whether blocks have no zero point. Default: True, for int8 False. Not for .gguf files.
        format: "bundle" for a directory, "gguf" for a file, "hf" for a checkpoint. Default: bundle or gguf, as the name
            of `out` says.
        revision: Branch, tag or commit of a hub id.
        gate_from: A checkpoint whose exit gate a source without one gets.
        calibration: What KV ranges are measured on, so that the cache can be int8 or int4; None measures none.
        rounding: Round the weights of the block by calibration, which takes minutes, instead of to the nearest value,
            None. A calibration that was interrupted continues when the same export is run again. `codes=False` only
            scales channels, for int8. The command line passes `WeightCalibration(optional=True)`.
        dtype: Type of the tensors of a checkpoint: float32, bfloat16 or float16. Default: the type in which the source
            stores a tensor, and float32 for quantised ones.
        overwrite: Replace an exported model at `out`. Nothing else is ever deleted.
        progress: Called as `Progress` says: a job for a download, one for the conversion.

    Raises:
        RequestError: An argument is not allowed, or does not go with the others.
        HubError, ConfigError, CheckpointError: The source cannot be found or read.
        ExportError: `out` is taken or cannot be written.
    """
    check_kind("calibration", calibration, Calibration, optional=True)
    check_kind("rounding", rounding, WeightCalibration, optional=True)
    out = Path(out)
    kind = _format(out, format)
    if dtype is not None and kind != "hf":
        raise RequestError("dtype is for checkpoints: add the format hf, or choose a precision")
    recipe = None
    if kind == "bundle":
        recipe = preset("int4" if precision is None else precision, block_size=block_size, symmetric=symmetric)
    else:
        text = None if calibration is None else calibration.text
        given: dict[str, Any] = {"block size": block_size, "symmetry": symmetric, "calibration text": text}
        if kind == "hf":
            given |= {"precision": precision, "rounding": rounding}
        if extra := [name for name, value in given.items() if value is not None]:
            raise RequestError(_NO_OPTION[kind].format(extra[0]))
    found = resolve(src, revision=revision, progress=progress)
    donor = None if gate_from is None else resolve(gate_from, progress=progress)
    if kind == "hf":
        checkpoint, repository = open_to_publish(found, donor)
        size, notes = write_huggingface(
            checkpoint, out, dtype=dtype, repo_id=repository, overwrite=overwrite, progress=progress
        )
        return ExportResult(out, size, notes)
    if recipe is None:
        return _export_gguf(found, out, precision, donor, rounding, overwrite, progress)
    return export_directory(
        found, out, recipe, gate_from=donor, calibration=calibration, rounding=rounding, overwrite=overwrite,
        progress=progress,
    )  # fmt: skip


def export_directory(
    found: Resolved,
    out: Path,
    recipe: Recipe,
    *,
    gate_from: Resolved | None = None,
    calibration: Calibration | None = BUILT_IN_TEXT,
    rounding: WeightCalibration | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """`export` of a source that was found, as a directory."""
    if is_bundle(found.path):
        raise BundleError(f"{found.path} is an exported model already; export its checkpoint instead")
    checkpoint, source, tokenizer = _open_source(found, gate_from)
    count, steps = 0, list[Step]()
    if calibration is not None:
        text, tokens = calibration.text, calibration.tokens
        count = len(calibration_ids(tokenizer, checkpoint.config.vocab_size, calibration))  # or refuse now
        progress, calibrating = stages(progress, _QUANTISING, _CALIBRATING)
        steps.append(lambda bundle: calibrate(bundle, text, tokens=tokens, progress=calibrating))
    bits = min((s.bits for s in (recipe.attention, recipe.feed_forward) if s is not None), default=None)
    rounding, notes = settle(rounding, checkpoint.config, tokenizer, bits)
    with ExitStack() as stack:
        rounded: Rounding | None = None
        if rounding is not None:
            walking, progress = stages(progress, 9, 1)
            grid = scheme_grids(recipe)
            rounded = stack.enter_context(
                calibrated(found, checkpoint, tokenizer, recipe.embedding, grid, rounding, walking)
            )
            checkpoint = rounded.checkpoint
        del tokenizer  # calibration opens one of its own, where memory is at its peak
        manifest = export_bundle(
            checkpoint, out, recipe, source=source, rounded=None if rounded is None else rounded.matrices,
            rounding=None if rounded is None else rounded.record, steps=steps, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    size = sum(record["size"] for record in manifest.files.values())
    return ExportResult(out, size, (*checkpoint.notes, *notes), manifest, count)


def _format(out: Path, format: Format | None) -> Format:
    """The kind of output that is asked for. RequestError when the name of a directory is that of a file."""
    if format not in (None, "bundle", "gguf", "hf"):
        raise RequestError(f"format is {format!r}; expected bundle, gguf or hf")
    is_file_name = out.suffix.lower() == ".gguf"
    if format in ("bundle", "hf") and is_file_name:
        raise RequestError(f"the format {format} is a directory, and {out} is the name of a file: choose another name "
                           "or the format gguf")  # fmt: skip
    if format is not None:
        return format
    return "gguf" if is_file_name else "bundle"


def _export_gguf(
    found: Resolved, out: Path, precision: str | None, gate_from: Resolved | None,
    rounding: WeightCalibration | None, overwrite: bool, progress: Progress | None,
) -> ExportResult:  # fmt: skip
    from ouro_edge.export.gguf.write_file import bundle_to_gguf, checkpoint_to_gguf

    if is_bundle(found.path):
        asked = rounding is not None and not (rounding.optional and rounding.text is None)
        if precision is not None or gate_from is not None or asked:
            raise RequestError(f"{found.path} is an exported model and keeps its number format and gate: leave out "
                               "precision, gate and rounding, or export its checkpoint")  # fmt: skip
        file, notes = bundle_to_gguf(open_bundle(found.path), out, overwrite=overwrite, progress=progress)
    else:
        checkpoint, source, tokenizer = _open_source(found, gate_from)
        precision = precision or "int4"
        bits = gguf_bits(checkpoint.config, precision)
        if rounding is not None and rounding.optional and rounding.text is not None and bits is None:
            raise RequestError("for a .gguf file, only the rounding of weights uses a calibration text: leave it out")
        rounding, said = settle(rounding, checkpoint.config, tokenizer, bits)
        with ExitStack() as stack:
            rounded: Rounding | None = None
            if rounding is not None:
                walking, progress = stages(progress, 9, 1)
                grid, eight = gguf_grids(checkpoint.config, precision), Scheme(8, 32)
                rounded = stack.enter_context(calibrated(found, checkpoint, tokenizer, eight, grid, rounding, walking))
                checkpoint = rounded.checkpoint
            file, notes = checkpoint_to_gguf(
                checkpoint, out, precision, source=source,
                rounded=None if rounded is None else rounded.matrices, overwrite=overwrite, progress=progress,
            )  # fmt: skip
        notes = (*notes, *said)
    return ExportResult(file, file.stat().st_size, notes)


def _open_source(found: Resolved, gate_from: Resolved | None) -> tuple[Checkpoint, dict[str, Any], Tokenizer | None]:
    """A checkpoint under its repository's name, with the gate of another one if given; its origin; its tokenizer.

    CheckpointError when the exported model could not use its tokenizer or chat template.
    """
    checkpoint = open_checkpoint(found.path)
    path, ids = checkpoint.path / "tokenizer.json", checkpoint.config.vocab_size
    tokenizer = _validate_text(checkpoint, path, lambda text: fitting_tokenizer(text, ids, path))
    _validate_text(checkpoint, checkpoint.path / "chat_template.jinja", ChatTemplate)
    if gate_from is not None:
        checkpoint = with_gate(checkpoint, open_checkpoint(gate_from.path))
    if not found.repo_id:
        return checkpoint, {}, tokenizer
    checkpoint = replace(checkpoint, name=found.repo_id.rsplit("/", 1)[-1])
    return checkpoint, {"repo_id": found.repo_id, "revision": found.revision}, tokenizer


def _validate_text(checkpoint: Checkpoint, path: Path, parse: Callable[[str], T]) -> T | None:
    """What `parse` makes of one of a checkpoint's text files, None without it. CheckpointError when it refuses it."""
    content = checkpoint.files.get(path.name)
    try:
        return None if content is None else parse(content.decode())
    except (BundleError, TemplateError) as problem:
        where = "" if str(path) in str(problem) else f"{path}: "
        raise CheckpointError(f"{where}{problem}") from None
    except UnicodeDecodeError as problem:
        raise CheckpointError(f"{path} is not Unicode text: {problem}; fetch it again") from None
