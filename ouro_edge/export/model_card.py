"""The README.md of an exported model, generated from its manifest."""

from __future__ import annotations

import re

from ouro_edge.arch.config import ModelConfig
from ouro_edge.arch.loop_program import loop_program
from ouro_edge.bundle.manifest import Manifest


def model_card(manifest: Manifest) -> str:
    """Markdown with front matter for model hubs."""
    repository = manifest.source.get("repo_id")
    front = ["library_name: ouro-edge", "pipeline_tag: text-generation"]
    if repository:
        front += [f"base_model: {repository}", "base_model_relation: quantized"]
    name = re.sub(r"[^\w.() -]", "", manifest.name)  # the name comes from an untrusted file
    model, origin = manifest.model, repository or "a local checkpoint"
    revision = f" at revision {manifest.source['revision']}" if manifest.source.get("revision") else ""
    loops = "no loops" if model.loops == 1 else f"{_stacks(model)}, {model.loops} loops"
    gate = "with its exit gate" if model.has_gate else "without exit gate"
    gate = gate if model.family.exits else "all of which every token runs"
    lines = [
        "---",
        *front,
        "---",
        f"# {name} ({manifest.recipe})",
        "",
        f"Exported by {manifest.created_by} from {origin}{revision}: {loops}, {gate}.",
        "",
        "    ouro-edge chat PATH-TO-THIS-DIRECTORY",
        "",
        *_rounding(manifest),
        "| tensors | format | mean SNR |",
        "| --- | --- | --- |",
        *_summary(manifest),
        "",
        "`ouro-edge verify` compares it with a reference; `ouro_edge.json` lists every tensor.",
        "The licence is that of the original model.",
        "",
    ]
    return "\n".join(lines)


def _stacks(model: ModelConfig) -> str:
    stacks = loop_program(model).stacks
    if len(stacks) == 1:
        return f"one block of {model.num_layers} layers"
    return f"{len(stacks)} stacks of " + " and ".join(str(len(stack.layers)) for stack in stacks) + " layers"


def _rounding(manifest: Manifest) -> list[str]:
    how = manifest.rounding
    if not how:
        return []
    text = "the built-in text" if how.get("text") == "built-in" else "a given text"
    what = "The block's weights were rounded by calibration"
    if how.get("method") != "calibrated":
        what = "Channels were scaled, so that activations lose less when they are rounded, as measured"
    return [f"{what} on {how.get('tokens')} tokens of {text}.", ""]


def _summary(manifest: Manifest) -> list[str]:
    groups: dict[tuple[str, str], list[float]] = {}
    for name, tensor in manifest.tensors.items():
        kind = re.sub(r"layers\.\d+\.", "", name)
        if tensor.scheme is None:
            groups.setdefault((kind, "fp32"), [])
            continue
        snr = (tensor.error or {}).get("snr_db")
        label = f"int{tensor.scheme.bits}, block {tensor.scheme.block_size}"
        label += "" if tensor.scheme.symmetric else ", with zero points"
        groups.setdefault((kind, label), []).extend([] if snr is None else [snr])
    return [
        f"| {kind} | {label} | {f'{sum(snrs) / len(snrs):.1f} dB' if snrs else 'exact'} |"
        for (kind, label), snrs in groups.items()
    ]
