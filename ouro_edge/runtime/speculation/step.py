"""One generated token as the loops and the sampler left it, before it becomes text. Knows evidence and candidates."""

from __future__ import annotations

from dataclasses import dataclass

from ouro_edge.arch.reference import exit_probabilities
from ouro_edge.runtime.events import Candidate
from ouro_edge.runtime.exits.loop_states import Evidence
from ouro_edge.runtime.request import Request
from ouro_edge.runtime.sampling.top_logprobs import lens, likeliest


@dataclass(frozen=True, slots=True)
class Step:
    """One generated id and how it came about."""

    id: int
    logprob: float
    depth: int
    exit_probs: tuple[float, ...]
    top_logprobs: tuple[Candidate, ...]
    lens: tuple[tuple[Candidate, ...], ...]


def make_step(evidence: Evidence, loops: int, token: int, logprob: float, request: Request) -> Step:
    """What is reported of a token that came out of the evidence of one position, on a model of so many loops."""
    probabilities = exit_probabilities(evidence.gate_logits, loops)[0, : evidence.loop]
    return Step(
        token,
        logprob,
        evidence.loop,
        tuple(probabilities.tolist()),
        likeliest(evidence.logits[0], request.top_logprobs),
        lens(evidence, request.lens),
    )
