"""Times one loaded model: prefill and decoding at given depths and contexts, loading, memory.

All tests run through `Model.generate`, as user code does. Repeats alternate between the tests of a context (A B A B,
not A A B B), so that a temporary slowdown of the machine affects all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from ouro_edge.arch.loop_program import loop_program
from ouro_edge.arch.weights import block_tensors, head_tensor
from ouro_edge.bundle.bundle import Bundle
from ouro_edge.errors import ContextOverflowError, RequestError
from ouro_edge.loading import open_model_files
from ouro_edge.measure.context import filled_sequence
from ouro_edge.measure.memory import ProcessMemory, process_memory
from ouro_edge.prefill_weights import prefill_copy_for
from ouro_edge.runtime.backend.kv import kv_bytes_per_layer
from ouro_edge.runtime.events import Done
from ouro_edge.runtime.exits.policies import FixedDepth, FullDepth
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.open_model import open_model
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.runtime.sequence.sequence import TokenSequence


@dataclass(frozen=True, slots=True)
class Plan:
    """What to time on one loaded model."""

    prompts: tuple[int, ...]  # tokens to prefill
    tokens: tuple[int, ...]  # tokens to decode
    depths: tuple[int, ...]  # loops per token; empty: 1 to the model's number of loops
    contexts: tuple[int, ...]  # positions before the test
    repeats: int


@dataclass(frozen=True, slots=True)
class Test:
    """One thing to time."""

    kind: Literal["prefill", "decode"]
    tokens: int
    depth: int
    context: int

    def __str__(self) -> str:
        after = f" after {self.context}" if self.context else ""
        return f"{self.kind} {self.tokens}{after}, depth {self.depth}"


@dataclass(frozen=True, slots=True)
class Speed:
    """The result of a test."""

    test: Test
    seconds: tuple[float, ...]  # one per repeat
    block_calls: int  # in one repeat; each reads the block's weights
    loops_run: int  # in one repeat: positions times loops
    bytes_read: int | None  # in one repeat: weights, keys and values; None for prefill, which is compute-bound

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens per second of each repeat."""
        return tuple(self.test.tokens / s for s in self.seconds)

    @property
    def bandwidth(self) -> float | None:
        """Bytes read per second, at the median time."""
        return None if self.bytes_read is None else self.bytes_read / median(self.seconds)


@dataclass(frozen=True, slots=True)
class Loading:
    """A model was loaded and generated one token at full depth, since some weights are loaded on first use."""

    kv: str
    load: float  # seconds, with the import of onnxruntime; whether files are in the page cache is left to the caller
    first_token: float  # seconds after loading
    memory: ProcessMemory


@dataclass(frozen=True, slots=True)
class End:
    """All tests are done."""

    memory: ProcessMemory
    idle_cpu: float  # share of one CPU used by the idle loaded model


def time_model(path: Path, kv: str, threads: int, prefill: str, plan: Plan) -> Iterator[str | Loading | Speed | End]:
    """Load a bundle and time it; yields status lines as text, and results as they become available.

    To be run in a process of its own. RequestError for a depth that the model does not have, ContextOverflowError for
    a context that it does not hold.
    """
    yield f"loading, kv {kv}, {threads} threads"
    began = time.perf_counter()
    bundle = open_model_files(path)
    depths, room = check_plan(bundle, plan)
    with open_model(bundle, threads=threads, kv=kv, prefill_copy=prefill_copy_for(bundle, prefill)) as model:
        loaded = time.perf_counter()
        *_, done = model.generate([0], max_tokens=1, exit=FullDepth(), sampler=Sampler())
        assert isinstance(done, Done)
        yield Loading(model.kv, loaded - began, done.timings.total, process_memory())
        rng = np.random.default_rng(0)
        for context in plan.contexts:
            yield f"making a context of {context}"
            sequence = filled_sequence(model, context, max(depths), room, rng)
            tests = [Test("prefill", n, depth, context) for n in plan.prompts for depth in depths]
            tests += [Test("decode", n, depth, context) for n in plan.tokens for depth in depths]
            yield "warming up"
            _run(model, sequence, Test("decode", 2, max(depths), context), rng)
            runs: dict[Test, list[Done]] = {test: [] for test in tests}
            for repeat in range(plan.repeats):
                for test in tests:
                    yield f"{test} ({repeat + 1} of {plan.repeats})"
                    runs[test].append(_run(model, sequence, test, rng))
            yield from (_speed(bundle, model.kv, test, done) for test, done in runs.items())
        before, began = time.process_time(), time.perf_counter()
        time.sleep(0.5)
        yield End(process_memory(), (time.process_time() - before) / (time.perf_counter() - began))


def check_plan(bundle: Bundle, plan: Plan) -> tuple[tuple[int, ...], int]:
    """The depths to time and the positions that a test needs besides its context; errors when the model has too few."""
    config = bundle.config
    depths = plan.depths or config.depths
    if not 1 <= min(depths) <= max(depths) <= config.most_loops:
        raise RequestError(f"depths are {', '.join(map(str, depths))}; expected 1 to {config.most_loops} loops")
    room = max((*plan.prompts, *plan.tokens, 2))
    if (most := max(plan.contexts) + room) > config.max_positions:
        raise ContextOverflowError(f"{most} positions do not fit this model's context of {config.max_positions}: "
                                   "use shorter prompts, fewer tokens or a smaller context")  # fmt: skip
    return depths, room


def weight_bytes(bundle: Bundle, depth: int | None = None) -> tuple[int, int]:
    """Bytes of weights read by a call of a stack, on average over the passes to a depth, and by a call of the head."""
    tensors, program = bundle.tensors, loop_program(bundle.config)
    steps = program.steps_to(depth or bundle.config.loops)
    layers = [number for step in steps for number in program.stack(step.graph).layers]

    def uses(name: str) -> int:  # of a tensor in all passes of a token
        return layers.count(int(name.split(".")[1])) if name.startswith("layers.") else len(steps)

    block = sum(uses(name) * tensors[name].size for name in block_tensors(tensors)) // len(steps)
    return block, tensors[head_tensor(tensors)].size


def _run(model: Model, sequence: TokenSequence, test: Test, rng: np.random.Generator) -> Done:
    sequence.truncate(test.context)
    new, count = (test.tokens, 1) if test.kind == "prefill" else (1, test.tokens)
    ids = [*sequence.tokens, *rng.integers(0, model.config.vocab_size, new).tolist()]
    *_, done = model.generate(
        ids,
        max_tokens=count,
        exit=FixedDepth(test.depth, force=True),  # times, not texts
        sampler=Sampler(),
        stop_ids=(),
        sequence=sequence,
        speculate=False,  # on random tokens drafts only cost time
    )
    assert isinstance(done, Done)
    return done


def _speed(bundle: Bundle, kv: str, test: Test, runs: list[Done]) -> Speed:
    usage, read = runs[0].usage, None
    if test.kind == "decode":
        (block, head), program = weight_bytes(bundle, test.depth), loop_program(bundle.config)
        seen = sum(range(test.context + 1, test.context + test.tokens + 1))  # positions attended to by the tokens
        layers = sum(len(program.stack(step.graph).layers) for step in program.steps_to(test.depth))
        keys_and_values = seen * layers * kv_bytes_per_layer(bundle.config, kv)
        read = usage.block_calls * block + test.tokens * head + keys_and_values
    return Speed(test, tuple(done.timings.total for done in runs), usage.block_calls, usage.loops_run, read)
