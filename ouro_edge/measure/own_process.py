"""Runs a generator function in a fresh process and hands on what it yields. Knows multiprocessing.

Load time and peak memory can only be measured where nothing was loaded before.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from ouro_edge.errors import OuroEdgeError

_Item = TypeVar("_Item")


def in_own_process(job: Callable[..., Iterator[_Item]], *arguments: Any) -> Iterator[_Item]:
    """Yield the items of `job(*arguments)`, a function at a module's top level; its errors are raised here.

    OuroEdgeError when the process dies, which is how a system ends a program that takes too much memory. The process
    ends with the iteration, also with one that is given up.
    """
    context = multiprocessing.get_context("spawn")  # a fork would start with all that is loaded here
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, job, arguments), daemon=True)
    process.start()
    there.close()
    try:
        while True:
            try:
                item, problem, ended = here.recv()
            except EOFError:
                process.join()
                raise OuroEdgeError(f"the measuring process died with exit code {process.exitcode}; "
                                    "a negative 9 means that memory ran out") from None  # fmt: skip
            if problem is not None:
                raise problem
            if ended:
                return
            yield item
    finally:
        here.close()
        process.terminate()
        process.join()


def _send(there: Connection, job: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    try:
        for item in job(*arguments):
            there.send((item, None, False))
    except Exception as problem:
        there.send((None, problem, True))
    except KeyboardInterrupt:
        return  # the parent got it as well, and says so
    else:
        there.send((None, None, True))
