"""What a worker is told, as one line of JSON on its standard input: nothing of it appears in a list of processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ouro_edge.server.limits import Access, Limits

READY = "ready"  # begins the line that a worker prints when it can answer


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """The settings of one worker."""

    model: str  # path of an exported model or .gguf file
    loading: Mapping[str, Any]  # arguments of `load`
    generation: Mapping[str, Any]  # fields of GenerationOptions
    limits: Limits
    access: Access
    listener: int  # file descriptor of the listening socket, which the worker inherits
    metrics: Path  # directory where the workers of one server leave their counters
    number: int  # of the worker, from 0

    def to_json(self) -> str:
        """One line."""
        access = asdict(self.access)
        hosts = None if self.access.hosts is None else sorted(self.access.hosts)
        return json.dumps({**asdict(self), "access": {**access, "hosts": hosts}, "metrics": str(self.metrics)})

    @classmethod
    def from_json(cls, text: str) -> WorkerSettings:
        """The inverse of `to_json`."""
        data = json.loads(text)
        access, hosts = data["access"], data["access"]["hosts"]
        return cls(**{
            **data,
            "limits": Limits(**data["limits"]),
            "access": Access(api_key=access["api_key"], hosts=None if hosts is None else frozenset(hosts),
                             origins=tuple(access["origins"])),
            "metrics": Path(data["metrics"]),
        })  # fmt: skip
