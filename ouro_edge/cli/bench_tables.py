"""The results of `ouro-edge bench` as tables."""

from __future__ import annotations

from statistics import median
from typing import Any

from ouro_edge.cli.tables import table


def loading_table(runs: list[dict[str, Any]]) -> str:
    """Load time and memory of each run."""
    head = ("kv", "threads", "memory read", "load", "first token", "resident", "at the end", "peak", "idle CPU")
    return table(head, [(
        run["kv"], str(run["threads"]), "-".join(f"{x / 1e9:.1f}" for x in sorted(run["memory_read"])) + " GB/s",
        f"{run['load_s']:.2f} s",
            f"{run['first_token_s']:.2f} s", *(f"{size / 1e9:.2f} GB" for size in (
            run["loaded"]["resident"], run["end"]["resident"], run["end"]["peak"])), f"{run['idle_cpu']:.0%}",
    ) for run in runs])  # fmt: skip


def speed_table(runs: list[dict[str, Any]], kind: str) -> str | None:
    """The tests of one kind; None if there are none."""
    rows = []
    for run in runs:
        for speed in (speed for speed in run["speeds"] if speed["test"]["kind"] == kind):
            test, seconds = speed["test"], median(speed["seconds"])
            rows.append([run["kv"], *map(str, (run["threads"], test["context"], test["tokens"], test["depth"])),
                         _short(speed["rate"]), f"{_short(min(speed['rates']))}-{_short(max(speed['rates']))}",
                         f"{_short(seconds)} s", f"{_short(1e3 * seconds / speed['block_calls'])} ms"])  # fmt: skip
            if kind == "decode":
                share = speed["bandwidth"] / max(run["memory_read"])
                rows[-1] += [f"{speed['bandwidth'] / 1e9:.2f}", f"{share:.0%}"]
    head = ["kv", "threads", "context", kind, "depth", "tokens/s", "range", "time", "a call"]
    return table(head + ["GB/s", "of memory read"] * (kind == "decode"), rows) if rows else None


def streams_table(runs: list[dict[str, Any]]) -> str | None:
    """Several generations at once; None if they were not timed."""
    rows, alone = [], 0.0
    for run in runs:
        for speed in run["streams"]:
            rate, count = speed["rate"], speed["streams"]
            alone = alone if count else rate  # comes before those that it is compared with
            rows.append([run["kv"], *map(str, (run["threads"], speed["context"], speed["tokens"], speed["depth"])),
                         str(count or "1, alone"), _short(rate),
                         f"{_short(min(speed['rates']))}-{_short(max(speed['rates']))}", f"{rate / alone:.2f}",
                         f"{_short(1e3 * (count or 1) / rate / speed['depth'])} ms"])  # fmt: skip
    head = ("kv", "threads", "context", "decode", "depth", "streams", "tokens/s", "range", "to 1 alone", "loop of all")
    return table(head, rows) if rows else None


def _short(number: float) -> str:
    """A number with three significant digits, without an exponent for large numbers."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
