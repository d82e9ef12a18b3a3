"""Fields of chat and completions: sampling, stopping, depth, streaming. Converts JSON to the runtime's types.

Unknown fields are errors, as in OpenAI's API, so that a misspelt option is never lost silently. Fields of OpenAI's API
that do not change an answer are listed in IGNORED and skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from ouro_edge.errors import RequestError
from ouro_edge.runtime.exits.parse import exit_from_options
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.option_table import Option
from ouro_edge.runtime.options import EXIT_RULES, GENERATION_OPTIONS, GenerationOptions
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.server.http.errors import ApiError, bad_field
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_CHOICES, MAX_STOPS

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model

IGNORED = frozenset(
    "model user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention "
    "reasoning_effort verbosity prediction web_search_options".split()
)
_SAMPLING = [
    option
    for option in GENERATION_OPTIONS.values()
    if option.group == "sampling" and option.kind != "biases" and "http" in option.interfaces
]
NO_LIMIT = 2**63 - 1  # of max_tokens: what the context holds
_INT64_RANGE = -(2**63), 2**63 - 1  # range of a whole number if the option has no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Checked options of a generation; no running state."""

    sampler: Sampler
    exit: ExitPolicy
    stop: tuple[str, ...]
    max_tokens: int | None  # None: the rest of the context
    choices: int  # n
    stream: bool
    include_usage: bool
    cache_prompt: bool  # whether the prefix cache may be used; without it an answer does not depend on earlier requests
    prefix: int | None  # tokens of the prompt that see each other in both directions; None: the default
    lens: int  # candidates per loop and token; 0 for none
    rollout: bool  # report ids, log-probabilities and depths for training


def read_options(fields: Fields, model: Model, default_exit: ExitPolicy, least_tokens: int = 1) -> Options:
    """Read the shared fields. ApiError 400 for invalid values, also for `max_tokens` below `least_tokens`."""
    _ = fields.text("model")  # there is one model, so any name is accepted
    sampling = GenerationOptions(**{o.name: _read(fields, o) for o in _SAMPLING}).sampling()
    for name in ("frequency_penalty", "presence_penalty"):
        if fields.number(name, -2, 2):
            raise bad_field(fields.path(name), "is not supported here: use repetition_penalty")
    stream = fields.flag("stream")
    stop = fields.texts("stop", MAX_STOPS)
    if "" in stop:
        raise bad_field(fields.path("stop"), "holds an empty text")
    return Options(
        sampler=model.default_sampler(logit_bias=_logit_bias(fields, model.config.vocab_size), **sampling),
        exit=read_exit(fields, model, default_exit),
        stop=stop,
        max_tokens=_max_tokens(fields, least_tokens),
        choices=fields.whole("n", 1, MAX_CHOICES) or 1,
        stream=stream,
        include_usage=_include_usage(fields, stream),
        cache_prompt=fields.flag("cache_prompt", True),
        prefix=_read(fields, GENERATION_OPTIONS["prefix"]),
        lens=_read(fields, GENERATION_OPTIONS["logit_lens"]) or 0,
        rollout=fields.flag("rollout"),
    )


def _max_tokens(fields: Fields, least: int) -> int | None:
    old, new = (_limit(fields, name, least) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        raise bad_field("max_tokens", "and max_completion_tokens differ: give one of them")
    return old if new is None else new


def _limit(fields: Fields, name: str, least: int) -> int | None:
    """A limit of tokens; -1 is what the context holds, as in llama.cpp, LangChain and others."""
    return NO_LIMIT if fields.any(name) == -1 else fields.whole(name, least)


def read_exit(fields: Fields, model: Model, default: ExitPolicy) -> ExitPolicy:
    """The exit policy from exit, exit_threshold or loops, limited by loop_budget."""
    given = {name: _read(fields, GENERATION_OPTIONS[name], model.config.most_loops if name == "loops" else None)
             for name in (*EXIT_RULES, "loop_budget")}  # fmt: skip
    force = fields.flag("force_loops")
    try:
        policy = exit_from_options(**given, force_loops=force, default=default) or default
    except RequestError as problem:
        raise ApiError(400, str(problem), param="exit") from None
    policy.limit(model.config)
    return policy


def _read(fields: Fields, option: Option, most: int | None = None) -> Any:
    """One field within the option's range and at most `most`, a limit of the model; None when absent."""
    name, low, high = option.json_name or option.name, option.minimum, most or option.maximum
    if option.kind == "text":
        return fields.text(name)
    if option.kind == "whole":
        smallest, largest = _INT64_RANGE
        return fields.whole(name, smallest if low is None else int(low), largest if high is None else int(high))
    return fields.number(name, -inf if low is None else low, inf if high is None else high)


def _logit_bias(fields: Fields, vocab_size: int) -> dict[int, float]:
    found = fields.object("logit_bias")
    if found is None:
        return {}
    bias = {}
    for key in fields.mapping("logit_bias") or {}:
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocab_size):
            raise bad_field("logit_bias", f"has the key {key[:40]!r}; expected a token id below {vocab_size}")
        bias[int(key)] = float(found.number(key, -100, 100) or 0.0)
    return bias


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.object("stream_options")
    if options is None:
        return False
    if not stream:
        raise bad_field("stream_options", "goes with stream: true only")
    include = options.flag("include_usage")
    options.flag("include_obfuscation")  # asks for padding of chunks, which this server does not add
    options.finish()
    return include
