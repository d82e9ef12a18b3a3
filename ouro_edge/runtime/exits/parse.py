"""Exit rules as people write them, such as `gate:0.7,ceiling=3`: one grammar, for every interface.

    RULE[:VALUE][,floor=N][,ceiling=N][,budget=MEAN]

`RULES` lists the rules; a new exit rule is a policy and a line there. The shorthands (exit_threshold, loops,
loop_budget) become a policy here too, so that all interfaces accept and refuse the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ouro_edge.errors import RequestError
from ouro_edge.runtime.checks import shown
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
from ouro_edge.runtime.exits.policies import (
    BoundedPolicy,
    ConfidenceThreshold,
    EntropyThreshold,
    ExitPolicy,
    ExitThreshold,
    FixedDepth,
    FullDepth,
)


@dataclass(frozen=True, slots=True)
class ExitRule:
    """One rule of the grammar: how it is written, and the policy that it stands for."""

    name: str
    policy: Callable[..., ExitPolicy]
    help: str
    value: str = ""  # the policy's field that VALUE fills; "" for a rule without a value
    metavar: str = ""
    read: Callable[[str], float] = float

    @property
    def form(self) -> str:
        """How the rule is written, with a letter or a word for its value."""
        return f"{self.name}:{self.metavar}" if self.value else self.name

    @property
    def bounded(self) -> bool:
        """Whether the rule takes a floor and a ceiling."""
        return isinstance(self.policy, type) and issubclass(self.policy, BoundedPolicy)


RULES = {rule.name: rule for rule in (
    ExitRule("gate", ExitThreshold, "the exit gate's cumulative probability is at least Q", "threshold", "Q"),
    ExitRule("depth", FixedDepth, "N loops were run", "depth", "N", int),
    ExitRule("full", FullDepth, "all loops were run"),
    ExitRule("confidence", ConfidenceThreshold, "the head gives its first choice a probability of at least P",
             "probability", "P"),
    ExitRule("entropy", EntropyThreshold, "the entropy of the head's distribution is at most NATS", "nats", "NATS"),
    ExitRule("kl", DivergenceThreshold, "a loop changed the head's distribution by a KL divergence of at most NATS",
             "nats", "NATS"),
    ExitRule("entropy-change", EntropyChange, "a loop changed the entropy of that distribution by at most NATS", "nats",
             "NATS"),
    ExitRule("change", StateChange, "a loop changed the state by at most SHARE of its length", "share", "SHARE"),
    ExitRule("turn", StateTurn, "a loop turned the state by a cosine distance of at most DISTANCE", "distance",
             "DISTANCE"),
    ExitRule("agreement", Agreement, "two successive loops prefer the same token"),
    ExitRule("stable", StableChoice, "the preferred token has not changed for N loops", "loops", "N", int),
    ExitRule("weighted", ExpectedLogits, "all loops were run; the gate's probabilities weight their logits"),
)}  # fmt: skip
_FORMS = [rule.form for rule in RULES.values()]
EXPECTED = f"{', '.join(_FORMS[:-1])} or {_FORMS[-1]}, then any of ,floor=N ,ceiling=N ,budget=MEAN"


def parse_exit(text: str, *, name: str = "exit") -> ExitPolicy:
    """The policy that `text` spells. RequestError, calling the option `name`, says what was found and expected."""

    def refuse(found: str) -> RequestError:
        return RequestError(f"{name} is {shown(text)}: {found}; expected {EXPECTED}")

    if not isinstance(text, str):
        raise RequestError(f"{name} is {shown(text)}; expected text such as gate:0.7")
    head, *parts = (part.strip() for part in text.split(","))
    kind, colon, value = head.partition(":")
    rule = RULES.get(kind)
    if rule is None:
        raise refuse(f"{shown(kind)} is not a rule" if kind else "the rule is missing")
    if bool(rule.value) != bool(colon):
        raise refuse(f"{rule.name} takes a value" if rule.value else f"{rule.name} takes no value")
    arguments: dict[str, Any] = {}
    if rule.value:
        try:
            arguments[rule.value] = rule.read(value)
        except ValueError:
            raise refuse(f"{shown(value)} is not a number") from None
    for part in parts:
        key, _, value = part.partition("=")
        if key not in ("floor", "ceiling", "budget"):
            raise refuse(f"{shown(part)} is not floor, ceiling or budget")
        if key in arguments:
            raise refuse(f"{key} is given twice")
        if key != "budget" and not rule.bounded:
            raise refuse(f"{rule.name} takes no {key}")
        try:
            arguments[key] = float(value) if key == "budget" else int(value)
        except ValueError:
            raise refuse(f"{key} is {shown(value)}") from None
    mean = arguments.pop("budget", None)
    try:
        policy = rule.policy(**arguments)
        return policy if mean is None else LoopBudget(mean, policy)
    except RequestError as problem:
        raise RequestError(f"{name} is {shown(text)}: {problem}") from None


def format_exit(policy: ExitPolicy) -> str:
    """The text that `parse_exit` reads as this policy. RequestError for a policy that the grammar has no rule for."""
    if isinstance(policy, LoopBudget):
        return f"{format_exit(policy.rule)},budget={_shortest(policy.mean)}"
    for rule in RULES.values():
        if type(policy) is rule.policy:
            break
    else:
        raise RequestError(f"{shown(policy)} has no spelling; expected one of the built-in exit policies")
    text = f"{rule.name}:{_shortest(getattr(policy, rule.value))}" if rule.value else rule.name
    if isinstance(policy, BoundedPolicy):
        text += f",floor={policy.floor}" * (policy.floor != 1)
        text += f",ceiling={policy.ceiling}" * (policy.ceiling is not None)
    return text


def _shortest(number: float) -> str:
    """The shortest text that reads back as the same number."""
    return repr(float(number)).removesuffix(".0")


def exit_from_options(
    exit: str | None = None,
    exit_threshold: float | None = None,
    loops: int | None = None,
    loop_budget: float | None = None,
    *,
    force_loops: bool = False,
    default: ExitPolicy | None = None,
) -> ExitPolicy | None:
    """The policy that the exit rule or one of its shorthands asks for; None when nothing does.

    A loop budget alone applies to `default`, or to full depth. `force_loops` allows numbers of loops that the model was
    not trained for. RequestError when two options choose the rule.
    """
    choices = {"exit": exit, "exit_threshold": exit_threshold, "loops": loops}
    given = [name for name, value in choices.items() if value is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} exclude each other: give one of exit, exit_threshold and loops; a "
                           "gate with at most 3 loops is the exit rule gate:0.7,ceiling=3")  # fmt: skip
    policy: ExitPolicy | None = None
    if exit is not None:
        policy = parse_exit(exit)
    elif exit_threshold is not None:
        policy = ExitThreshold(exit_threshold)
    elif loops is not None:
        policy = FixedDepth(loops)
    if force_loops and isinstance(policy, FixedDepth):
        policy = replace(policy, force=True)
    if loop_budget is None:
        return policy
    if isinstance(policy, LoopBudget):
        raise RequestError("loop_budget and the budget in exit exclude each other: give one of them")
    if policy is None and isinstance(default, LoopBudget):
        policy = default.rule
    return LoopBudget(loop_budget, policy or default or FullDepth())
