"""Who is timed, and how each is asked: one process loads a model once and does all tests of a section.

A test is named "prefill 512" or "decode 2048" (16 tokens after so many positions), the same for all. Knows the options
and the reports of the programs; nothing of rounds and tables.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer_models.install import Places, Sizes

ROOT = Path(__file__).parents[2]
TOKENS = 16


@dataclass(frozen=True, slots=True)
class Section:
    """Tests that one process does after one load."""

    name: str
    prompts: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    warm: bool = True  # a first run that does not count; left out where one takes minutes


@dataclass(frozen=True, slots=True)
class Contender:
    """A runtime with a model and a KV type."""

    name: str
    peer: str  # what --peers calls it
    kv: str = ""
    depth: int = 4


CONTENDERS = (
    Contender("ouro-edge", "ouro-edge", "fp32"),
    Contender("ouro-edge, int8 KV", "ouro-edge", "int8"),
    Contender("OpenVINO, int8 KV", "openvino"),
    Contender("llama.cpp, f16 KV", "llama.cpp", "f16"),
    Contender("llama.cpp, q8_0 KV", "llama.cpp", "q8_0"),
    Contender("dense 4B in llama.cpp", "dense", "f16"),
    Contender("ouro-edge, depth 3, int8 KV", "dense", "int8", 3),
    Contender("ouro-edge, depth 2, int8 KV", "dense", "int8", 2),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one process gave."""

    rates: Mapping[str, float]  # tokens a second, by test
    load: float  # seconds to load and make one token
    resident: int  # bytes after that
    peak: int
    others: float | None  # CPUs that the rest of the machine took meanwhile


def run(contender: Contender, section: Section, places: Places, sizes: Sizes, threads: int, wrap: str) -> Outcome:
    """Time one contender on one section, in a process of its own under the command `wrap`."""
    models = places.models(sizes)
    if contender.name.startswith("ouro-edge"):
        return _ouro_edge(contender, section, models / "ouro-edge", threads, wrap)
    if contender.peer == "openvino":
        return _openvino(section, places.openvino_python, models / "openvino", threads, wrap)
    model = models / ("dense.gguf" if contender.peer == "dense" else "looped.gguf")
    return _llama_cpp(contender, section, places.llama_bench, model, threads, wrap)


def memory_read(threads: int, wrap: str) -> float:
    """Bytes a second that this machine reads, measured under `wrap` as well."""
    code = f"from ouro_edge.measure.bandwidth import memory_read; print(memory_read({threads}))"
    return float(_process(wrap, sys.executable, "-c", code)["output"])


def _ouro_edge(contender: Contender, section: Section, model: Path, threads: int, wrap: str) -> Outcome:
    done = _process(
        wrap, sys.executable, "-m", "ouro_edge", "bench", model, "-p", ",".join(map(str, section.prompts)),
        "-n", TOKENS if section.contexts else "", "-d", ",".join(map(str, section.contexts or (0,))),
        "--depths", contender.depth, "--kv", contender.kv, "--threads", threads, "--repeat", 1 + section.warm, "--json",
    )  # fmt: skip
    [run] = json.loads(done["output"])["runs"]
    rates = {}
    for speed in run["speeds"]:
        test = speed["test"]
        rates[f"{test['kind']} {test['tokens' if test['kind'] == 'prefill' else 'context']}"] = speed["rates"][-1]
    load = run["load_s"] + run["first_token_s"]
    return Outcome(rates, load, run["loaded"]["resident"], run["end"]["peak"], done["others"])


def _openvino(section: Section, python: Path, model: Path, threads: int, wrap: str) -> Outcome:
    plan = {"threads": threads, "prompts": section.prompts, "tokens": TOKENS, "contexts": section.contexts}
    plan["warm"] = section.warm
    done = _process(wrap, python, Path(__file__).with_name("openvino_driver.py"), model, json.dumps(plan))
    report = json.loads(done["output"])
    rates = {
        test: (TOKENS if test.startswith("decode") else int(test.split()[1])) / seconds
        for test, seconds in report["seconds"].items()
    }
    return Outcome(rates, report["load"], report["resident"], report["peak"], done["others"])


def _llama_cpp(
    contender: Contender, section: Section, llama_bench: Path, model: Path, threads: int, wrap: str
) -> Outcome:
    """llama-bench tells neither load time nor memory: those are of the least run, one token from start to end."""
    base = [llama_bench, "-m", model, "-t", threads, "-ctk", contender.kv, "-ctv", contender.kv, "-fa", 1, "-r", 1]
    least = _process(wrap, *base, "-p", 1, "-n", 0, "--no-warmup")
    rates, peak, others = {}, least["peak"], []
    tests = [(f"prefill {n}", ("-p", n, "-n", 0)) for n in section.prompts]
    tests += [(f"decode {n}", ("-p", 0, "-n", TOKENS, "-d", n)) for n in section.contexts]
    for test, options in tests:
        done = _process(wrap, *base, *options, *(() if section.warm else ("--no-warmup",)), "-o", "json")
        [result] = json.loads(done["output"])
        rates[test], peak = result["avg_ts"], max(peak, done["peak"])
        others.append(done["others"])
    return Outcome(rates, least["seconds"], least["peak"], peak, None if None in others else max(others))


def _process(wrap: str, *command: object) -> dict[str, Any]:
    """What process.py says of a program that must succeed; it stands inside `wrap`, which therefore does not count."""
    words = [*shlex.split(wrap), sys.executable, str(Path(__file__).with_name("process.py")), *map(str, command)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(words)[:300]} failed:\n{done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
