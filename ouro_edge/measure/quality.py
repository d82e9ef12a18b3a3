"""How good a model's answers are: perplexity, divergence from another model, exact match. The function `evaluate`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ouro_edge.arch.weights import Array, tensor_shapes
from ouro_edge.bundle.directory import is_bundle, open_bundle
from ouro_edge.errors import CheckpointError, NoTokenizerError, RequestError
from ouro_edge.evaluation.divergence import LoadedModel, OriginalWeights, Score, States, compare, to_dict, token_windows
from ouro_edge.evaluation.questions import Question, exact_match
from ouro_edge.evaluation.sensitivity import Sensitivity, sensitivity
from ouro_edge.evaluation.stored_weights import StoredWeights
from ouro_edge.export.checkpoint import Checkpoint, is_gguf
from ouro_edge.export.open_checkpoint import open_checkpoint
from ouro_edge.loading import load, open_model_files
from ouro_edge.runtime.exits.parse import parse_exit
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.options import KVType
from ouro_edge.runtime.text.model_text import read_model_text, stored_tokenizer
from ouro_edge.runtime.text.tokenizer import Tokenizer
from ouro_edge.system.hub import resolve
from ouro_edge.system.progress import Progress


@dataclass(frozen=True, slots=True)
class Quality:
    """The result of `evaluate`: a score for every depth, then for every exit rule."""

    model: str
    against: str | None  # what the model was compared with
    tokens: int  # of the text; half of them are scored
    scores: tuple[Score, ...]
    questions: int
    exact_match: tuple[float, ...] | None  # in the order of `scores`; None without questions

    @property
    def best(self) -> Score:
        """The score at full depth."""
        return [score for score in self.scores if score.name.startswith("depth ")][-1]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        rows = [to_dict(score) for score in self.scores]
        for row, share in zip(rows, self.exact_match or (), strict=False):
            row["exact_match"] = share
        return {"model": self.model, "against": self.against, "tokens": self.tokens, "questions": self.questions,
                "scores": rows}  # fmt: skip


def built_in_text() -> str:
    """About 3200 tokens of English prose that no calibration uses."""
    return resources.files("ouro_edge.evaluation").joinpath("held_out.txt").read_text(encoding="utf-8")


def evaluate(
    model: str | os.PathLike[str] | Model,
    *,
    against: str | os.PathLike[str] | Model | None = None,
    text: str | None = None,
    windows: int | None = None,
    exits: Sequence[str] = (),
    questions: Sequence[Question] = (),
    kv: KVType = "fp32",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Measure a model on a text by llama-perplexity's protocol, at every depth, and on questions with exact answers.

    Args:
        model: An exported directory, a .gguf file, or a loaded model. A checkpoint is computed in float32, by NumPy,
            on the text only.
        against: What its probabilities are compared with, as for `model`.
        text: The text. Default: built-in English prose.
        windows: At most this many windows of 512 tokens. Default: the whole text.
        exits: Exit rules to measure besides the fixed depths.
        questions: Questions with exact answers; needs a chat template.
        kv: The type of the KV cache. Default: float32, so that only the weights differ.
        threads: As for `load`.
        progress: Called as `Progress` says.

    Raises:
        RequestError: The text is shorter than a window, or the models cannot be compared.
    """
    rules = [(rule, parse_exit(rule)) for rule in exits]
    with ExitStack() as stack:

        def open_(name: str | os.PathLike[str] | Model) -> Model | Checkpoint:
            if isinstance(name, Model):
                return name
            found = resolve(name, progress=progress).path
            if not is_gguf(found) and not is_bundle(found):
                return open_checkpoint(found)
            return stack.enter_context(load(name, kv=kv, threads=threads, prefill_weights="none", progress=progress))

        def states(opened: Model | Checkpoint) -> States:
            return LoadedModel(opened) if isinstance(opened, Model) else OriginalWeights(opened.config, opened.weights)

        measured = open_(model)
        loaded = measured if isinstance(measured, Model) else None
        if loaded is None and (rules or questions):
            raise RequestError(f"{model} is a checkpoint, which is only computed on a text: for exit rules and "
                               "questions export it, for example with -p fp32")  # fmt: skip
        tokenizer = measured.tokenizer if isinstance(measured, Model) else _tokenizer(measured)
        ids = tokenizer.encode_text(built_in_text() if text is None else text)
        parts = token_windows(ids, measured.config, windows)
        other = None if against is None else states(open_(against))
        scores = compare(loaded or states(measured), parts, other, rules, progress)
        shares = exact_match(loaded, questions, rules, progress) if questions and loaded is not None else None
        return Quality(
            measured.name,
            None if against is None else _name(against),
            sum(map(len, parts)),
            tuple(scores),
            len(questions),
            None if shares is None else tuple(shares),
        )


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    def text(name: str) -> str | None:
        content = checkpoint.files.get(name)
        return None if content is None else content.decode()

    try:
        found = stored_tokenizer(text, checkpoint.config.vocab_size, checkpoint.path)
    except UnicodeDecodeError as problem:
        raise CheckpointError(f"a text file of {checkpoint.path} is not UTF-8: {problem}") from None
    if found is None:
        raise NoTokenizerError(f"{checkpoint.path} has no tokenizer.json")
    return found


def measure_sensitivity(
    model: str | os.PathLike[str],
    against: str | os.PathLike[str],
    *,
    text: str | None = None,
    windows: int = 1,
    progress: Progress | None = None,
) -> Sensitivity:
    """Which loop and which tensor of an exported model costs how much, compared with its checkpoint.

    One forward pass in NumPy per loop and per tensor, over `windows` windows of the text. RequestError: `model` is not
    an exported directory or a .gguf file, the models differ, or the text is shorter than a window.
    """
    path = resolve(model, progress=progress).path
    if not is_gguf(path) and not is_bundle(path):
        raise RequestError(f"{path} has no rounded weights; expected an exported directory or a .gguf file")
    stored: Mapping[str, Array] = open_checkpoint(path).weights if is_gguf(path) else StoredWeights(open_bundle(path))
    original = open_checkpoint(resolve(against, progress=progress).path)
    bundle = open_model_files(path)
    if tensor_shapes(bundle.config) != tensor_shapes(original.config) or bundle.config.loops != original.config.loops:
        raise RequestError(f"{path} was not exported from {original.path}: their sizes differ")
    tokenizer = read_model_text(bundle).tokenizer
    if tokenizer is None:
        raise NoTokenizerError(f"{path} has no tokenizer.json")
    ids = tokenizer.encode_text(built_in_text() if text is None else text)
    parts = token_windows(ids, original.config, windows)
    return sensitivity(original.config, original.weights, stored, parts, progress)


def _name(model: str | os.PathLike[str] | Model) -> str:
    return model.name if isinstance(model, Model) else Path(model).name
