"""Examines a model on this machine for a bug report or for weights that were never run here: config, text, numbers.

Reads local files only. Config, tokenizer ids and chat template are compared with those of the published Ouro models;
the logits of every loop with the NumPy reference on the checkpoint's own weights; then prompts are answered at every
depth, and speed and memory are measured.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ouro_edge.arch.published import SPECIAL_TOKENS, compare
from ouro_edge.arch.weights import Array
from ouro_edge.bundle.bundle import Bundle
from ouro_edge.errors import OuroEdgeError, TemplateError
from ouro_edge.evaluation.divergence import OriginalWeights, Score
from ouro_edge.evaluation.divergence import compare as compare_models
from ouro_edge.measure.own_process import in_own_process
from ouro_edge.measure.quality import built_in_text
from ouro_edge.measure.speed import End, Loading, Plan, Speed, time_model
from ouro_edge.runtime.backend.session import default_threads
from ouro_edge.runtime.events import Done
from ouro_edge.runtime.exits.policies import ExitPolicy, FixedDepth
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.system.cpus import cpu_name
from ouro_edge.system.memory import available_memory
from ouro_edge.version import __version__

PROMPTS = (
    "What is the capital of France?",
    "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?",
    "17 + 25 =",
)
_ANSWER_TOKENS = 12
_SPEED_PROMPT, _SPEED_TOKENS = 64, 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `passed` is None for a plain fact."""

    name: str
    text: str
    passed: bool | None = None


def machine() -> Iterator[Finding]:
    """Versions, processor and free memory."""
    names = ("onnxruntime", "numpy", "tokenizers")
    yield Finding("ouro-edge", ", ".join([__version__, *(f"{name} {version(name)}" for name in names)]))
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("cpu", f"{cpu_name()}, {default_threads()} threads")
    yield Finding("free memory", f"{available_memory() / 1e9:.1f} GB")


def config_findings(bundle: Bundle) -> Iterator[Finding]:
    """The sizes, and whether they are those of a published model."""
    config = bundle.config
    sizes = f"{config.num_layers} layers x {config.loops} loops, width {config.hidden_size}"
    yield Finding("model", f"{bundle.name}: {config.model_type}, {sizes}, vocabulary {config.vocab_size}")
    found = compare(config)
    if found is None:
        of = "Ouro " if config.model_type == "ouro" else ""
        yield Finding("config", f"not one of the published {of}models whose sizes are known here")
    elif found.differences:
        yield Finding("config", f"differs from {found.names[0]}: {'; '.join(found.differences)}", False)
    else:
        yield Finding("config", f"equals {' and '.join(found.names)}", True)


def text_findings(model: Model) -> Iterator[Finding]:
    """Tokenizer and chat template; ids are compared with the published ones for models of their sizes."""
    if not model.has_tokenizer:
        yield Finding("tokenizer", "none: token ids only")
        return
    tokenizer, expected = model.tokenizer, compare(model.config) is not None
    ids = {text: tokenizer.token_id(text) for text in SPECIAL_TOKENS}
    shown = ", ".join(f"{text} {i}" for text, i in ids.items())
    yield Finding("special tokens", shown, ids == SPECIAL_TOKENS if expected else None)
    yield Finding("stop ids", ", ".join(map(str, model.stop_ids)), {0, 2} <= set(model.stop_ids) if expected else None)
    text = built_in_text()
    same = tokenizer.decode(tokenizer.encode(text)) == text
    yield Finding("tokenizer", f"{tokenizer.vocab_size} ids, text survives a round trip: {'yes' if same else 'no'}",
                  same if expected else None)  # fmt: skip
    try:
        rendered = model.render([{"role": "user", "content": "hi"}])
    except TemplateError as problem:
        yield Finding("chat template", str(problem))
        return
    correct = "<|im_start|>user\nhi<|im_end|>" in rendered and rendered.endswith("<|im_start|>assistant\n")
    yield Finding("chat template", repr(rendered), correct if expected else None)


def depth_errors(model: Model, weights: Mapping[str, Array], ids: Sequence[int]) -> list[Score]:
    """The model compared with the reference on `weights`, after every loop. Reads one tensor at a time."""
    return compare_models(model, [ids], OriginalWeights(model.config, weights))


def answers(model: Model) -> Iterator[Finding]:
    """Short greedy answers to a few prompts at every depth, and by the model's own rule."""
    rules: dict[str, ExitPolicy] = {f"depth {n}": FixedDepth(n) for n in model.config.depths}
    for prompt in PROMPTS if model.has_tokenizer else ():
        for name, rule in {**rules, "default": model.default_exit()}.items():
            *_, done = answer(model, prompt, rule)
            assert isinstance(done, Done)
            yield Finding(f"{prompt!r}, {name}", f"{done.text!r}, mean depth {done.usage.mean_depth:.2f}")


def answer(model: Model, prompt: str, rule: ExitPolicy) -> Iterator[object]:
    """The events of a greedy answer: as a chat, or as a continuation if the model has no chat template."""
    if model.chat_template is None:
        return iter(model.generate(prompt, exit=rule, max_tokens=_ANSWER_TOKENS, sampler=Sampler()))
    messages = [{"role": "user", "content": prompt}]
    return iter(model.chat(messages, exit=rule, max_tokens=_ANSWER_TOKENS, sampler=Sampler()))


def speed(path: Path, depths: tuple[int, ...]) -> Iterator[Finding]:
    """Loading, memory, and tokens per second at every depth, in a process of its own."""
    plan = Plan((_SPEED_PROMPT,), (_SPEED_TOKENS,), depths, (0,), 1)
    for event in in_own_process(time_model, path, "auto", default_threads(), "none", plan):
        match event:
            case Loading():
                yield Finding("loading", f"{event.load:.2f} s, {event.memory.resident / 1e9:.2f} GB, kv {event.kv}")
            case Speed():
                yield Finding(str(event.test), f"{event.rates[0]:.1f} tokens/s")
            case End():
                yield Finding("memory peak", f"{event.memory.peak / 1e9:.2f} GB")


def text_ids(model: Model, tokens: int) -> list[int]:
    """The first `tokens` ids of a page of English; random ids for a model without a tokenizer."""
    if not model.has_tokenizer:
        return [int(i) for i in np.random.default_rng(0).integers(0, model.config.vocab_size, tokens)]
    ids = model.tokenizer.encode_text(built_in_text())[:tokens]
    if len(ids) < 2:
        raise OuroEdgeError("the tokenizer makes fewer than two tokens of a page of English: it is damaged")
    return ids
