"""`python -m training --out DIR`: the one command. Running it again continues where it stopped."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch

from .checkpoint import load_model
from .finish import finish, show
from .parallel import launch
from .train import TrainConfig, practised, stage_one


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train ouro-nano from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="run directory; the result is OUT/final")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    for f in fields(TrainConfig):
        kind = {"int": int, "float": float, "bool": lambda s: s == "true"}[f.type]
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=kind, default=f.default)
    arguments = vars(parser.parse_args())
    out, workers = arguments.pop("out"), arguments.pop("workers")
    config = TrainConfig(**arguments)
    launch(workers, stage_one, config, out)
    torch.set_num_threads(workers)
    result = finish(out, *load_model(out / "stage1"), practised(config), config.seed)
    (out / "final" / "RESULTS.md").write_text(show(result) + "\n")
    print(show(result))


if __name__ == "__main__":
    main()
