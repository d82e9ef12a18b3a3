"""Compares ouro-edge with llama.cpp and OpenVINO on this machine: `python benchmarks/peers.py`.

Installs the peers in separate environments, creates one random model with Ouro-1.4B's shapes for each, and times them
in turn (A B C A B C), each time in a new process. Reports medians, ranges, and the speed of ouro-edge divided by that
of the peer in the same round. `--only dense` compares with an alternative to a looped 1.4B: a dense 4B in llama.cpp;
`--only nanbeige` compares Nanbeige4.2-3B's shapes, which llama.cpp computes too.
Results are stored, so that an interrupted run can be continued. Linux; a full run takes most of an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from peer_models.contenders import CONTENDERS, Contender, Test, memory_read, run
from peer_models.install import FULL, QUICK, Places, Sizes, prepare

from ouro_edge.system.cpus import available_threads

PEERS = ("ouro-edge", "openvino", "llama.cpp", "dense", "nanbeige")
SECTIONS = {
    "prefill": (Test("prefill", 128), Test("prefill", 512)),
    "long-prefill": (Test("prefill", 2048),),
    "decode": (Test("decode", 128),),
    "long-decode": (Test("decode", 2048),),
    "longest-decode": (Test("decode", 4096),),
    "batched": tuple(Test("batched", count) for count in (1, 2, 4, 8, 16)),
    "dense": (Test("prefill", 128), Test("decode", 128), Test("decode", 2048)),
    "nanbeige": (Test("prefill", 128), Test("decode", 128)),
}
QUICK_SECTIONS = {
    "prefill": (Test("prefill", 16),),
    "long-prefill": (Test("prefill", 64),),
    "decode": (Test("decode", 16),),
    "long-decode": (Test("decode", 64),),
    "longest-decode": (Test("decode", 96),),
    "batched": (Test("batched", 2),),
    "dense": (Test("prefill", 16), Test("decode", 16)),
    "nanbeige": (Test("prefill", 16), Test("decode", 16)),
}
MAX_OTHER_CPUS = 0.2  # CPUs in use by other processes above which a run is repeated
USED = (("load", 1.0), ("resident", 1e9), ("peak", 1e9))  # columns of time and memory, and their units
OURS = (
    "ouro-edge",
    "ouro-edge, int8 KV",
    "ouro-edge, Nanbeige",
)  # default settings; prefill without the copy is a separate contender


def contenders_of(section: str, peers: tuple[str, ...]) -> list[Contender]:
    """The contenders of a section: other models and smaller depths have their own."""
    there = [c for c in CONTENDERS if c.peer in peers]
    if section == "dense":
        return [c for c in there if c.peer == "dense" or c.name == OURS[1]]
    if section == "nanbeige":
        return [c for c in there if c.peer == "nanbeige"]
    if section == "batched":  # OpenVINO's driver decodes one sequence
        there = [c for c in there if c.peer != "openvino"]
    left_out = {
        "long-prefill": ("fp32", "q8_0"),
        "prefill": ("int8", "q8_0"),
        "decode": ("int8", "q8_0"),
        "batched": ("q8_0",),
    }.get(section, ())
    there = [c for c in there if c.prefill == "auto" or section == "prefill"]
    return [c for c in there if c.peer not in ("dense", "nanbeige") and c.kv not in left_out]


def measure(
    sections: dict[str, tuple[Test, ...]], options: argparse.Namespace, places: Places, sizes: Sizes, results: Path
) -> list[dict[str, Any]]:
    """Rounds over all tests and contenders; every outcome is stored before the next test."""
    done: list[dict[str, Any]] = json.loads(results.read_text()) if results.is_file() else []
    have = {(o["section"], o["test"], o["contender"], o["round"]) for o in done}
    for round_, (section, test) in product(range(options.rounds), ((s, t) for s in sections for t in sections[s])):
        for contender in contenders_of(section, options.peers):
            about = {"section": section, "test": str(test), "contender": contender.name, "round": round_}
            if tuple(about.values()) in have:
                continue
            print(f"round {round_ + 1}, {section}, {test}: {contender.name}", file=sys.stderr)
            about |= {"at": time.time(), "memory_read": memory_read(options.threads, options.wrap)}
            tries = [run(contender, test, places, sizes, options.threads, options.wrap)]
            while (tries[-1].others or 0) > MAX_OTHER_CPUS and len(tries) <= options.retries:
                tries.append(run(contender, test, places, sizes, options.threads, options.wrap))
            done.append(about | asdict(min(tries, key=lambda tried: tried.others or 0)))
            partial = results.with_suffix(".partial")
            partial.write_text(json.dumps(done, indent=1) + "\n")
            partial.replace(results)
    return done


def report(done: list[dict[str, Any]]) -> str:
    """A Markdown table per section. Ratios are ouro-edge (the faster of both KV types) to peer in the same round."""
    lines = []
    head = ("test", "runtime", "tokens/s", "range", "ouro-edge is", "load, s", "resident, GB", "peak, GB", "other CPUs")
    for section in dict.fromkeys(o["section"] for o in done):
        lines += [f"\n### {section}\n", row(*head), row(*["---"] * len(head))]
        here = [o for o in done if o["section"] == section]
        for test, contender in dict.fromkeys((o["test"], o["contender"]) for o in here):
            mine = [o for o in here if (o["test"], o["contender"]) == (test, contender)]
            rates = [o["rate"] for o in mine]
            about = [middle([o[key] for o in mine], scale) for key, scale in USED]
            others = "?" if mine[0]["others"] is None else f"{max(o['others'] for o in mine):.1f}"
            lines.append(row(
                test, contender, f"{median(rates):.3g}", f"{min(rates):.3g}-{max(rates):.3g}", ratio(here, mine),
                *about, others,
            ))  # fmt: skip
    read = [o["memory_read"] / 1e9 for o in done]
    lines.append(f"\nMemory read meanwhile: {min(read):.1f}-{max(read):.1f} GB/s, median {median(read):.1f}.")
    return "\n".join([*lines, *mixture(done)]).strip()


def middle(values: list[float | None], scale: float) -> str:
    """The median of values in units of `scale`; "-" if they were not measured."""
    there = [value for value in values if value is not None]
    return f"{median(there) / scale:.2f}" if there else "-"


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def ratio(here: list[dict[str, Any]], mine: list[dict[str, Any]]) -> str:
    """Speed of ouro-edge divided by the peer's in common rounds: median and range."""
    if mine[0]["contender"].startswith("ouro-edge"):
        return ""
    found = []
    for o in mine:
        ours = [
            x["rate"] for x in here if x["contender"] in OURS and (x["test"], x["round"]) == (o["test"], o["round"])
        ]
        found += [max(ours) / o["rate"]] if ours else []
    return f"{median(found):.2f} times ({min(found):.2f}-{max(found):.2f})" if found else "-"


def mixture(done: list[dict[str, Any]]) -> Iterator[str]:
    """Speed of ouro-edge at mean depth 2.5 (half of the tokens at depth 2, half at 3) and of the dense model."""
    dense = [o for o in done if o["section"] == "dense"]
    for test in dict.fromkeys(o["test"] for o in dense):
        names = ("ouro-edge, depth 2, int8 KV", "ouro-edge, depth 3, int8 KV", "dense 4B in llama.cpp")
        rates = [[o["rate"] for o in dense if (o["test"], o["contender"]) == (test, name)] for name in names]
        if all(rates):
            two, three, theirs = map(median, rates)
            speed = 2 / (1 / two + 1 / three)
            yield f"Mean depth 2.5, {test}: {speed:.3g} tokens/s, {speed / theirs:.2f} times the dense 4B."


def words(choices: tuple[str, ...]) -> Any:
    """A parser of names separated by commas, each one of `choices`."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if unknown := [name for name in found if name not in choices]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(choices)}")
        return found

    return read


def main() -> None:
    """Prepare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=words(PEERS), default=PEERS, help=f"any of {','.join(PEERS)}")
    parser.add_argument("--only", type=words(tuple(SECTIONS)), default=tuple(SECTIONS), help="sections to run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--retries", type=int, default=0, help="additional runs if others used over a fifth of a CPU")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--quick", action="store_true", help="tiny models, to test this program")
    parser.add_argument("--work", type=Path, default=Path(".cache/peers"), help="models and results")
    parser.add_argument("--venvs", type=Path, help="environments of the peers (default: in --work)")
    parser.add_argument(
        "--wrap", default="", metavar="COMMAND", help="prefix of every timed command, such as 'nice -n -5'"
    )
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    options = parser.parse_args()
    places = Places(options.work.resolve(), (options.venvs or options.work).resolve())
    sizes = QUICK if options.quick else FULL
    prepare(places, sizes, options.peers, lambda text: print(text, file=sys.stderr))
    results = places.models(sizes) / "results.json"
    if options.fresh:
        results.unlink(missing_ok=True)
    available = QUICK_SECTIONS if options.quick else SECTIONS
    done = measure({name: available[name] for name in options.only}, options, places, sizes, results)
    print(report(done))
    print(f"\nEvery figure: {results}")


if __name__ == "__main__":
    main()
