"""From a stage I model to the shipped directory: which families are claimed, which gate is shipped, the honest tables.

Everything that is chosen here is chosen on the validation split; the test split is only read for the tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .checkpoint import export
from .evaluate import by_depth, by_threshold, read
from .gate import KINDS, apply, fit, score
from .model import Ouro

CLAIMED = 0.75  # exact match at full depth on validation that a family needs to be claimed
MOST_LOSS, MOST_DEPTH = 0.005, 2.8  # wanted of the recommended threshold, on validation


def recommend(sweep: list[dict]) -> float:
    """The shallowest threshold that costs at most MOST_LOSS, or else the best one within MOST_DEPTH."""
    full = sweep[-1]["exact"]
    good = [row for row in sweep if row["exact"] >= full - MOST_LOSS]
    cheapest = min(good, key=lambda row: row["depth"])
    if cheapest["depth"] <= MOST_DEPTH:
        return cheapest["threshold"]
    return max((row for row in sweep if row["depth"] <= MOST_DEPTH), key=lambda row: row["exact"])["threshold"]


def finish(
    out: Path, model: Ouro, tokenizer: Tokenizer, families: Sequence[str], seed: int, per_skill: int = 200
) -> dict:
    """Stage II, choice, tables for the practised families; writes OUT/final and returns what was found."""
    validation = read(model, tokenizer, families, "validation", seed, per_skill)
    table = by_depth(validation)
    claimed = [r["family"] for r in table if r["family"] != "all" and r["hops"] == "all" and r["exact"][-1] >= CLAIMED]
    if not claimed:
        raise SystemExit("no family reached the claim level; nothing to ship")
    if len(claimed) < len(families):
        validation = read(model, tokenizer, claimed, "validation", seed, per_skill)
    fitting = read(model, tokenizer, claimed, "train", seed + 1, 2 * per_skill)
    gate = model.model.early_exit_gate
    gates = {"stage-1": (gate.weight.detach().clone(), gate.bias.detach().clone())}
    gates |= {kind: fit(fitting, kind, gate.weight, gate.bias) for kind in KINDS}
    scores = {kind: round(score(validation, apply(validation, *g)), 4) for kind, g in gates.items()}
    best = max(KINDS, key=scores.__getitem__)
    with torch.no_grad():
        gate.weight.copy_(gates[best][0])
        gate.bias.copy_(gates[best][1])
    test = read(model, tokenizer, claimed, "test", seed, per_skill)
    result = {
        "claimed": claimed,
        "not_claimed": [r for r in table if r["hops"] == "all" and r["family"] not in ("all", *claimed)],
        "gate": best,
        "gate_scores_validation": scores,
        "recommended_threshold": recommend(by_threshold(validation, apply(validation, *gates[best]))),
        "test_by_depth": by_depth(test),
        "test_by_threshold": {kind: by_threshold(test, apply(test, *g)) for kind, g in gates.items()},
    }
    final = out / "final"
    export(final, model, tokenizer, out / "training_log.jsonl")
    (final / "training_results.json").write_text(json.dumps(result, indent=1) + "\n")
    for split, readout in (("validation", validation), ("test", test)):
        with (final / f"questions.{split}.jsonl").open("w") as f:
            for q in readout.questions:
                row = {"family": q.family, "hops": q.hops, "prompt": q.prompt, "answer": q.answer}
                print(json.dumps(row), file=f)
    return result


def show(result: dict) -> str:
    """The tables as Markdown."""
    lines = ["| family | hops | questions | 1 loop | 2 loops | 3 loops | 4 loops |", "|---|---|---|---|---|---|---|"]
    for r in result["test_by_depth"]:
        cells = [r["family"], r["hops"], r["questions"], *(f"{x:.1%}" for x in r["exact"])]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for kind, rows in result["test_by_threshold"].items():
        lines += ["", f"gate: {kind}{' (shipped)' if kind == result['gate'] else ''}", ""]
        lines += ["| threshold | exact | mean depth | first token's depth | by hops |", "|---|---|---|---|---|"]
        for r in rows:
            cells = [r["threshold"], f"{r['exact']:.1%}", r["depth"], r["first"], r["first_by_hops"]]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
