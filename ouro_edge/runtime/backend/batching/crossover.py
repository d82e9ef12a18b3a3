"""From how many rows on the prefill copy is faster than the block, measured once per machine and copy.

The copy takes twice as long to read, but its products are two to five times as fast. Where the curves cross depends on
the CPU: at 8 rows with AMX, between 16 and 32 with AVX512-VNNI alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ouro_edge.arch.json_object import read_json_object
from ouro_edge.errors import BundleError
from ouro_edge.system.files import atomic_write

_FILE = "crossover.json"  # beside the copy's weights
_ROWS = (6, 8, 12, 16, 24, 32, 48)


def crossover(directory: Path, machine: str, seconds: Callable[[int], tuple[float, float]], otherwise: int) -> int:
    """The smallest number of rows at which the copy is faster; `otherwise` if it is not at any that are measured.

    `seconds` returns, for a number of rows, the time of a call of the block and of one of the copy. `machine` names
    what the result depends on. The result is stored beside the copy if the directory can be written.
    """
    stored = _stored(directory)
    if isinstance(known := stored.get(machine), int) and known in (*_ROWS, otherwise):
        return known
    found = _first(seconds, otherwise)
    with suppress(OSError), atomic_write(directory / _FILE) as file:
        file.write(json.dumps(stored | {machine: found}, indent=1).encode())
    return found


def _first(seconds: Callable[[int], tuple[float, float]], otherwise: int) -> int:
    """Bisection: the copy's advantage grows with the number of rows."""
    low, high = 0, len(_ROWS)
    while low < high:
        middle = (low + high) // 2
        block, copy = seconds(_ROWS[middle])
        low, high = (low, middle) if copy < block else (middle + 1, high)
    return _ROWS[low] if low < len(_ROWS) else otherwise


def _stored(directory: Path) -> dict[str, Any]:
    try:
        return read_json_object(directory / _FILE, BundleError)
    except (BundleError, OSError):
        return {}
