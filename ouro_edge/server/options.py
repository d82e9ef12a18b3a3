"""The fields that chat and completions share: sampling, stopping, depth, streaming. From JSON to the runtime's types.

Unknown fields are refused, as OpenAI does, so that a misspelt option is never silently lost; fields of OpenAI's API
that change nothing in an answer of ours are listed in IGNORED and skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ouro_edge.errors import RequestError
from ouro_edge.runtime.exits.loop_budget import LoopBudget
from ouro_edge.runtime.exits.parse import parse_exit_rule
from ouro_edge.runtime.exits.policies import ExitPolicy, ExitThreshold, FixedDepth
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.server.http.errors import ApiError, bad_field
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_ALTERNATIVES, MAX_CHOICES, MAX_STOPS

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model

IGNORED = frozenset(
    "model user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention "
    "reasoning_effort verbosity prediction web_search_options".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to generate: checked against the model, nothing running."""

    sampler: Sampler
    exit: ExitPolicy
    stop: tuple[str, ...]
    max_tokens: int | None  # None: what the context holds
    choices: int  # n
    stream: bool
    include_usage: bool
    lens: int  # candidates of every loop to report with each token; 0 for none

    def sampler_of(self, choice: int) -> Sampler:
        """The sampler of one answer out of n: its own seed, so that answers differ and can be had again."""
        if self.sampler.seed is None or not choice:
            return self.sampler
        from dataclasses import replace

        return replace(self.sampler, seed=self.sampler.seed + choice)


def read_options(fields: Fields, model: Model, default_exit: ExitPolicy, least_tokens: int = 1) -> Options:
    """Read the shared fields; ApiError 400 for what cannot be. `max_tokens` below `least_tokens` is refused."""
    _ = fields.text("model")  # there is one model: it serves whatever name the client has for it
    sampling: dict[str, Any] = {
        "temperature": fields.number("temperature", 0, 100),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.whole("top_k", -1),
        "min_p": fields.number("min_p", 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 0.01, 100),
        "seed": fields.whole("seed", -(2**63)),
    }
    changes = {name: value for name, value in sampling.items() if value is not None}
    if "top_k" in changes:
        changes["top_k"] = max(0, changes["top_k"])  # -1 is vLLM's word for no limit
    if "seed" in changes:
        changes["seed"] %= 2**64
    for name in ("frequency_penalty", "presence_penalty"):
        if fields.number(name, -2, 2):
            raise bad_field(fields.path(name), "is not supported here: use repetition_penalty")
    stream = fields.flag("stream")
    stop = fields.texts("stop", MAX_STOPS)
    if "" in stop:
        raise bad_field(fields.path("stop"), "holds an empty text")
    return Options(
        sampler=model.default_sampler(logit_bias=_logit_bias(fields, model.config.vocab_size), **changes),
        exit=read_exit(fields, model, default_exit),
        stop=stop,
        max_tokens=_max_tokens(fields, least_tokens),
        choices=fields.whole("n", 1, MAX_CHOICES) or 1,
        stream=stream,
        include_usage=_include_usage(fields, stream),
        lens=fields.whole("lens", 0, MAX_ALTERNATIVES) or 0,
    )


def _max_tokens(fields: Fields, least: int) -> int | None:
    old, new = (fields.whole(name, least) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        raise bad_field("max_tokens", "and max_completion_tokens differ: give one of them")
    return old if new is None else new


def read_exit(fields: Fields, model: Model, default: ExitPolicy) -> ExitPolicy:
    """The exit policy that exit_threshold, loops or exit ask for, within loop_budget."""
    threshold = fields.number("exit_threshold", 0, 1)
    loops = fields.whole("loops", 1, model.config.loops)
    rule = fields.text("exit")
    if sum(option is not None for option in (threshold, loops, rule)) > 1:
        raise bad_field("exit_threshold", "loops and exit exclude each other: give one of them")
    policy = default
    if threshold is not None:
        policy = ExitThreshold(threshold)
    elif loops is not None:
        policy = FixedDepth(loops)
    elif rule is not None:
        try:
            policy = parse_exit_rule(rule)
        except RequestError as problem:
            raise ApiError(400, str(problem), param="exit") from None
    budget = fields.number("loop_budget", 1, model.config.loops)
    if budget is not None:
        policy = LoopBudget(budget, at_once(policy))
    policy.limit(model.config)
    return policy


def at_once(policy: ExitPolicy) -> ExitPolicy:
    """The rule for many positions at once: a budget counts generated tokens only."""
    return policy.rule if isinstance(policy, LoopBudget) else policy


def _logit_bias(fields: Fields, vocab_size: int) -> dict[int, float]:
    found = fields.object("logit_bias")
    if found is None:
        return {}
    bias = {}
    for key in fields.mapping("logit_bias") or {}:
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocab_size):
            raise bad_field("logit_bias", f"has the key {key[:40]!r}; wanted a token id below {vocab_size}")
        bias[int(key)] = float(found.number(key, -100, 100) or 0.0)
    return bias


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.object("stream_options")
    if options is None:
        return False
    if not stream:
        raise bad_field("stream_options", "goes with stream: true only")
    include = options.flag("include_usage")
    options.flag("include_obfuscation")  # pads chunks against eavesdroppers; we send none
    options.finish()
    return include
