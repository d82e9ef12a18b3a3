"""Counters and histograms in the Prometheus text format 0.0.4. Labels never contain user text.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections import Counter

from ouro_edge.runtime.events import Done
from ouro_edge.server.queue import Queue

Samples = dict[str, float]  # name of a sample with its labels -> value

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKET_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

_FAMILIES = {
    "ouro_edge_requests_total": ("counter", "Answers by path and HTTP status."),
    "ouro_edge_generations_total": ("counter", "Finished generations by finish reason."),
    "ouro_edge_tokens_total": ("counter", "Tokens; cached tokens are part of the prompt."),
    "ouro_edge_loops_total": ("counter", "Passes through the block: run, and at full depth."),
    "ouro_edge_loops_saved": ("gauge", "Loops saved so far; decreases when loops catch up."),
    "ouro_edge_requests_running": ("gauge", "Slots in use."),
    "ouro_edge_requests_waiting": ("gauge", "Requests in the queue."),
    "ouro_edge_first_token_seconds": ("histogram", "Time from the start to the first token."),
    "ouro_edge_generation_seconds": ("histogram", "Duration of a generation."),
}


class Histogram:
    """A histogram of durations in seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKET_SECONDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[sum(seconds > bound for bound in _BUCKET_SECONDS)] += 1
        self.total += seconds

    def samples(self, name: str) -> Samples:
        """Cumulative buckets, sum and count."""
        sums = [sum(self.counts[: i + 1]) for i in range(len(self.counts))]
        bounds = [*(f"{bound:g}" for bound in _BUCKET_SECONDS), "+Inf"]
        buckets = {f'{name}_bucket{{le="{bound}"}}': count for bound, count in zip(bounds, sums, strict=True)}
        return {**buckets, f"{name}_sum": self.total, f"{name}_count": sums[-1]}


class Metrics:
    """Counters of one server since its start. Must be used in the event loop's thread only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.tokens: Counter[str] = Counter()
        self.loops: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        self.first_token, self.duration = Histogram(), Histogram()

    def count_answer(self, done: Done) -> None:
        """Add the usage of one finished generation."""
        usage = done.usage
        self.endings[done.reason] += 1
        self.tokens.update(prompt=usage.prompt_tokens, cached=usage.cached_tokens, completion=usage.completion_tokens)
        self.loops.update(run=usage.loops_run, full=usage.loops_full)
        if usage.completion_tokens:
            self.first_token.add(done.timings.first_token)
        self.duration.add(done.timings.total)

    def samples(self, queue: Queue) -> Samples:
        """All values now. Those of several servers can be added, name by name."""
        counts = {
            "ouro_edge_requests_total": {
                f'path="{path}",status="{status}"': n for (path, status), n in sorted(self.requests.items())
            },
            "ouro_edge_generations_total": {f'reason="{reason}"': n for reason, n in sorted(self.endings.items())},
            "ouro_edge_tokens_total": {
                f'kind="{kind}"': self.tokens[kind] for kind in ("prompt", "cached", "completion")
            },
            "ouro_edge_loops_total": {f'kind="{kind}"': self.loops[kind] for kind in ("run", "full")},
        }
        found: dict[str, float] = {f"{name}{{{key}}}": n for name, kinds in counts.items() for key, n in kinds.items()}
        found["ouro_edge_loops_saved"] = self.loops["full"] - self.loops["run"]
        found["ouro_edge_requests_running"] = queue.running
        found["ouro_edge_requests_waiting"] = queue.waiting
        found |= self.first_token.samples("ouro_edge_first_token_seconds")
        found |= self.duration.samples("ouro_edge_generation_seconds")
        return found


def render(samples: Samples) -> str:
    """The text for /metrics."""
    lines = []
    for family, (kind, text) in _FAMILIES.items():
        lines += [f"# HELP {family} {text}", f"# TYPE {family} {kind}"]
        endings = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names = [name for name in samples if name.partition("{")[0] in {family + ending for ending in endings}]
        if kind == "counter":
            names.sort()  # label values that one of several servers has not met come at the end otherwise
        lines += [f"{name} {samples[name]:.6f}" if name.endswith("_sum") else f"{name} {samples[name]}"
                  for name in names]  # fmt: skip
    return "\n".join(lines) + "\n"


def is_gauge(sample: str) -> bool:
    """Whether a sample describes the present, not all that has happened."""
    return _FAMILIES.get(sample, ("", ""))[0] == "gauge" and sample != "ouro_edge_loops_saved"
