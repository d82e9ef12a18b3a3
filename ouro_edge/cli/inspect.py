"""`ouro-edge inspect`: the contents of a checkpoint, a .gguf file or an exported model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ouro_edge.arch.config import ModelConfig
    from ouro_edge.bundle.directory import DirectoryBundle


@click.command(name="inspect", short_help="Show what MODEL contains: sizes, loops, exit gate, KV memory.")
@click.argument("model", required=False)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--tensors", is_flag=True, help="Also list the quantisation error of each tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
def command(model: str | None, revision: str | None, tensors: bool, as_json: bool) -> None:
    """Show what MODEL contains: sizes, loops, exit gate, types, memory for keys and values."""
    from ouro_edge.bundle.directory import is_bundle, open_bundle
    from ouro_edge.cli.options import BUILT_IN, say
    from ouro_edge.cli.tables import error_table, printable
    from ouro_edge.loading import named_or_built_in
    from ouro_edge.system.hub import resolve

    if model is None:
        say(BUILT_IN)
    found = resolve(named_or_built_in(model), revision=revision)
    if is_bundle(found.path):
        bundle = open_bundle(found.path)
        facts = _bundle_facts(bundle)
        extra = error_table(bundle.manifest) if tensors else ""
    else:
        facts, extra = _checkpoint_facts(found.path), ""
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {printable(_show(value))}")
    if extra:
        click.echo(extra)


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    from ouro_edge.export.open_checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    kind = "checkpoint (.gguf)" if path.is_file() else "checkpoint (safetensors)"
    facts = {"name": checkpoint.name, "kind": kind, **_model_facts(checkpoint.config)}
    facts["tensor types"] = dict(checkpoint.tensor_types)
    facts["files"] = sorted(checkpoint.files)
    if checkpoint.notes:
        facts["notes"] = list(checkpoint.notes)
    return facts


def _bundle_facts(bundle: DirectoryBundle) -> dict[str, Any]:
    from ouro_edge.cli.tables import file_size

    manifest = bundle.manifest
    kinds = Counter(
        f"int{t.scheme.bits}/{t.scheme.block_size}" if t.scheme else "fp32" for t in manifest.tensors.values()
    )
    size = sum(record["size"] for record in manifest.files.values())
    facts = {"name": manifest.name, "kind": f"exported model ({manifest.recipe})", **_model_facts(manifest.model)}
    if (gate := bundle.fitted_gate()) is not None:
        facts["exit gate"] = "yes, with another fitted to this model"
        facts["exit threshold"] = facts["exit threshold"] if gate.threshold is None else gate.threshold
    facts["tensor types"] = dict(kinds)
    facts["size"] = file_size(size)
    facts["source"] = dict(manifest.source)
    facts["made by"] = manifest.created_by
    facts["files"] = sorted(manifest.files)
    return facts


def _model_facts(config: ModelConfig) -> dict[str, Any]:
    from math import prod

    from ouro_edge.arch.weights import tensor_shapes
    from ouro_edge.cli.tables import file_size
    from ouro_edge.runtime.backend.kv import KV_TYPES, kv_bytes_per_token

    kv = {kind: file_size(kv_bytes_per_token(config, kind)) for kind in KV_TYPES}
    heads = f"{config.num_heads} heads, {config.num_kv_heads} for keys and values, of {config.head_dim}"
    return {
        "parameters": sum(map(prod, tensor_shapes(config).values())),
        "loops": config.loops,
        **_passes(config),
        **_exits(config),
        "hidden size": config.hidden_size,
        "feed-forward size": config.intermediate_size,
        "attention": heads,
        "vocabulary": config.vocab_size,
        "context": config.max_positions,
        **({"prefix-LM": "yes: a prompt that is a text sees itself in both directions"} if config.prefix_lm else {}),
        "stop ids": list(config.stop_token_ids),
        "KV per token": kv,
    }


def _passes(config: ModelConfig) -> dict[str, Any]:
    """The layers of the block, or of every stack and how often it runs."""
    from ouro_edge.arch.loop_program import loop_program

    program = loop_program(config)
    if len(program.stacks) == 1:
        return {"layers in the block": config.num_layers}
    graphs = Counter(step.graph for step in program.usual_steps)
    return {"stacks": {s.name: f"{len(s.layers)} layers x {graphs[s.name]}" for s in program.stacks}}


def _exits(config: ModelConfig) -> dict[str, Any]:
    if not config.family.exits:
        return {"exits": f"none: trained for {config.loops} loops only"}
    gate = "yes" if config.has_gate else "none: all loops, or a number of them"
    return {"exit gate": gate, "exit threshold": config.exit_threshold}


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
