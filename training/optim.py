"""Muon for the block's matrices, AdamW for everything else, and the learning-rate schedule.

Muon: momentum, then the update is replaced by its nearest orthogonal matrix (five Newton-Schulz steps); source:
github.com/KellerJordan/Muon. Matrices of one shape go through in one batched product.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from .model import Ouro


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """g (n, rows, columns) -> the same with all singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                shapes[p.shape].append(p)
            for shape, params in shapes.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    m = state.setdefault("momentum", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(m, group["momentum"]))  # Nesterov
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(params, orthogonalise(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"] * scale)


def make_optimizers(model: Ouro, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    block = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in block}
    rest = [p for p in model.parameters() if id(p) not in inside]
    optimizers = [
        Muon(block, lr=muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_rate(optimizers: list[torch.optim.Optimizer], step: int, total: int, warmup: int = 100) -> float:
    """Linear up, constant to 60% of the run, then linear down to 2%; returns the factor."""
    done = step / total
    factor = min(1.0, (step + 1) / warmup) * (1.0 if done < 0.6 else max(0.02, (1 - done) / 0.4))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
    return factor
