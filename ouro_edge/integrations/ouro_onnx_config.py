"""What optimum-onnx must know to export Ouro itself: a key-value slot for every loop and layer. Needs optimum-onnx.

The graph comes from tracing the checkpoint's own modelling code: float, all loops unrolled and always computed, and
the config's exit threshold traced with it. It is for tools that know only such models; ouro-edge's own export writes
one loop once, quantised, with a gate that saves work.
"""

from __future__ import annotations

from optimum.exporters.onnx.model_configs import LlamaOnnxConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig


class _LoopedTextConfig(NormalizedTextConfig):  # type: ignore[misc]
    """Counts slots where optimum asks for layers: the modelling code keeps slot (loop - 1) * layers + layer."""

    @property
    def num_layers(self) -> int:
        return int(self.config.num_hidden_layers * self.config.total_ut_steps)


class OuroOnnxConfig(LlamaOnnxConfig):  # type: ignore[misc]
    """Inputs and outputs of Ouro's whole model: llama's, with loops x layers pairs of past keys and values."""

    NORMALIZED_CONFIG_CLASS = _LoopedTextConfig
    ATOL_FOR_VALIDATION = 1e-4  # optimum's 1e-5 is for one pass through the layers; rounding grows with the loops


def register() -> None:
    """Make optimum's exporter and `ORTModelForCausalLM.from_pretrained(..., export=True)` know the type `ouro`."""
    TasksManager.create_register("onnx")("ouro", "text-generation", "text-generation-with-past")(OuroOnnxConfig)
