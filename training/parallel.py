"""Several one-thread processes on one machine, each with a share of every batch: gradients are averaged by gloo.

On small shared machines this beats threads inside the operators, which wait for each other many times in a layer.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


@dataclass(frozen=True, slots=True)
class Worker:
    """This process's place among its equals; alone by default."""

    rank: int = 0
    count: int = 1

    def average(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the workers, in one message."""
        if self.count == 1:
            return
        grads = [p.grad for p in parameters]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.count
        for g, new in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(new.view_as(g))

    def gather(self, value: list) -> list:
        """All workers' lists, one after the other, the same for everyone."""
        if self.count == 1:
            return value
        out: list = [None] * self.count
        dist.all_gather_object(out, value)
        return [x for part in out for x in part]


def _enter(rank: int, count: int, port: int, run: Callable, arguments: tuple) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(count)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run(*arguments, Worker(rank, count))
    dist.destroy_process_group()


def launch(count: int, run: Callable[..., Any], *arguments: Any) -> None:
    """Call run(*arguments, worker) in `count` processes and wait; results go through files."""
    if count == 1:
        torch.set_num_threads(1)
        run(*arguments, Worker())
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_enter, (count, port, run, arguments), nprocs=count)
