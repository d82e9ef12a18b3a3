"""Counters and histograms in the Prometheus text format 0.0.4. Labels never contain user text.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections import Counter

from ouro_edge.runtime.events import Done
from ouro_edge.server.queue import Queue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKET_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Histogram:
    """A histogram of durations in seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKET_SECONDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[sum(seconds > bound for bound in _BUCKET_SECONDS)] += 1
        self.total += seconds

    def lines(self, name: str) -> list[str]:
        """Cumulative buckets, sum and count."""
        sums = [sum(self.counts[: i + 1]) for i in range(len(self.counts))]
        bounds = [*(f"{bound:g}" for bound in _BUCKET_SECONDS), "+Inf"]
        buckets = [f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in zip(bounds, sums, strict=True)]
        return [*buckets, f"{name}_sum {self.total:.6f}", f"{name}_count {sums[-1]}"]


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

    def text(self, queue: Queue) -> str:
        """All metrics as text, for /metrics."""
        parts = (
            _family("ouro_edge_requests_total", "counter", "Answers by path and HTTP status.",
                    {f'path="{path}",status="{status}"': n for (path, status), n in sorted(self.requests.items())}),
            _family("ouro_edge_generations_total", "counter", "Finished generations by finish reason.",
                    {f'reason="{reason}"': n for reason, n in sorted(self.endings.items())}),
            _family("ouro_edge_tokens_total", "counter", "Tokens; cached tokens are part of the prompt.",
                    {f'kind="{kind}"': self.tokens[kind] for kind in ("prompt", "cached", "completion")}),
            _family("ouro_edge_loops_total", "counter", "Passes through the block: run, and at full depth.",
                    {f'kind="{kind}"': self.loops[kind] for kind in ("run", "full")}),
            _family("ouro_edge_loops_saved", "gauge", "Loops saved so far; decreases when loops catch up.",
                    {"": self.loops["full"] - self.loops["run"]}),
            _family("ouro_edge_requests_running", "gauge", "Slots in use.", {"": queue.running}),
            _family("ouro_edge_requests_waiting", "gauge", "Requests in the queue.", {"": queue.waiting}),
            _family("ouro_edge_first_token_seconds", "histogram", "Time from the start to the first token.")
            + self.first_token.lines("ouro_edge_first_token_seconds"),
            _family("ouro_edge_generation_seconds", "histogram", "Duration of a generation.")
            + self.duration.lines("ouro_edge_generation_seconds"),
        )  # fmt: skip
        return "\n".join(line for part in parts for line in part) + "\n"


def _family(name: str, kind: str, text: str, values: dict[str, int] | None = None) -> list[str]:
    samples = [f"{name}{{{labels}}} {n}" if labels else f"{name} {n}" for labels, n in (values or {}).items()]
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]
