"""Exported models and saved states with damaged content and right checksums: each gives an answer or one line.

The work is done in a process of its own, which names every case before it begins, so that a crash or a hang is
attributed to its case. A case is repeated by its number: `--seed` is the first one.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing as mp
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_SECONDS = 60.0  # for one case; a longer one is a hang
_VALUES: list[Any] = [None, True, 0, -1, 1, 2**31, 2**63, 1e308, 0.5, "", "x", "../x", [], {}, [0], "\u0000", "é" * 50]
_BYTES = [b"\0", b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff", b"{", b'"', b"\x80"]


def _changed_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(max(1, len(out)))
        kind = rng.randrange(4)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            piece = rng.choice(_BYTES)
            out[at : at + len(piece)] = piece
        elif kind == 2:
            del out[at : at + rng.choice([1, 4, 100])]
        else:
            out[at:at] = out[at : at + rng.choice([1, 4, 100])]
    return bytes(out)


def _changed_json(data: bytes, rng: random.Random) -> bytes:
    """One value replaced, removed or repeated somewhere in a JSON document."""
    value = json.loads(data)
    node = value
    while True:
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = rng.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        change = rng.randrange(4)
        if change == 0:
            del node[key]
        elif change == 1 and isinstance(node[key], int):
            node[key] = node[key] + rng.choice([-1, 1, 16, 2**31])
        elif change == 2 and isinstance(node, dict):
            node[rng.choice(["x", "", "version", *map(str, keys[:3])])] = rng.choice(_VALUES)
        else:
            node[key] = rng.choice(_VALUES)
        break
    return json.dumps(value).encode()


def _bundle_case(folder: Path) -> Callable[[random.Random], None]:
    """Cases over the built-in model: one file is changed, its checksum is corrected."""
    import ouro_edge

    source = Path(ouro_edge.__file__).parent / "nano"

    def case(rng: random.Random) -> None:
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        manifest = target / "ouro_edge.json"
        data = json.loads(manifest.read_text())
        name = rng.choice([*data["files"], "ouro_edge.json", "ouro_edge.json", "ouro_edge.json"])
        content = (target / name).read_bytes()
        is_json = name.endswith(".json") and rng.random() < 0.8
        changed = (_changed_json if is_json else _changed_bytes)(content, rng)
        (target / name).write_bytes(changed)
        if name != "ouro_edge.json":
            data["files"][name] = {"size": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}
            manifest.write_text(json.dumps(data))
        kv = rng.choice(["fp32", "int8", "int4"])
        with ouro_edge.load(target, threads=1, kv=kv, context=64) as model:
            prompt: Any = "Ada likes Ben." if rng.random() < 0.5 else [5, 6, 7]
            list(model.generate(prompt, max_tokens=2))

    return case


def _state_case(folder: Path) -> Callable[[random.Random], None]:
    """Cases over a saved state of the built-in model."""
    import ouro_edge

    models = {kv: ouro_edge.load(threads=1, kv=kv, context=64) for kv in ("fp32", "int8")}  # type: ignore[arg-type]
    states = {}
    for kv, model in models.items():
        sequence = model.new_sequence()
        list(model.generate([5, 6, 7, 8, 9, 10], sequence=sequence, max_tokens=4, exit=ouro_edge.FixedDepth(2)))
        ouro_edge.save_sequence(sequence, folder / "good")
        states[kv] = (folder / "good").read_bytes()

    def case(rng: random.Random) -> None:
        kv = rng.choice(list(models))
        data = states[kv][:-32]
        line, rest = data[: data.index(b"\n")], data[data.index(b"\n") + 1 :]
        kind = rng.randrange(3)
        if kind == 0:
            line = _changed_json(line, rng)
        elif kind == 1:
            rest = _changed_bytes(rest, rng)
        else:
            line = _changed_bytes(line, rng)
        data = line + b"\n" + rest
        (folder / "state").write_bytes(data + hashlib.sha256(data).digest())
        model = models[kv]
        sequence = ouro_edge.load_sequence(model, folder / "state")
        list(model.generate([*sequence.tokens[:8], 11], sequence=sequence, max_tokens=2))

    return case


CASES = {"bundles": _bundle_case, "states": _state_case}


def _work(kind: str, first: int, pipe: Connection) -> None:
    from ouro_edge.errors import OuroEdgeError

    with tempfile.TemporaryDirectory() as folder:
        case = CASES[kind](Path(folder))
        number = first
        while True:
            pipe.send(("begin", number, ""))
            try:
                case(random.Random(f"{kind} {number}"))
                pipe.send(("answer", number, ""))
            except OuroEdgeError as problem:
                text = str(problem)
                long = "\n" in text or not text or len(text) > 2000
                pipe.send(("FAULT", number, f"not one line: {text[:500]!r}") if long else ("refused", number, text))
            except BaseException as problem:
                pipe.send(("FAULT", number, f"{type(problem).__name__}: {str(problem)[:500]}"))
            number += 1


def fuzz(kind: str, minutes: float, first: int) -> int:
    """Run cases for some minutes; the number of faults."""
    context = mp.get_context("spawn")
    counts, number, end = Counter[str](), first, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(kind, number, theirs), daemon=True)
        worker.start()
        theirs.close()
        try:
            while time.monotonic() < end:
                if not ours.poll(_SECONDS):
                    counts["FAULT"] += 1
                    print(f"{kind} {number}: no answer after {_SECONDS:g} seconds", flush=True)
                    break
                what, number, text = ours.recv()
                counts[what] += 1
                if what == "FAULT":
                    print(f"{kind} {number}: {text}", flush=True)
        except EOFError:
            worker.join(10)
            counts["FAULT"] += 1
            print(f"{kind} {number}: the process ended with {worker.exitcode}", flush=True)
        worker.kill()
        worker.join()
        number += 1
    print(f"{counts['begin']} {kind}: {counts['answer']} answers, {counts['refused']} refused in one line, "
          f"{counts['FAULT']} faults; cases {first} to {number}")  # fmt: skip
    return counts["FAULT"]
