"""The metrics of all workers of a server, exchanged through small files in one directory.

Each worker writes its samples when they have changed, twice a second, and adds those of the others when it is asked for
/metrics. The counters of a worker that ended are kept, so that sums never fall when it is replaced.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ouro_edge.server.metrics import Samples, is_gauge
from ouro_edge.system.files import atomic_write

_SECONDS = 0.5  # between two looks at the samples
_RUNNING, _ENDED = "worker-{}.json", "ended-{}.json"


class SharedCounters:
    """The samples of one worker among those of all workers."""

    def __init__(self, directory: Path, number: int) -> None:
        self._directory, self._name = directory, _RUNNING.format(number)
        self._written: Samples | None = None

    def write(self, samples: Samples) -> None:
        """Write the samples of this worker if they have changed."""
        if samples != self._written:
            with suppress(OSError), atomic_write(self._directory / self._name, private=True, sync=False) as file:
                file.write(json.dumps(samples).encode())
            self._written = dict(samples)

    def add_others(self, samples: Samples) -> Samples:
        """The sums over all workers, with the current samples of this one."""
        files = sorted(self._directory.glob("*.json"))
        return added([samples, *(_read(path) for path in files if path.name != self._name)])

    async def keep_written(self, samples: Callable[[], Samples]) -> None:
        """Write the samples of `samples()` until the task is cancelled, and once more then."""
        try:
            while True:
                self.write(samples())
                await asyncio.sleep(_SECONDS)
        finally:
            self.write(samples())


def retire(directory: Path, number: int, pid: int) -> None:
    """Keep the counters of a worker that has ended; its gauges are gone."""
    with suppress(OSError):  # it ended before it had any
        os.replace(directory / _RUNNING.format(number), directory / _ENDED.format(pid))


def added(records: list[Samples]) -> Samples:
    """The sum of each sample."""
    total: dict[str, float] = {}
    for record in records:
        for name, value in record.items():
            total[name] = total.get(name, 0) + value
    return total


def _read(path: Path) -> Samples:
    """The samples in a file; none when it has just been renamed."""
    with suppress(OSError, ValueError):
        data: Samples = json.loads(path.read_bytes())
        ended = path.match(_ENDED.format("*"))
        return {name: value for name, value in data.items() if not (ended and is_gauge(name))}
    return {}
