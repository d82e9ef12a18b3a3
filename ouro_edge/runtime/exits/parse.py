"""An exit rule as people write it, `confidence:0.9`, becomes a policy. Shared by the command line and the server."""

from __future__ import annotations

from collections.abc import Callable

from ouro_edge.errors import RequestError
from ouro_edge.runtime.exits.expected_logits import ExpectedLogits
from ouro_edge.runtime.exits.policies import (
    Agreement,
    ConfidenceThreshold,
    EntropyThreshold,
    ExitPolicy,
    StateChange,
)

_KINDS: dict[str, Callable[[float], ExitPolicy]] = {
    "confidence": ConfidenceThreshold,
    "entropy": EntropyThreshold,
    "change": StateChange,
}


def parse_exit_rule(rule: str, name: str = "exit") -> ExitPolicy:
    """The policy that a rule spells; RequestError, calling the option `name`, when it is none."""
    kind, _, value = rule.partition(":")
    if kind in ("agreement", "weighted") and not value:
        return Agreement() if kind == "agreement" else ExpectedLogits()
    try:
        return _KINDS[kind](float(value))
    except RequestError:
        raise
    except (KeyError, ValueError):
        raise RequestError(
            f"{name} is {rule!r}; wanted agreement, confidence:P, entropy:NATS, change:SHARE or weighted"
        ) from None
