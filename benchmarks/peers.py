"""ouro-edge beside llama.cpp and OpenVINO on this machine: `python benchmarks/peers.py`. One command does it all.

It installs the peers into environments of their own, makes one random model of Ouro-1.4B's shapes for each, and times
them in turn (A B C A B C), every turn in a new process: medians, ranges, and how many times the peer's speed ours is,
by the ratio of every round. `--only dense` sets us beside what one would take instead of a looped 1.4B: a dense 4B in
llama.cpp. Results are kept: what was interrupted goes on where it was. Linux; a full run takes most of an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from peer_models.contenders import CONTENDERS, Contender, Section, memory_read, run  # noqa: E402 (after the path is set)
from peer_models.install import FULL, QUICK, Places, Sizes, prepare  # noqa: E402

from ouro_edge.runtime.session import available_threads  # noqa: E402

PEERS = ("ouro-edge", "openvino", "llama.cpp", "dense")
SECTIONS = {
    "prefill": Section("prefill", prompts=(128, 512)),
    "long-prefill": Section("long-prefill", prompts=(2048,), warm=False),
    "decode": Section("decode", contexts=(128,)),
    "long-decode": Section("long-decode", contexts=(2048, 4096), warm=False),
    "dense": Section("dense", prompts=(128,), contexts=(128, 2048)),
}
QUICK_SECTIONS = {
    "prefill": Section("prefill", prompts=(16,)),
    "long-prefill": Section("long-prefill", prompts=(64,), warm=False),
    "decode": Section("decode", contexts=(16,)),
    "long-decode": Section("long-decode", contexts=(64, 128), warm=False),
    "dense": Section("dense", prompts=(16,), contexts=(16, 64)),
}
QUIET = 0.2  # CPUs that others may take before a run is taken again
OURS = ("ouro-edge", "ouro-edge, int8 KV")


def contenders_of(section: str, peers: tuple[str, ...]) -> list[Contender]:
    """Who takes part: dense model and smaller depths in their own section only, other KV types where it tells."""
    there = [c for c in CONTENDERS if c.peer in peers]
    if section == "dense":
        return [c for c in there if c.peer == "dense" or c.name == OURS[1]]
    left_out = {"prefill": ("int8", "q8_0"), "decode": ("q8_0",)}.get(section, ())
    return [c for c in there if c.peer != "dense" and c.kv not in left_out]


def measure(
    sections: dict[str, Section], options: argparse.Namespace, places: Places, sizes: Sizes, results: Path
) -> list[dict[str, Any]]:
    """Rounds over all sections and contenders; every outcome is written down before the next begins."""
    done: list[dict[str, Any]] = json.loads(results.read_text()) if results.is_file() else []
    have = {(o["section"], o["contender"], o["round"]) for o in done}
    for round_ in range(options.rounds):
        for name, section in sections.items():
            for contender in contenders_of(name, options.peers):
                if (name, contender.name, round_) in have:
                    continue
                print(f"round {round_ + 1}, {name}: {contender.name}", file=sys.stderr)
                began, read = time.time(), memory_read(options.threads, options.wrap)
                tries = [run(contender, section, places, sizes, options.threads, options.wrap)]
                while (tries[-1].others or 0) > QUIET and len(tries) <= options.retries:
                    tries.append(run(contender, section, places, sizes, options.threads, options.wrap))
                outcome = min(tries, key=lambda tried: tried.others or 0)
                about = {"section": name, "contender": contender.name, "round": round_}
                done.append(about | asdict(outcome) | {"memory_read": read, "at": began})
                partial = results.with_suffix(".partial")
                partial.write_text(json.dumps(done, indent=1) + "\n")
                partial.replace(results)
    return done


def rows(done: list[dict[str, Any]]) -> Iterator[tuple[str, str, list[float], list[float]]]:
    """Test, contender, its rates, and by how much our faster KV type beats it in the rounds that both were in."""
    outcomes = {(o["section"], o["contender"], o["round"]): o for o in done}
    for section in dict.fromkeys(o["section"] for o in done):
        here = [o for o in done if o["section"] == section]
        for test in here[0]["rates"]:
            for contender in dict.fromkeys(o["contender"] for o in here):
                mine = [o for o in here if o["contender"] == contender]
                ratios = []
                for o in mine:
                    ours = [outcomes.get((section, name, o["round"])) for name in OURS]
                    rates = [own["rates"][test] for own in ours if own is not None]
                    if rates:
                        ratios.append(max(rates) / o["rates"][test])
                yield f"{section}: {test}", contender, [o["rates"][test] for o in mine], ratios


def report(done: list[dict[str, Any]]) -> str:
    """Markdown tables: speeds with ratios, then load time and memory."""
    lines = ["| test | runtime | tokens/s | range | ours is |", "| --- " * 5 + "|"]
    for test, contender, rates, ratios in rows(done):
        by = f"{median(ratios):.2f} times ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "-"
        own = "" if contender in OURS else by
        lines.append(f"| {test} | {contender} | {median(rates):.3g} | {min(rates):.3g}-{max(rates):.3g} | {own} |")
    lines += [
        "",
        "| section | runtime | load and one token, s | resident, GB | peak, GB | CPUs of others |",
        "| --- " * 6 + "|",
    ]
    for section, contender in dict.fromkeys((o["section"], o["contender"]) for o in done):
        mine = [o for o in done if (o["section"], o["contender"]) == (section, contender)]
        load, resident, peak = (median(o[key] for o in mine) for key in ("load", "resident", "peak"))
        others = ", ".join("?" if o["others"] is None else f"{o['others']:.1f}" for o in mine)
        size = f"{resident / 1e9:.2f} | {peak / 1e9:.2f}"
        lines.append(f"| {section} | {contender} | {load:.2f} | {size} | {others} |")
    read = [o["memory_read"] / 1e9 for o in done]
    lines += ["", f"Memory read meanwhile: {min(read):.1f}-{max(read):.1f} GB/s, median {median(read):.1f}."]
    mixed = [list(mixture(done))] if any(o["section"] == "dense" for o in done) else []
    return "\n".join([*lines, *(line for found in mixed for line in found)])


def mixture(done: list[dict[str, Any]]) -> Iterator[str]:
    """Our speed at a mean depth of 2.5, from depths 2 and 3: seconds a token are averaged."""
    rates: dict[str, list[dict[str, float]]] = {}
    for o in done:
        if o["section"] == "dense":
            rates.setdefault(o["contender"], []).append(o["rates"])
    halves = [rates.get(f"ouro-edge, depth {depth}, int8 KV") for depth in (2, 3)]
    dense = rates.get("dense 4B in llama.cpp")
    if all(halves) and dense:
        for test in dense[0]:
            two, three = (median(r[test] for r in half) for half in halves if half)
            speed = 2 / (1 / two + 1 / three)
            times = speed / median(r[test] for r in dense)
            yield f"Mean depth 2.5, {test}: {speed:.3g} tokens/s, {times:.2f} times the dense 4B."


def words(choices: tuple[str, ...]) -> Any:
    """A reader of names separated by commas, each one of `choices`."""

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
    parser.add_argument("--retries", type=int, default=0, help="runs more where others took over a fifth of a CPU")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--quick", action="store_true", help="tiny models: does everything work?")
    parser.add_argument("--work", type=Path, default=Path(".cache/peers"), help="models and results")
    parser.add_argument("--venvs", type=Path, help="environments of the peers (default: in --work)")
    parser.add_argument(
        "--wrap", default="", metavar="COMMAND", help="put before every timed program, such as 'nice -n -5'"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
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
