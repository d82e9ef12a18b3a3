"""The usage summary line of a turn."""

from __future__ import annotations

from ouro_edge.runtime.events import Done


def summary(done: Done, loops: int) -> str:
    """One line about an answer; depth is included for models with several loops."""
    usage = done.usage
    parts = [f"{usage.completion_tokens} tokens", f"{done.timings.decode_rate(usage.completion_tokens):.1f} tokens/s"]
    if loops > 1:
        parts.append(f"mean depth {usage.mean_depth:.2f}")
        if usage.loops_saved < 0:  # loops were run that an earlier answer had saved
            parts.append(f"{-usage.loops_saved} loops of earlier answers caught up")
        else:
            parts.append(f"{usage.loops_saved} of {usage.loops_full} loops saved")
    ending = {"cancelled": " (stopped)", "length": " (cut off: token limit reached)", "stop": ""}[done.reason]
    return f"[{', '.join(parts)}]{ending}"
