"""The block's second session, for calls with many rows; opened for the first long prompt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ouro_edge.bundle.bundle import Graph
from ouro_edge.errors import BundleError
from ouro_edge.runtime.backend.session import open_session

_log = logging.getLogger("ouro_edge.prefill_weights")

PREFILL_ROWS = 256  # rows per call: fast products, and little attention computed above the diagonal
# Opening the session takes one or two seconds, as long as a shorter prompt. The limit is the same when the session is
# open, although fewer rows would be faster there, because an answer must not depend on earlier requests.
MIN_PREFILL_ROWS = 64


class PrefillSession:
    """Weights with one byte each, which onnxruntime packs into separate memory when the session is opened."""

    def __init__(self, graph: Callable[[], Graph], threads: int | None) -> None:
        self._graph, self._threads = graph, threads
        self._lock = threading.Lock()
        self._session: Any = None
        self._gone = False
        self.min_rows = MIN_PREFILL_ROWS  # of a call, to use this session

    def session_for(self, rows: int) -> Any:
        """The session, or None for few rows, or when the copy was deleted."""
        return None if rows < self.min_rows else self.open()

    def open(self) -> Any:
        """The session, or None when the copy was deleted."""
        with self._lock:
            if self._session is None and not self._gone:
                try:
                    # Not in parallel: the file and the bundle's weights together would be the peak of memory.
                    self._session = open_session(self._graph(), self._threads, parallel=False)
                except (BundleError, OSError) as problem:  # the cache was cleared after the model was loaded
                    self._gone = True
                    _log.warning("the prefill copy is no longer used: %s", problem)
        return self._session


def multiplies_exactly(probe: Graph) -> bool:
    """Whether this CPU's kernel sums uint8 times int8 exactly; without VNNI some kernels saturate at 16 bits."""
    x, w = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    found = open_session(probe, threads=1).run(None, {"x": x, "w": w})[0]
    return bool((found == 255.0 * 127.0 * 64).all())
