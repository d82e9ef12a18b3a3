"""The timed programs: their options and reports. Every test runs in a new process.

"prefill 512" is a prompt of 512 tokens, "decode 2048" 16 tokens after 2048 positions, the same for all, and "batched 8"
16 tokens after 128 positions in each of 8 sequences at the same time.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peer_models.install import Places, Sizes

ROOT = Path(__file__).parents[2]
TOKENS = 16
BATCHED_CONTEXT = 128
LLAMA_CPP_MODELS = {"llama.cpp": "looped.gguf", "dense": "dense.gguf", "nanbeige": "nanbeige.gguf"}  # by peer


@dataclass(frozen=True, slots=True)
class Test:
    """One thing to time, after a run of it that does not count."""

    kind: Literal["prefill", "decode", "batched"]
    size: int  # tokens of the prompt, or positions before the first decoded token, or sequences

    def __str__(self) -> str:
        return f"{self.kind} {self.size}"

    @property
    def tokens(self) -> int:
        """How many the rate is of."""
        return self.size if self.kind == "prefill" else TOKENS


@dataclass(frozen=True, slots=True)
class Contender:
    """A runtime with a model and a KV type."""

    name: str
    peer: str  # name for --peers
    kv: str = ""
    depth: int = 4
    prefill: str = "auto"


CONTENDERS = (
    Contender("ouro-edge", "ouro-edge", "fp32"),
    Contender("ouro-edge, int8 KV", "ouro-edge", "int8"),
    Contender("ouro-edge, lean", "ouro-edge", "fp32", prefill="none"),
    Contender("OpenVINO, int8 KV", "openvino"),
    Contender("llama.cpp, f16 KV", "llama.cpp", "f16"),
    Contender("llama.cpp, q8_0 KV", "llama.cpp", "q8_0"),
    Contender("dense 4B in llama.cpp", "dense", "f16"),
    Contender("ouro-edge, depth 3, int8 KV", "dense", "int8", 3),
    Contender("ouro-edge, depth 2, int8 KV", "dense", "int8", 2),
    Contender("ouro-edge, Nanbeige", "nanbeige", "fp32", 2),
    Contender("Nanbeige in llama.cpp", "nanbeige", "f16", 2),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one process."""

    rate: float  # tokens a second
    load: float | None  # seconds to load and make one token; this and the next two are None for several sequences
    resident: int | None  # bytes after that
    peak: int | None
    others: float | None  # CPUs that the rest of the machine took meanwhile


def run(contender: Contender, test: Test, places: Places, sizes: Sizes, threads: int, wrap: str) -> Outcome:
    """Time one contender, in a process of its own under the command `wrap`."""
    models = places.models(sizes)
    if test.kind == "batched":
        if contender.peer == "ouro-edge":
            return _ouro_edge_batched(contender, test.size, models / "ouro-edge", threads, wrap)
        return _llama_cpp_batched(
            contender, test.size, places.llama_batched_bench, models / "looped.gguf", threads, wrap
        )
    if contender.name.startswith("ouro-edge"):
        model = models / ("nanbeige" if contender.peer == "nanbeige" else "ouro-edge")
        return _ouro_edge(contender, test, model, threads, wrap)
    if contender.peer == "openvino":
        return _openvino(test, places.openvino_python, models / "openvino", threads, wrap)
    model = models / LLAMA_CPP_MODELS[contender.peer]
    return _llama_cpp(contender, test, places.llama_bench, model, threads, wrap)


def memory_read(threads: int, wrap: str) -> float:
    """Bytes a second that this machine reads, measured under `wrap` as well."""
    code = f"from ouro_edge.measure.bandwidth import memory_read; print(memory_read({threads}))"
    return float(_process(wrap, sys.executable, "-c", code)["output"])


def _ouro_edge(contender: Contender, test: Test, model: Path, threads: int, wrap: str) -> Outcome:
    decode = test.kind == "decode"
    done = _process(
        wrap, sys.executable, "-m", "ouro_edge", "bench", model, "-p", "" if decode else test.size,
        "-n", TOKENS if decode else "", "-d", test.size if decode else 0, "--depths", contender.depth,
        "--kv", contender.kv, "--prefill-weights", contender.prefill, "--threads", threads, "--repeat", 2, "--json",
    )  # fmt: skip
    [run] = json.loads(done["output"])["runs"]
    load = run["load_s"] + run["first_token_s"]
    return Outcome(run["speeds"][0]["rates"][-1], load, run["loaded"]["resident"], run["end"]["peak"], done["others"])


def _openvino(test: Test, python: Path, model: Path, threads: int, wrap: str) -> Outcome:
    plan = {"threads": threads, "kind": test.kind, "size": test.size, "tokens": TOKENS}
    done = _process(wrap, python, Path(__file__).with_name("openvino_driver.py"), model, json.dumps(plan))
    report = json.loads(done["output"])
    rate = test.tokens / report["seconds"]
    return Outcome(rate, report["load"], report["resident"], report["peak"], done["others"])


def _llama_cpp(contender: Contender, test: Test, llama_bench: Path, model: Path, threads: int, wrap: str) -> Outcome:
    """llama-bench tells neither load time nor memory: those are of the least run, one token from start to end."""
    base = [llama_bench, "-m", model, "-t", threads, "-ctk", contender.kv, "-ctv", contender.kv, "-fa", 1, "-r", 1]
    least = _process(wrap, *base, "-p", 1, "-n", 0, "--no-warmup")
    options = ("-p", test.size, "-n", 0) if test.kind == "prefill" else ("-p", 0, "-n", TOKENS, "-d", test.size)
    done = _process(wrap, *base, *options, "-o", "json")
    [result] = json.loads(done["output"])
    return Outcome(result["avg_ts"], least["seconds"], least["peak"], done["peak"], done["others"])


def _ouro_edge_batched(contender: Contender, count: int, model: Path, threads: int, wrap: str) -> Outcome:
    done = _process(
        wrap, sys.executable, "-m", "ouro_edge", "bench", model, "-p", "", "-n", TOKENS, "-d", BATCHED_CONTEXT,
        "--depths", contender.depth, "--kv", contender.kv, "--threads", threads, "--parallel", count, "--repeat", 2,
        "--json",
    )  # fmt: skip
    [run] = json.loads(done["output"])["runs"]
    [speed] = [speed for speed in run["streams"] if speed["streams"] == count]
    return Outcome(speed["rates"][-1], None, None, None, done["others"])


def _llama_cpp_batched(
    contender: Contender, count: int, llama_batched_bench: Path, model: Path, threads: int, wrap: str
) -> Outcome:
    """The prompt is computed once and its keys and values are copied (-pps): only decoding is timed.

    Repacked weights are faster, but on some CPUs llama.cpp crashes when it decodes several sequences with them; there,
    weights are used as they are stored.
    """
    positions = count * (BATCHED_CONTEXT + TOKENS)
    command = (
        llama_batched_bench, "-m", model, "-t", threads, "-ctk", contender.kv, "-ctv", contender.kv, "-fa", "on",
        "-c", positions, "-npp", BATCHED_CONTEXT, "-ntg", TOKENS, "-npl", count, "-pps", "--output-format", "jsonl",
    )  # fmt: skip
    try:
        done = _process(wrap, *command)
    except SystemExit:
        print("llama-batched-bench failed; measuring it with --no-repack", file=sys.stderr)
        done = _process(wrap, *command, "--no-repack")
    [result] = [json.loads(line) for line in done["output"].splitlines() if line.startswith("{")]
    return Outcome(result["speed_tg"], None, None, None, done["others"])


def _process(wrap: str, *command: object) -> dict[str, Any]:
    """What process.py says of a program that must succeed; it stands inside `wrap`, which therefore does not count."""
    words = [*shlex.split(wrap), sys.executable, str(Path(__file__).with_name("process.py")), *map(str, command)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(words)[:300]} failed:\n{done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
