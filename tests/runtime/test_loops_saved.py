"""Usage over many requests: what requests save adds up to what was not computed, whatever their order and depth."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ouro_edge

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["continue", "fork", "other prompt", "shorter"]),
        st.integers(1, 4),  # depth
        st.integers(1, 4),  # tokens
        st.integers(1, 5),  # ids added to the prompt
    ),
    min_size=1,
    max_size=6,
)


@dataclass
class Count:
    """Positions begun and positions times loops computed, counted outside the runtime."""

    begun: int = 0
    computed: int = 0


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_requests_add_up_to_the_truth(bundle_of, steps):
    """Sum of loops_saved = R * (positions begun) - (positions computed, summed over loops), over turns and forks."""
    with ouro_edge.load(bundle_of()) as model:
        truth, saved, run = Count(), 0, 0
        sequence, history = model.new_sequence(), [1]
        for kind, depth, count, more in steps:
            if kind == "fork":
                sequence = sequence.copy_prefix()
            history = {"other prompt": [7] * more, "shorter": history[: max(1, len(history) // 2)]}.get(kind, history)
            history = [*history, *range(20, 20 + more)]
            before = list(sequence.frontier)
            kept = sequence.set_prompt(history)
            before = [min(at, kept) for at in before]
            *tokens, done = model.generate(
                history, max_tokens=count, exit=ouro_edge.FixedDepth(depth), stop_ids=(), sequence=sequence
            )
            history += [token.id for token in tokens]
            gained = [after - at for after, at in zip(sequence.frontier[1:], before[1:], strict=True)]
            truth.begun += gained[0]
            truth.computed += sum(gained)
            saved += done.usage.loops_saved
            run += done.usage.loops_run
            assert done.usage.loops_full == done.usage.loops_run + done.usage.loops_saved == 4 * gained[0]
        assert run == truth.computed
        assert saved == 4 * truth.begun - truth.computed


def test_four_shallow_turns_save_each_their_own(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        sequence, history, saved = model.new_sequence(), [5, 6, 7], []
        for _ in range(4):
            *tokens, done = model.generate(
                history, max_tokens=3, exit=ouro_edge.FixedDepth(1), stop_ids=(), sequence=sequence
            )
            history = [*history, *(token.id for token in tokens), 9]
            saved.append(done.usage.loops_saved)
        assert sum(saved) == sequence.pending_loops == 3 * len(sequence)
        assert saved == [15, 12, 12, 12]
