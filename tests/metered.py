"""A loaded model with a meter between it and its backend."""

from __future__ import annotations

from collections.abc import Callable

from ouro_edge import Model
from ouro_edge.testing import MeteredBackend


def metered(model: Model, before: Callable[[int], None] | None = None) -> tuple[Model, MeteredBackend]:
    """The same model, metered; `before` is called ahead of each block call."""
    backend = MeteredBackend(model.backend, on_block=before)
    return Model(backend, model.text, gate=model.gate), backend
