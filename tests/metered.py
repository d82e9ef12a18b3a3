"""What is below a loaded model: its backend, and a meter in front of it."""

from __future__ import annotations

from collections.abc import Callable

from ouro_edge import Model
from ouro_edge.runtime.backend.onnx_backend import OnnxBackend
from ouro_edge.testing import MeteredBackend


def metered(model: Model, before: Callable[[int], None] | None = None) -> tuple[Model, MeteredBackend]:
    """The same model, metered; `before` is called ahead of each block call."""
    backend = MeteredBackend(model.backend, on_block=before)
    return Model(backend, model.text, gate=model.gate), backend


def onnx_backend(model: Model) -> OnnxBackend:
    """The backend of a model that onnxruntime computes."""
    assert isinstance(model.backend, OnnxBackend)
    return model.backend
