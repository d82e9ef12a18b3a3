"""Runs a generator function in a new process and yields its items here.

Load time and peak memory can only be measured in a process in which no model was loaded before.
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

    OuroEdgeError when the process is killed, for example for lack of memory. The process ends with the iteration, also
    when the iteration is abandoned.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit everything loaded here
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
                raise OuroEdgeError(f"the measuring process ended with exit code {process.exitcode}; "
                                    "-9 usually means that memory ran out") from None  # fmt: skip
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
        return  # the parent receives it as well and reports it
    else:
        there.send((None, None, True))
