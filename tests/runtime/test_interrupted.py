"""Ctrl-C or a failed allocation at any line of the code that changes a sequence: the next request is right."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest

import ouro_edge
from ouro_edge.runtime.backend.kv import KVBuffers
from ouro_edge.runtime.exits.policies import ExitThreshold

PROMPT = np.random.default_rng(4).integers(3, 96, 66).tolist()
FILES = ("kv.py", "onnx_cache.py", "onnx_backend.py", "fair_lock.py", "hidden_queue.py", "sequence.py")


@contextmanager
def interrupt_at(number: int, error: type[BaseException]) -> Iterator[Callable[[], bool]]:
    """Raise an error at the `number`-th line that is executed in one of FILES; yields whether it was raised."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith(FILES) or "ouro_edge" not in frame.f_code.co_filename:
            return None
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not source.startswith(("with ", "try:")):  # there, signals do not arrive
            count += 1
            if count == number:
                raise error
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: count >= number
    finally:
        sys.settrace(before)


@pytest.fixture(scope="module")
def model(bundle_of: Any) -> Iterator[ouro_edge.Model]:
    with ouro_edge.load(bundle_of(), threads=1, kv="fp32") as model:
        yield model


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("offset", [0, 3])
def test_an_interrupted_sequence_goes_on_rightly(
    model: ouro_edge.Model, error: type[BaseException], offset: int
) -> None:
    options: dict[str, Any] = {"max_tokens": 3, "exit": ExitThreshold(0.5), "stop_ids": (), "speculate": False}

    def answer(ids: list[int], sequence: Any) -> list[int]:
        return [e.id for e in model.generate(ids, sequence=sequence, **options) if isinstance(e, ouro_edge.Token)]

    others = {length: answer(PROMPT[:length], model.new_sequence()) for length in (30, 66)}
    begun = model.new_sequence()
    answer(PROMPT[:20], begun)
    number, raised = 1 + offset, True
    while raised:  # the buffers have room for 64 positions at first
        sequence = begun.copy_prefix()
        try:
            with interrupt_at(number, error) as was_raised:
                answer(PROMPT, sequence)
        except error:
            pass
        except ouro_edge.OuroEdgeError:  # an exception inside of onnxruntime's call becomes one of these
            pass
        raised = was_raised()
        for length in (30, 66):  # a shorter one first: it needs no larger buffers
            assert answer(PROMPT[:length], sequence) == others[length], number
        number += 7
    assert number > 300


def test_buffers_of_an_interrupted_growth_get_one_size_again(model: ouro_edge.Model) -> None:
    for fails_at in range(2 * model.config.num_layers):
        buffers, bound = KVBuffers(model.config, model.config.num_layers), dict[str, int]()

        def bind(name: str, value: Any, at: int | None = None, bound: dict[str, int] = bound) -> None:
            if len(bound) == at:
                raise MemoryError
            bound[name] = value.shape()[2]

        buffers.reserve(10, 0, bind)
        for i, array in enumerate(buffers.arrays):
            array[:] = i
        bound.clear()
        with pytest.raises(MemoryError):
            buffers.reserve(65, 10, lambda name, value, at=fails_at: bind(name, value, at))
        bound.clear()
        buffers.reserve(10, 10, bind)
        assert set(bound.values()) == {buffers.capacity} == {64}
        assert [array[0, 0, 9, 0] for array in buffers.arrays] == list(range(2 * model.config.num_layers))
