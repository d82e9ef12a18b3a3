"""Stage I: the model and its gate together, L = sum_r p(r) L_r - beta H(p), on answers only, under the curriculum.

Deterministic for a seed and a number of steps; resumable: a batch depends on seed, step and curriculum only.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from .batch import Batch, Packer
from .checkpoint import export, load_state, save_state
from .curriculum import MORE, PLAN, Curriculum, Skill
from .families import tokenizer_corpus
from .model import ModelConfig, Ouro, exit_probabilities
from .optim import make_optimizers, set_rate
from .parallel import Worker
from .tokenizer import train_tokenizer


@dataclass(frozen=True, slots=True)
class TrainConfig:
    steps: int = 6500
    rows: int = 24
    seed: int = 0
    vocab_size: int = 768
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    muon_lr: float = 0.01
    adam_lr: float = 3e-3
    beta: float = 0.1
    beta_late: float = 0.05
    more: bool = False  # also practise swaps, sums and days
    compile: bool = True
    save_every: int = 200
    log_every: int = 50


def plan_of(config: TrainConfig) -> tuple[Skill, ...]:
    return PLAN + MORE if config.more else PLAN


def practised(config: TrainConfig) -> list[str]:
    return list(dict.fromkeys(family for family, _ in plan_of(config)))


def losses(model: Ouro, batch: Batch, loop=None) -> tuple[Tensor, Tensor, Tensor]:
    """Per-loop answer losses (R, N), exit probabilities (N, R) and hits (R, N)."""
    states = model.states(batch.ids, batch.positions, batch.mask, loop)
    picked = torch.stack([h.flatten(0, 1)[batch.at] for h in states])  # (R, N, C)
    logits, gate = model.read(picked)
    loss = functional.cross_entropy(logits.transpose(1, 2), batch.labels.expand(len(states), -1), reduction="none")
    return loss, exit_probabilities(gate.T), logits.argmax(-1) == batch.labels


def stage_one_loss(loss: Tensor, p: Tensor, weight: Tensor, beta: float) -> Tensor:
    entropy = -(p * p.clamp_min(1e-9).log()).sum(-1)
    return (weight * ((p * loss.T).sum(-1) - beta * entropy)).sum()


def exact(batch: Batch, hits: Tensor) -> Tensor:
    """Hits per token (..., N) -> exact match per question (..., Q)."""
    wrong = torch.zeros(*hits.shape[:-1], len(batch.questions)).index_add_(-1, batch.owner, (~hits).float())
    return wrong == 0


def by_skill(batch: Batch, right: Tensor) -> list[tuple[tuple[str, int], float, float]]:
    """Mean exact match at full depth and after one loop, for each skill of the batch; right (R, Q)."""
    found = defaultdict(list)
    for i, q in enumerate(batch.questions):
        found[q.family, q.hops].append(i)
    return [(s, right[-1, i].float().mean().item(), right[0, i].float().mean().item()) for s, i in found.items()]


def note(log: Path, line: dict) -> None:
    with log.open("a") as f:
        print(json.dumps(line), file=f)


def stage_one(config: TrainConfig, out: Path, worker: Worker = Worker()) -> tuple[Ouro, Tokenizer]:  # noqa: B008
    """Train to `config.steps`, from the state in `out` if there is one; rows are dealt out among the workers."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer(tokenizer_corpus(config.seed), config.vocab_size)
    if (file := out / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(file))
    elif worker.rank == 0:
        tokenizer.save(str(file))
    width = config.hidden_size
    model = Ouro(ModelConfig(tokenizer.get_vocab_size(), width, width * 11 // 4, config.layers, config.heads))
    model.init_weights(torch.Generator().manual_seed(config.seed))
    optimizers = make_optimizers(model, config.muon_lr, config.adam_lr)
    plan = plan_of(config)
    curriculum, start = Curriculum(plan), 0
    if state := load_state(out / "state.pt"):
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        curriculum, start = Curriculum.restore(state["curriculum"], plan), state["step"]
    loop = torch.compile(model.model.loop, dynamic=False) if config.compile else None
    packer, log = Packer(tokenizer), out / "training_log.jsonl"
    if worker.rank == 0:
        parameters = sum(p.numel() for p in model.parameters())
        note(log, {"start": start, "parameters": parameters, "workers": worker.count, **asdict(config)})
    began, asked, depths, total = time.monotonic(), 0, torch.zeros(model.config.total_ut_steps), 0.0
    for step in range(start, config.steps):
        factor = set_rate(optimizers, step, config.steps)
        skills = curriculum.draw(Random(f"{config.seed}/{step}"), config.rows, step)[worker.rank :: worker.count]
        batch = packer.batch(Random(f"{config.seed}/{step}/{worker.rank}"), skills, "train")
        loss, p, hits = losses(model, batch, loop)
        objective = stage_one_loss(loss, p, batch.weight, config.beta if step < config.steps // 2 else config.beta_late)
        objective.backward()
        worker.average(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        curriculum.record(step, worker.gather(by_skill(batch, exact(batch, hits))))
        asked, total = asked + worker.count * len(batch.questions), total + objective.item()
        depths += (batch.weight[:, None] * p.detach()).sum(0)
        done = step + 1
        if worker.rank:
            continue
        if done % config.log_every == 0:
            line = {
                "step": done, "loss": round(total / config.log_every, 4), "lr": round(factor, 3), "questions": asked,
                "seconds": round(time.monotonic() - began),
                "exit": [round(x / config.log_every, 3) for x in depths.tolist()],
                "frontier": [f"{f}{h}" for f, h in curriculum.frontier(step)],
                "skills": {f"{s[0]}{s[1]}": [round(p.accuracy, 3), round(p.shallow, 3), round(p.size, 2)]
                           for s, p in curriculum.progress.items() if p.opened >= 0},
            }  # fmt: skip
            note(log, line)
            total, depths = 0.0, torch.zeros_like(depths)
        if done % config.save_every == 0 or done == config.steps:
            save_state(out / "state.pt", {
                "step": done, "model": model.state_dict(), "curriculum": curriculum.state(),
                "optimizers": [o.state_dict() for o in optimizers],
            })  # fmt: skip
            export(out / "stage1", model, tokenizer, log)
    return model, tokenizer
