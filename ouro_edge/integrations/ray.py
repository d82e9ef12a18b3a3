"""Ray Data: prompts or chat messages in, text, ids, depths, log-probabilities and usage out (extra `ray`).

    dataset = ray.data.read_json("questions.jsonl")
    answer(dataset, "ouro-int4", actors=2, threads=1, max_tokens=64).write_parquet("answers")

`answer` applies `Generator` with `map_batches` in a pool of actors, each with a model of its own. What a lost actor had
not finished is computed again by another one; Ray's checkpoints continue an interrupted job (docs/ray.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from ouro_edge.errors import RequestError
from ouro_edge.loading import load
from ouro_edge.runtime.events import Done, Token
from ouro_edge.runtime.options import GenerationOptions

if TYPE_CHECKING:
    from ray.data import Dataset

_USAGE = pa.struct(
    [("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64()), ("loops_run", pa.int64()),
     ("loops_saved", pa.int64()), ("mean_depth", pa.float64())]
)  # fmt: skip
OUTPUT = pa.schema(
    [("text", pa.string()), ("token_ids", pa.list_(pa.int64())), ("logprobs", pa.list_(pa.float64())),
     ("sampling_logprobs", pa.list_(pa.float64())), ("depths", pa.list_(pa.int64())), ("finish_reason", pa.string()),
     ("usage", _USAGE), ("error", pa.string())]
)  # fmt: skip


def answer(
    dataset: Dataset,
    model: str | None = None,
    *,
    actors: int | tuple[int, int] = 1,
    threads: int = 1,
    batch_size: int = 32,
    parallel: int = 1,
    loading: Mapping[str, Any] | None = None,
    **options: Any,
) -> Dataset:
    """The dataset with the columns of `OUTPUT` added, computed in a pool of actors.

    Args:
        dataset: Rows with a column `prompt` (text, or token ids) or `messages` (as for chats), and perhaps `seed`.
        model: As for `ouro_edge.load`; every machine must have it. None: the built-in model.
        actors: Largest number of actors, or the smallest and largest one. Ray starts with the smallest, 1, and adds
            others while CPUs are free: tasks that read rows need some as well.
        threads: CPUs of an actor, which Ray reserves, and threads of its model.
        batch_size: Rows that an actor gets at a time, and repeats if it is lost.
        parallel: Rows that share calls of the model in an actor.
        loading: Further arguments of `ouro_edge.load`.
        options: Fields of `ouro_edge.GenerationOptions`, such as max_tokens, temperature, exit.
    """
    GenerationOptions(**options)  # reports wrong values here, and not in an actor
    constructor = {"model": model, "parallel": parallel, "loading": dict(loading or {}), **options}
    return dataset.map_batches(
        Generator, fn_constructor_kwargs=constructor, batch_format="pyarrow", batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(**_pool(actors)), num_cpus=threads,
    )  # fmt: skip


def _pool(actors: int | tuple[int, int]) -> dict[str, int]:
    smallest, largest = (1, actors) if isinstance(actors, int) else actors
    return {"min_size": smallest, "max_size": largest}


class Generator:
    """A callable for `map_batches(..., batch_format="pyarrow")`: adds the columns of `OUTPUT` to a batch.

    It has as many threads as Ray gives its actor CPUs. A row that cannot be answered gets an `error` and nothing else.
    """

    def __init__(
        self, model: str | None = None, *, parallel: int = 1, loading: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        settings = {"threads": actor_threads(), **(loading or {})}
        self.model = load(model, **settings, parallel=parallel)
        self._options = GenerationOptions(**options)
        self._pool = ThreadPoolExecutor(parallel)
        self._options.arguments(self.model)  # RequestError for what this model does not support

    def __call__(self, batch: pa.Table) -> pa.Table:
        if not isinstance(batch, pa.Table):
            raise TypeError(f'the batch is {type(batch).__name__}; expected pyarrow.Table: batch_format="pyarrow"')
        if taken := sorted(set(batch.column_names) & set(OUTPUT.names)):
            raise ValueError(f"the dataset has a column {taken[0]!r}, which is a column of the answers: rename it")
        rows = list(self._pool.map(self._answer, batch.to_pylist()))
        for field in OUTPUT:
            batch = batch.append_column(field, pa.array([row.get(field.name) for row in rows], field.type))
        return batch

    def _answer(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The new columns of a row."""
        try:
            return self._generate(row)
        except Exception as problem:  # a row must not end the job
            return {
                "error": str(problem) if isinstance(problem, RequestError) else f"{type(problem).__name__}: {problem}"
            }

    def _generate(self, row: Mapping[str, Any]) -> dict[str, Any]:
        prompt: Any = row.get("prompt")
        messages, seed = row.get("messages"), row.get("seed")
        if (prompt is None) == (messages is None):
            raise RequestError("a row has either a prompt or messages; expected one of them")
        arguments = (self._options if seed is None else replace(self._options, seed=seed)).arguments(self.model)
        if messages is not None:
            events = self.model.chat([_without_nulls(message) for message in messages], **arguments)
        else:
            events = self.model.generate(prompt if isinstance(prompt, str) else list(prompt), **arguments)
        return columns(events)


def columns(events: Iterable[Token | Done]) -> dict[str, Any]:
    """The columns of `OUTPUT` from the events of one generation."""
    tokens: list[Token] = []
    for event in events:
        if isinstance(event, Token):
            tokens.append(event)
            continue
        usage = event.usage
        depth = None if math.isnan(usage.mean_depth) else usage.mean_depth
        return {
            "text": event.text,
            "token_ids": [token.id for token in tokens],
            "logprobs": [token.logprob for token in tokens],
            "sampling_logprobs": [token.sampling_logprob for token in tokens],
            "depths": [token.depth for token in tokens],
            "finish_reason": event.reason,
            "usage": {
                **{name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "loops_run",
                                                           "loops_saved")},
                "mean_depth": depth,
            },
        }  # fmt: skip
    raise RequestError("the generation ended without a result")


def actor_threads() -> int:
    """CPUs that Ray has reserved for this actor, at least 1; 1 outside an actor."""
    if not ray.is_initialized():
        return 1
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without the fields that other rows have: Arrow fills them with nulls."""
    return {name: value for name, value in message.items() if value is not None or name == "content"}
