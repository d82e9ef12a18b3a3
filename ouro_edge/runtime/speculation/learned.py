"""What earlier generations learnt about drafting, by sequence: estimates outlive a generation but not its sequence."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.speculation.draft_policy import DraftPolicy

_policies: WeakKeyDictionary[TokenSequence, DraftPolicy] = WeakKeyDictionary()
_lock = threading.Lock()


def draft_policy_for(sequence: TokenSequence, *, forced: bool) -> DraftPolicy:
    """The estimates of a sequence; new ones when it has none, or when drafting is forced now and was not before."""
    with _lock:
        policy = _policies.get(sequence)
        if policy is None or policy.forced != forced:
            policy = _policies[sequence] = DraftPolicy(sequence.config.most_loops, forced=forced)
        return policy
