"""Speed of an exported model: `python benchmarks/bench.py MODEL`. Load time, prefill and decode rates, memory.

Each figure is the median of several repeats in a process of its own. Decoding is measured at every depth, because depth
is what an exit gate buys. The machine should be quiet: nothing here corrects for neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads would fight onnxruntime's


def measure(model_path: str, prompts: list[int], tokens: int, repeats: int, threads: int | None) -> dict[str, object]:
    """All figures of one model, in this process."""
    began = time.perf_counter()
    import numpy as np

    import ouro_edge

    with ouro_edge.load(model_path, threads=threads) as model:
        figures: dict[str, object] = {"load_s": time.perf_counter() - began, "rss_after_load_mb": resident("VmRSS")}
        rng = np.random.default_rng(0)

        def timed(length: int, depth: int, count: int) -> ouro_edge.Done:
            ids = rng.integers(0, model.config.vocab_size, length).tolist()
            policy = ouro_edge.FixedDepth(depth)
            *_, done = model.generate(ids, max_tokens=count, exit=policy, stop_ids=(), sampler=ouro_edge.Sampler())
            return done

        full = model.config.loops
        timed(8, full, 4)  # first touches of memory
        for length in prompts:
            rates = [length / timed(length, full, 1).timings.first_token for _ in range(repeats)]
            figures[f"prefill_{length}_tok_s"] = median(rates)
        for depth in range(1, full + 1):
            rates = [timed(16, depth, tokens).timings.decode_rate(tokens) for _ in range(repeats)]
            figures[f"decode_depth_{depth}_tok_s"] = median(rates)
        before = time.process_time()
        time.sleep(1)
        figures["idle_cpu_s_per_s"] = time.process_time() - before
        figures["peak_mb"] = resident("VmHWM")
    return figures


def resident(field: str) -> float | None:
    """Megabytes from Linux's /proc; None elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(float(line.split()[1]) / 1e3 for line in status.read_text().splitlines() if line.startswith(field))


def main() -> None:
    """Measure the models named on the command line, one process each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("-p", "--prompts", default="64,256", help="prompt lengths, comma separated")
    parser.add_argument("-n", "--tokens", type=int, default=24, help="tokens to decode")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        lengths = [int(n) for n in options.prompts.split(",")]
        print(json.dumps(measure(options.models[0], lengths, options.tokens, options.repeat, options.threads)))
        return
    for model in options.models:
        arguments = [a for a in sys.argv[1:] if a not in options.models]
        done = subprocess.run(
            [sys.executable, __file__, model, *arguments, "--child"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr.splitlines()[-1] if done.stderr else f"{model}: failed")
        print(model)
        for name, value in json.loads(done.stdout).items():
            print(f"  {name:<24} {'-' if value is None else format(value, '.4g')}")


if __name__ == "__main__":
    main()
