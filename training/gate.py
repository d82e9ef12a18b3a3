"""Stage II: the language model is frozen and only the gate's H + 1 numbers learn when another loop is worth it.

Targets of going on: w = sigmoid(50 (I - 0.005)) with an improvement I >= 0 of the token's loss, in three kinds:
- published: lambda_r against the gain *into* loop r, r = 2..R; lambda_1 stays what stage I made of it;
- look-ahead: lambda_r against the gain from r to r + 1, r = 1..R-1, which also teaches lambda_1;
- horizon: lambda_r against the best gain from r to any later loop: a deep question may gain nothing for one loop.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .evaluate import Readout, by_threshold

KINDS = ("published", "look-ahead", "horizon")
SLOPE, LEAST_GAIN = 50.0, 0.005


def targets(loss: Tensor, kind: str) -> tuple[Tensor, slice]:
    """Losses (R, N) -> ideal probability of going on (R-1, N) and the loops it is taught to."""
    if kind == "horizon":
        best_later = loss.flip(0).cummin(0).values.flip(0)[1:]
        gain = (loss[:-1] - best_later).clamp_min(0)
    else:
        gain = (loss[:-1] - loss[1:]).clamp_min(0)
    taught = slice(1, None) if kind == "published" else slice(0, -1)
    return torch.sigmoid(SLOPE * (gain - LEAST_GAIN)), taught


Gate = tuple[Tensor, Tensor]  # weight (1, C), bias (1,)


def fit(r: Readout, kind: str, weight: Tensor, bias: Tensor, steps: int = 600, lr: float = 0.03) -> Gate:
    """Logistic regression on the normed states, from the stage I gate."""
    go_on, taught = targets(r.loss, kind)
    x = r.states[taught]
    weight, bias = weight.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=lr)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        # 1 - lambda is the probability of going on, so its logit is the gate's with the sign turned.
        loss = functional.binary_cross_entropy_with_logits(-(x @ weight[0] + bias), go_on)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight.detach(), bias.detach()


def apply(r: Readout, weight: Tensor, bias: Tensor) -> Tensor:
    """Gate logits (N, R) of another gate on the same states."""
    return (r.states @ weight[0] + bias).T


def score(r: Readout, gate: Tensor) -> float:
    """Area under accuracy against mean depth: the mean over depths 1..R of the best accuracy at no more depth."""
    fine = [0.002 * i for i in range(1, 501)]
    points = sorted((row["depth"], row["exact"]) for row in by_threshold(r, gate, fine))
    grid = torch.linspace(1.0, float(r.loss.shape[0]), 61)
    floor = by_threshold(r, torch.full_like(gate, 50.0), [0.5])[0]["exact"]  # everything leaves after one loop
    return sum(max([e for d, e in points if d <= g] + [floor]) for g in grid) / len(grid)
