"""The options of a user: `GenerationOptions` for an answer, `LoadOptions` for a model. Their fields are the table.

The command line, `/set`, the server, the llm plugin and docs/options.md are generated from `GENERATION_OPTIONS` and
`LOAD_OPTIONS`; a new option is a field here and the code that uses it. Must not import NumPy or click at the top,
because `ouro-edge --help` imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from ouro_edge.errors import RequestError
from ouro_edge.runtime.option_table import check_all, option, table

if TYPE_CHECKING:
    from ouro_edge.runtime.exits.policies import ExitPolicy
    from ouro_edge.runtime.model import Model
    from ouro_edge.runtime.request import GenerateOptions

KVType = Literal["auto", "fp32", "int8", "int4"]
KVShare = Literal["none", "last"]
Gate = Literal["auto", "original"]
PrefillWeights = Literal["auto", "int8", "none"]
GgufWeights = Literal["auto", "exact", "int8"]

EXIT_RULES = ("exit", "exit_threshold", "loops")  # options that choose the exit rule: at most one may be given
_OLD_PREFILL: Mapping[str, PrefillWeights] = {"auto": "auto", "fast": "int8", "lean": "none"}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
_MODELS_OWN = "the model's own"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Options of one answer in the user's notation; None means the model's default. RequestError for a wrong value."""

    exit: str | None = option(
        None, "Exit rule: gate:Q, depth:N, full, confidence:P, entropy:NATS, kl:NATS, entropy-change:NATS, "
        "change:SHARE, turn:DISTANCE, agreement, stable:N or weighted.",
        "--exit", metavar="RULE", group="depth", default_text=_MODELS_OWN,
    )  # fmt: skip
    exit_threshold: float | None = option(
        None, "Stop looping when the exit gate's cumulative probability reaches Q; short for the rule gate:Q.",
        "--exit-threshold", metavar="Q", group="depth", minimum=0, maximum=1,
    )  # fmt: skip
    loops: int | None = option(
        None, "Run exactly N loops for every token; short for the rule depth:N.",
        "--loops", metavar="N", group="depth", minimum=1,
    )  # fmt: skip
    force_loops: bool = option(
        False, "With --loops, accept a number of loops that the model was not trained for; texts may be wrong.",
        "--force-loops", group="depth", interfaces=frozenset({"cli", "set", "http"}),
    )  # fmt: skip
    loop_budget: float | None = option(
        None, "Run at most this many loops per token on average over an answer, with any exit rule.",
        "--loop-budget", metavar="MEAN", group="depth", minimum=1, maximum=1000,
    )  # fmt: skip
    temperature: float | None = option(
        None, "Sampling temperature; 0 takes the most probable token.",
        "--temp", group="sampling", minimum=0, maximum=100, default_text="the model's own; 0 for run and trace",
    )  # fmt: skip
    top_k: int | None = option(
        None, "Sample from the K most probable tokens; 0 or -1 keeps all.",
        "--top-k", metavar="K", group="sampling", minimum=-1, default_text=_MODELS_OWN,
    )  # fmt: skip
    top_p: float | None = option(
        None, "Sample from the smallest set of tokens that has this probability.",
        "--top-p", group="sampling", minimum=0, maximum=1, default_text=_MODELS_OWN,
    )  # fmt: skip
    min_p: float | None = option(
        None, "Drop tokens with less than this share of the highest probability.",
        "--min-p", group="sampling", minimum=0, maximum=1, default_text=_MODELS_OWN,
    )  # fmt: skip
    repetition_penalty: float | None = option(
        None, "Penalty on tokens that occurred before; 1 is off.",
        "--repeat-penalty", group="sampling", minimum=0.01, maximum=100, default_text=_MODELS_OWN,
    )  # fmt: skip
    logit_bias: Mapping[int, float] = option(
        {}, "Add BIAS to the logit of the token ID; may be repeated.",
        "--logit-bias", metavar="ID BIAS", group="sampling", interfaces=frozenset({"cli", "http"}),
    )  # fmt: skip
    seed: int | None = option(
        None, "Seed of the random numbers; makes sampling repeatable.", "--seed", metavar="N", group="sampling",
    )  # fmt: skip
    stop: tuple[str, ...] = option(
        (), "End the answer before this text; may be repeated.",
        "--stop", metavar="TEXT", group="answer", interfaces=frozenset({"cli", "set", "http"}),
    )  # fmt: skip
    max_tokens: int | None = option(
        None, "Generate at most N tokens.",
        "-n", "--max-tokens", metavar="N", group="answer", minimum=1, default_text="what the context holds",
    )  # fmt: skip
    prefix: int | None = option(
        None, "Prefix-LM: the first N tokens of the prompt see each other in both directions; 0 reads it causally.",
        "--prefix", metavar="N", group="answer", minimum=0,
        default_text="the whole prompt, none of a prompt of token ids",
    )  # fmt: skip
    speculate: bool | None = option(
        None, "Draft tokens with the first loops and verify them together; the answer stays the same.",
        "--speculate/--no-speculate", group="answer", interfaces=frozenset({"cli", "set", "llm"}),
        default_text="when it saves time",
    )  # fmt: skip
    top_logprobs: int = option(
        0, "Report the N most probable tokens at each position; in chat it needs logprobs: true.",
        group="answer", minimum=0, maximum=20, interfaces=frozenset({"http"}),
    )  # fmt: skip
    logit_lens: int = option(
        0, "Report the N most probable next tokens after every loop; each loop then costs a call of the head.",
        group="answer", minimum=0, maximum=20, json_name="lens", interfaces=frozenset({"http"}),
    )  # fmt: skip

    def __post_init__(self) -> None:
        stop: Any = self.stop
        if isinstance(stop, (str, list)):
            object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop))
        check_all(self, GENERATION_OPTIONS)
        self.exit_policy()  # report an invalid rule before a model is loaded

    def exit_policy(self, default: ExitPolicy | None = None) -> ExitPolicy | None:
        """The requested exit rule, None for the model's own; a budget without a rule applies to `default`."""
        from ouro_edge.runtime.exits.parse import exit_from_options

        return exit_from_options(
            self.exit, self.exit_threshold, self.loops, self.loop_budget,
            force_loops=self.force_loops, default=default,
        )  # fmt: skip

    @property
    def forced_loops(self) -> int | None:
        """The number of loops to load a model for, with `force_loops`: its own number, or more."""
        policy = self.exit_policy() if self.force_loops else None
        return getattr(policy, "depth", None)

    def sampling(self) -> dict[str, Any]:
        """Arguments for `Model.default_sampler`: the options that were set."""
        changes = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        if "top_k" in changes:
            changes["top_k"] = max(0, changes["top_k"])  # -1 means no limit in vLLM and in published files
        if "seed" in changes:
            changes["seed"] %= 2**64
        return changes | ({"logit_bias": self.logit_bias} if self.logit_bias else {})

    def arguments(self, model: Model) -> GenerateOptions:
        """Keyword arguments for `Model.generate` and `Model.chat`, made from the options that were set."""
        found: GenerateOptions = {
            "exit": self.exit_policy(model.default_exit()),
            "sampler": model.default_sampler(**self.sampling()),
            "stop": self.stop,
            "max_tokens": self.max_tokens,
            "speculate": "auto" if self.speculate is None else self.speculate,
        }
        if self.top_logprobs:
            found["top_logprobs"] = self.top_logprobs
        if self.prefix is not None:
            found["prefix"] = self.prefix
        if self.logit_lens:
            found["logit_lens"] = self.logit_lens
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load a model: the keywords of `ouro_edge.load`. RequestError for a wrong value."""

    threads: int | None = option(
        None, "CPU threads.", "--threads", metavar="N", group="loading", minimum=1, maximum=1024,
        default_text="the number of CPUs that affinity and quota allow this process", interfaces=frozenset({"cli"}),
    )  # fmt: skip
    kv: KVType = option(
        "auto", "Type of the KV cache; auto: int8 where 4096 positions in fp32 take over a quarter of the free memory.",
        "--kv", group="loading", interfaces=frozenset({"cli"}),
    )  # fmt: skip
    kv_share: KVShare = option(
        "none", "last: all loops share one KV cache, which needs less memory and can change answers.",
        "--kv-share", group="loading", interfaces=frozenset({"cli"}),
    )  # fmt: skip
    context: int | None = option(
        None, "Use a context of at most N positions.", "--ctx", metavar="N", group="loading", minimum=1,
        default_text=_MODELS_OWN, interfaces=frozenset({"cli"}),
    )  # fmt: skip
    gate: Gate = option(
        "auto", "original: ignore an exit gate that was fitted to the exported model.",
        group="loading", interfaces=frozenset(),
    )  # fmt: skip
    prefill_weights: PrefillWeights = option(
        "auto", "Second copy of the weights, for long prompts: int8, none, or auto (by size and free memory).",
        "--prefill-weights", group="loading", interfaces=frozenset({"cli"}),
    )  # fmt: skip
    state_noise: int | None = option(
        None, "Start the state of a core from noise with this seed, in models that are trained so (Raven).",
        "--state-noise", metavar="SEED", group="loading", minimum=0, maximum=2**32 - 1, default_text="zeros",
        interfaces=frozenset({"cli"}),
    )  # fmt: skip
    tokenizer: str | None = option(
        None, "A tokenizer.json, or a directory with one, for a .gguf file without a tokenizer that can be used.",
        "--tokenizer", metavar="PATH", group="loading", interfaces=frozenset({"cli"}),
        default_text="the file's own, else a tokenizer.json beside it",
    )  # fmt: skip
    gguf_weights: GgufWeights = option(
        "auto", "F16, BF16 and other tensors without codes of a .gguf file: exact (float32), int8, or auto (by size).",
        "--gguf-weights", group="loading", interfaces=frozenset({"cli"}),
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_all(self, LOAD_OPTIONS)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `ouro_edge.load`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


GENERATION_OPTIONS = table(GenerationOptions)
LOAD_OPTIONS = table(LoadOptions)


def from_old_prefill(prefill: Any, name: str = "prefill") -> PrefillWeights:
    """The value of prefill_weights for a value of its old name, prefill. RequestError for other values."""
    if not isinstance(prefill, str) or prefill not in _OLD_PREFILL:
        from ouro_edge.runtime.checks import shown

        raise RequestError(f"{name} is {shown(prefill)}; expected auto, fast or lean, or better prefill_weights auto, "
                           "int8 or none")  # fmt: skip
    return _OLD_PREFILL[prefill]
