"""One generated token as loops and sampler left it, before it gets text."""

from __future__ import annotations

from ouro_edge.arch.reference import exit_probabilities
from ouro_edge.runtime.events import Token
from ouro_edge.runtime.exits.loop_states import LoopStates
from ouro_edge.runtime.request import Request
from ouro_edge.runtime.sampling.sampler import Choice
from ouro_edge.runtime.sampling.top_logprobs import logit_lens, top_logprobs


def make_token(states: LoopStates, loops: int, choice: Choice, request: Request) -> Token:
    """The Token, without text, that came out of the states of one position on a model of so many loops."""
    probabilities = exit_probabilities(states.gate_logits, max(loops, states.loop))[0, : states.loop]
    return Token(
        id=choice.id,
        text="",
        logprob=choice.logprob,
        depth=states.loop,
        exit_probs=tuple(probabilities.tolist()),
        top_logprobs=top_logprobs(states.logits[0], request.top_logprobs),
        logit_lens=logit_lens(states, request.logit_lens),
        sampling_logprob=choice.sampling_logprob,
    )
