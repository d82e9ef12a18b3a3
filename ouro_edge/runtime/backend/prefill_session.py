"""The block's second session, for calls with many rows; opened for the first long prompt."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ouro_edge.bundle.bundle import Graph
from ouro_edge.bundle.prefill_copy import prefill_graph
from ouro_edge.errors import BundleError
from ouro_edge.runtime.backend.session import open_session

_log = logging.getLogger("ouro_edge.prefill_weights")

PREFILL_ROWS = 256  # rows per call: fast products, and little attention computed above the diagonal
# Opening the session takes one or two seconds, as long as a shorter prompt. The limit is the same when the session is
# open, although 16 rows would be faster there, because an answer must not depend on earlier requests.
_MIN_PREFILL_ROWS = 64


class PrefillSession:
    """Weights with one byte each, which onnxruntime packs into separate memory when the session is opened."""

    def __init__(self, path: Path, kv: str, threads: int | None) -> None:
        self._path, self._kv, self._threads = path, kv, threads
        self._lock = threading.Lock()
        self._session: Any = None
        self._gone = False

    def session_for(self, rows: int) -> Any:
        """The session, or None for few rows, or when the copy was deleted."""
        if self._gone or rows < _MIN_PREFILL_ROWS:
            return None
        with self._lock:
            if self._session is None and not self._gone:
                try:
                    # Not in parallel: the file and the bundle's weights together would be the peak of memory.
                    graph = prefill_graph(self._path, self._kv)
                    self._session = open_session(graph, self._threads, parallel=False)
                except BundleError as problem:  # the cache was cleared after the model was loaded
                    self._gone = True
                    _log.warning("the prefill copy is no longer used: %s", problem)
        return self._session


def multiplies_exactly(probe: Graph) -> bool:
    """Whether this CPU's kernel sums uint8 times int8 exactly; without VNNI some kernels saturate at 16 bits."""
    x, w = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    found = open_session(probe, threads=1).run(None, {"x": x, "w": w})[0]
    return bool((found == 255.0 * 127.0 * 64).all())
