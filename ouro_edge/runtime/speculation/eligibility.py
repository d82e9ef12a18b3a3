"""Whether a generation may speculate, decided before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ouro_edge.arch.config import ModelConfig
from ouro_edge.errors import RequestError
from ouro_edge.runtime.exits.loop_budget import LoopBudget
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.sampling.constraint import Constraint
from ouro_edge.runtime.speculation.draft_policy import DraftPolicy

if TYPE_CHECKING:
    from ouro_edge.runtime.request import Speculate

# Feed-forward weights of the block. Below, a loop takes less time than the Python code around it, which drafting adds
# to.
_MIN_BLOCK_WEIGHTS = 1 << 24


def check_speculate(
    speculate: Speculate, config: ModelConfig, exit: ExitPolicy, constraint: Constraint | None, obstacle: str | None
) -> Speculate:
    """Whether to speculate: "auto" becomes False where nothing can be drafted or drafting cannot pay.

    `obstacle` is the sequence's reason against it. A DraftPolicy is used as it is. RequestError when True is
    impossible, or for another value.
    """
    valid = isinstance(speculate, (bool, DraftPolicy)) or (isinstance(speculate, str) and speculate == "auto")
    if not valid:
        raise RequestError(f"speculate is {speculate!r}; expected True, False or 'auto'")
    if speculate is False:
        return False
    if isinstance(speculate, DraftPolicy) and speculate.loops != config.most_loops:
        raise RequestError(f"the draft policy is for {speculate.loops} loops; this model has {config.most_loops}")
    reasons = (
        (config.loops == 1, "the model has one loop"),
        (obstacle is not None, obstacle),
        (not config.family.exits, "it was trained to be read after all its loops only"),
        (constraint is not None, "a constraint is given"),
        (isinstance(exit, LoopBudget), "a loop budget depends on earlier tokens"),
    )
    for holds, reason in reasons:
        if holds and speculate is True:
            raise RequestError(f"speculation is not possible because {reason}: leave it on auto")
    if any(holds for holds, _ in reasons) or exit.limit(config) == 1:
        return False
    weights = 3 * config.num_layers * config.hidden_size * config.intermediate_size
    return False if speculate == "auto" and weights < _MIN_BLOCK_WEIGHTS else speculate
