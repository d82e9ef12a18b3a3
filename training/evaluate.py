"""What the model knows: exact match by family, hops and depth, and by exit threshold. Torch, for development.

Greedy decoding gives the right answer exactly when every answer token is the argmax given the ones before it, so one
forward pass over question and answer measures it at every depth at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from .batch import Packer
from .checkpoint import load_model
from .families import MAX_HOPS
from .model import Ouro, exit_probabilities
from .question import Question

THRESHOLDS = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.97, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Readout:
    """All that gates and tables need of a model on Q questions with N answer tokens."""

    states: Tensor  # (R, N, C)
    loss: Tensor  # (R, N)
    hits: Tensor  # (R, N) bool
    gate: Tensor  # (N, R) logits
    owner: Tensor  # (N,)
    first: Tensor  # (N,) bool: the token that decides the answer
    questions: tuple[Question, ...]


@torch.no_grad()
def read(model: Ouro, tokenizer: Tokenizer, families: Sequence[str], split: str, seed: int, per_skill: int) -> Readout:
    """`per_skill` different questions for each family and number of hops, as far as the split has them."""
    packer, rng, seen = Packer(tokenizer), Random(f"{split}/{seed}"), set()
    parts: list[Readout] = []
    for family in families:
        for hops in range(1, MAX_HOPS[family] + 1):
            found = tries = 0
            while found < per_skill and tries < 150:
                tries += 1
                batch = packer.batch(rng, [(family, hops, rng.random()) for _ in range(8)], split)
                keep = []
                for q in batch.questions:
                    keep.append(q.hops == hops and q.prompt not in seen and found < per_skill)
                    found += keep[-1]
                    seen.add(q.prompt)
                if not any(keep):
                    continue
                states = model.states(batch.ids, batch.positions, batch.mask)
                mine = torch.tensor(keep)[batch.owner]
                picked = torch.stack([h.flatten(0, 1)[batch.at[mine]] for h in states])
                logits, gate = model.read(picked)
                labels = batch.labels[mine]
                loss = functional.cross_entropy(
                    logits.transpose(1, 2), labels.expand(len(states), -1), reduction="none"
                )
                number = torch.cumsum(torch.tensor(keep), 0) - 1
                owner = number[batch.owner[mine]]
                first = torch.cat((torch.ones(1, dtype=torch.bool), owner[1:] != owner[:-1]))
                questions = tuple(q for q, k in zip(batch.questions, keep, strict=True) if k)
                parts.append(Readout(picked, loss, logits.argmax(-1) == labels, gate.T, owner, first, questions))
    return join(parts)


def join(parts: Sequence[Readout]) -> Readout:
    shift, owners = 0, []
    for p in parts:
        owners.append(p.owner + shift)
        shift += len(p.questions)
    return Readout(
        torch.cat([p.states for p in parts], 1), torch.cat([p.loss for p in parts], 1),
        torch.cat([p.hits for p in parts], 1), torch.cat([p.gate for p in parts]), torch.cat(owners),
        torch.cat([p.first for p in parts]), tuple(q for p in parts for q in p.questions),
    )  # fmt: skip


def exact(r: Readout, hits: Tensor) -> Tensor:
    """Token hits (..., N) -> exact match per question (..., Q)."""
    return torch.zeros(*hits.shape[:-1], len(r.questions)).index_add_(-1, r.owner, (~hits).float()) == 0


def exit_depth(gate: Tensor, threshold: float) -> Tensor:
    """Gate logits (N, R) -> depth 1..R: the first loop whose cumulated exit probability reaches the threshold."""
    reached = exit_probabilities(gate.double()).cumsum(-1) >= threshold
    reached[:, -1] = True
    return reached.int().argmax(-1) + 1


def select(r: Readout, keep: Iterable[bool]) -> Tensor:
    return torch.tensor(list(keep), dtype=torch.bool)


def by_depth(r: Readout) -> list[dict]:
    """Exact match at every fixed depth: one row for each family and number of hops, then families, then all."""
    right = exact(r, r.hits).float()
    skills = sorted({(q.family, q.hops) for q in r.questions})
    families = sorted({f for f, _ in skills})
    keys = [*skills, *((f, None) for f in families), *((None, h) for h in sorted({h for _, h in skills})), (None, None)]
    rows = []
    for family, hops in keys:
        keep = select(r, (family in (None, q.family) and hops in (None, q.hops) for q in r.questions))
        rows.append({"family": family or "all", "hops": hops or "all", "questions": int(keep.sum()),
                     "exact": [round(x, 4) for x in right[:, keep].mean(1).tolist()]})  # fmt: skip
    return rows


def by_threshold(r: Readout, gate: Tensor | None = None, thresholds: Sequence[float] = THRESHOLDS) -> list[dict]:
    """Exact match and mean depth at every threshold; `first` is the depth of the token that decides the answer."""
    gate = r.gate if gate is None else gate
    rows = []
    for t in thresholds:
        depth = exit_depth(gate, t)
        right = exact(r, r.hits.gather(0, depth[None] - 1)[0]).float()
        hops = torch.tensor([q.hops for q in r.questions])[r.owner]
        rows.append({
            "threshold": t, "exact": round(right.mean().item(), 4), "depth": round(depth.float().mean().item(), 3),
            "first": round(depth[r.first].float().mean().item(), 3),
            "first_by_hops": [round(depth[r.first & (hops == h)].float().mean().item(), 2) for h in hops.unique()],
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--families", default="likes,boss,compare,swaps,sums,days,assistant")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--per-skill", type=int, default=200)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(a.model)
    r = read(model, tokenizer, a.families.split(","), a.split, 0, a.per_skill)
    depths, sweep = by_depth(r), by_threshold(r)
    for row in depths:
        cells = "  ".join(f"{x:6.1%}" for x in row["exact"])
        print(f"{row['family']:10} {row['hops']!s:4} {row['questions']:6}  {cells}")
    for row in sweep:
        print(f"q {row['threshold']:4}  exact {row['exact']:6.1%}  depth {row['depth']}", end="  ")
        print(f"first {row['first']}  {row['first_by_hops']}")
    if a.json:
        a.json.write_text(json.dumps({"by_depth": depths, "by_threshold": sweep}, indent=1) + "\n")


if __name__ == "__main__":
    main()
