"""The block's second session, for calls of many rows: opened when a long prompt comes, and only where it is right."""

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

PREFILL_ROWS = 256  # rows a call: the product is at its best, and attention computes little above its diagonal
# Opening the session takes a second or two: a shorter prompt is done by then. The same once it is open, although 16
# rows would pay: what is answered must not depend on what was asked before.
_WORTH_IT = 64


class PrefillSession:
    """Weights at a byte each, which onnxruntime packs into memory of their own when the session is opened."""

    def __init__(self, path: Path, kv: str, threads: int | None) -> None:
        self._path, self._kv, self._threads = path, kv, threads
        self._lock = threading.Lock()
        self._session: Any = None
        self._gone = False

    def session_for(self, rows: int) -> Any:
        """The session, or None when few rows are better served by the other one, or the copy is gone."""
        if self._gone or rows < _WORTH_IT:
            return None
        with self._lock:
            if self._session is None and not self._gone:
                try:
                    # Not in parallel: with the bundle's own weights, the file would be the peak of the process.
                    graph = prefill_graph(self._path, self._kv)
                    self._session = open_session(graph, self._threads, parallel=False)
                except BundleError as problem:  # the cache was cleared after the model was loaded
                    self._gone = True
                    _log.warning("the prefill copy is no longer used: %s", problem)
        return self._session


def multiplies_exactly(probe: Graph) -> bool:
    """Whether this CPU's kernel keeps sums of uint8 times int8: without VNNI some saturate at 16 bits."""
    x, w = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    found = open_session(probe, threads=1).run(None, {"x": x, "w": w})[0]
    return bool((found == 255.0 * 127.0 * 64).all())
