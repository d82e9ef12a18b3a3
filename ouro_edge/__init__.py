"""ouro-edge: looped language models on CPUs, with an exit gate that saves work.

    import ouro_edge
    model = ouro_edge.load("path-or-hub-id")
    for event in model.generate("text", max_tokens=64, exit=ouro_edge.ExitThreshold(0.7)): ...

Names are loaded when first used, so that `import ouro_edge` costs nothing.
"""

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ouro_edge.version import __version__

if TYPE_CHECKING:
    from ouro_edge.arch.config import ModelConfig
    from ouro_edge.convert import ExportResult, export
    from ouro_edge.errors import (
        BundleError,
        Cancelled,
        CheckpointError,
        ConfigError,
        ContextOverflowError,
        ExportError,
        HubError,
        NoGateError,
        NoTokenizerError,
        OuroEdgeError,
        RequestError,
        TemplateError,
        VerificationError,
    )
    from ouro_edge.evaluation.questions import Question
    from ouro_edge.evaluation.trace import trace
    from ouro_edge.evaluation.verify import verify
    from ouro_edge.fitting.calibrate_kv import Calibration, calibrate
    from ouro_edge.fitting.calibrate_weights import WeightCalibration
    from ouro_edge.fitting.gate_pipeline import GateFit, fit_gate
    from ouro_edge.loading import load
    from ouro_edge.measure.quality import Quality, evaluate
    from ouro_edge.runtime.backend.cancel import Cancel
    from ouro_edge.runtime.events import Done, Event, Timings, Token, Usage
    from ouro_edge.runtime.exits.comparisons import (
        Agreement,
        DivergenceThreshold,
        EntropyChange,
        StableChoice,
        StateChange,
        StateTurn,
    )
    from ouro_edge.runtime.exits.expected_logits import ExpectedLogits
    from ouro_edge.runtime.exits.loop_budget import LoopBudget
    from ouro_edge.runtime.exits.parse import format_exit, parse_exit
    from ouro_edge.runtime.exits.policies import (
        ConfidenceThreshold,
        EntropyThreshold,
        ExitPolicy,
        ExitThreshold,
        FixedDepth,
        FullDepth,
    )
    from ouro_edge.runtime.forward import Forward, Score
    from ouro_edge.runtime.model import Model
    from ouro_edge.runtime.options import GenerationOptions, LoadOptions
    from ouro_edge.runtime.sampling.constraint import Constraint
    from ouro_edge.runtime.sampling.sampler import Sampler
    from ouro_edge.runtime.saved.prefix_cache import PrefixCache
    from ouro_edge.runtime.saved.state_file import load_sequence, save_sequence
    from ouro_edge.runtime.sequence.sequence import TokenSequence
    from ouro_edge.runtime.text.tokenizer import Tokenizer
    from ouro_edge.system.progress import Progress

_HOMES = {
    "arch.config": ("ModelConfig",),
    "convert": ("ExportResult", "export"),
    "errors": (
        "BundleError", "Cancelled", "CheckpointError", "ConfigError", "ContextOverflowError", "ExportError", "HubError",
        "NoGateError", "NoTokenizerError", "OuroEdgeError", "RequestError", "TemplateError", "VerificationError",
    ),
    "evaluation.trace": ("trace",),
    "evaluation.verify": ("verify",),
    "evaluation.questions": ("Question",),
    "fitting.calibrate_kv": ("Calibration", "calibrate"),
    "fitting.calibrate_weights": ("WeightCalibration",),
    "fitting.gate_pipeline": ("GateFit", "fit_gate"),
    "loading": ("load",),
    "measure.quality": ("Quality", "evaluate"),
    "runtime.backend.cancel": ("Cancel",),
    "runtime.sampling.constraint": ("Constraint",),
    "runtime.events": ("Done", "Event", "Timings", "Token", "Usage"),
    "runtime.exits.policies": (
        "ConfidenceThreshold", "EntropyThreshold", "ExitPolicy", "ExitThreshold", "FixedDepth", "FullDepth",
    ),
    "runtime.exits.comparisons": (
        "Agreement", "DivergenceThreshold", "EntropyChange", "StableChoice", "StateChange", "StateTurn",
    ),
    "runtime.exits.expected_logits": ("ExpectedLogits",),
    "runtime.forward": ("Forward", "Score"),
    "runtime.exits.loop_budget": ("LoopBudget",),
    "runtime.exits.parse": ("format_exit", "parse_exit"),
    "runtime.model": ("Model",),
    "runtime.options": ("GenerationOptions", "LoadOptions"),
    "runtime.saved.prefix_cache": ("PrefixCache",),
    "runtime.sampling.sampler": ("Sampler",),
    "runtime.sequence.sequence": ("TokenSequence",),
    "runtime.saved.state_file": ("load_sequence", "save_sequence"),
    "runtime.text.tokenizer": ("Tokenizer",),
    "system.progress": ("Progress",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Agreement",
    "BundleError",
    "Calibration",
    "Cancel",
    "Cancelled",
    "CheckpointError",
    "ConfidenceThreshold",
    "ConfigError",
    "Constraint",
    "ContextOverflowError",
    "DivergenceThreshold",
    "Done",
    "EntropyChange",
    "EntropyThreshold",
    "Event",
    "ExitPolicy",
    "ExitThreshold",
    "ExpectedLogits",
    "ExportError",
    "ExportResult",
    "FixedDepth",
    "Forward",
    "FullDepth",
    "GateFit",
    "GenerationOptions",
    "HubError",
    "LoadOptions",
    "LoopBudget",
    "Model",
    "ModelConfig",
    "NoGateError",
    "NoTokenizerError",
    "OuroEdgeError",
    "PrefixCache",
    "Progress",
    "Quality",
    "Question",
    "RequestError",
    "Sampler",
    "Score",
    "StableChoice",
    "StateChange",
    "StateTurn",
    "TemplateError",
    "Timings",
    "Token",
    "TokenSequence",
    "Tokenizer",
    "Usage",
    "VerificationError",
    "WeightCalibration",
    "__version__",
    "calibrate",
    "evaluate",
    "export",
    "fit_gate",
    "format_exit",
    "load",
    "load_sequence",
    "parse_exit",
    "save_sequence",
    "trace",
    "verify",
]


_RENAMED = {"Confidence": "ConfidenceThreshold", "LowEntropy": "EntropyThreshold", "WeightedExit": "ExpectedLogits"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"ouro_edge.{name} is now ouro_edge.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(__name__), _RENAMED[name])
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ouro_edge' has no attribute {name!r}")
    value = getattr(import_module(f"ouro_edge.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """This module, with the function `export`, though a sub-package has the same name.

    Importing a sub-package stores it as an attribute of its parent: a property takes precedence over that, whatever is
    imported first. The function shares the namespace of the sub-package, so that ouro_edge.export.exporter and the like
    can be written as for any package.
    """

    @property
    def export(self) -> Any:
        if "export" in self.__dict__:
            return self.__dict__["export"]
        from ouro_edge.convert import export

        export.__dict__ = sys.modules["ouro_edge.export"].__dict__
        return export

    @export.setter
    def export(self, value: Any) -> None:
        if not isinstance(value, ModuleType):  # a replacement, as tests make it, and not the sub-package
            self.__dict__["export"] = value

    @export.deleter
    def export(self) -> None:
        self.__dict__.pop("export", None)


sys.modules[__name__].__class__ = _Package
