"""Answers the rows of a JSONL or Parquet file with Ray Data, and writes Parquet.

    python answer_file.py questions.jsonl answers --model ouro-int4 --actors 2 --threads 1 --max-tokens 64

A row has a `prompt`, or `messages` as for a chat. With --checkpoint DIR and a Parquet source whose rows have an `id`,
an interrupted job continues: run the same command again. On a cluster, start it on any of its machines; paths must be
on storage that all machines see.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ray
from ray.data.checkpoint import CheckpointConfig

from ouro_edge.integrations.ray import answer


def main() -> None:
    """Read, answer, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a .jsonl or .parquet file, or a directory of such files")
    parser.add_argument("out", help="directory for Parquet files")
    parser.add_argument("--model", help="default: the built-in model")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each actor")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--exit", help="exit rule, such as gate:0.7")
    parser.add_argument("--checkpoint", type=Path, help="directory for Ray's checkpoint; rows need a unique id")
    options = parser.parse_args()
    source = str(Path(options.source).resolve())
    is_json = source.endswith(".jsonl") or any(Path(source).glob("*.jsonl"))
    if options.checkpoint and is_json:
        parser.error("--checkpoint needs a Parquet source: Ray's checkpoints do not continue JSON files")
    if options.checkpoint:
        ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
            id_column="id", checkpoint_path=str(options.checkpoint.resolve()), delete_checkpoint_on_success=False
        )
    rows = ray.data.read_json(source, lines=True) if is_json else ray.data.read_parquet(source)
    answers = answer(
        rows, options.model, actors=options.actors, threads=options.threads, batch_size=8,
        max_tokens=options.max_tokens, exit=options.exit,
    )  # fmt: skip
    answers.write_parquet(str(Path(options.out).resolve()))


if __name__ == "__main__":
    main()
