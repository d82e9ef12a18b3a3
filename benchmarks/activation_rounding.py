"""Measures what rounding activations costs: a model against its own stored weights in float32.

    python benchmarks/activation_rounding.py MODEL... [--tokens 64] [--reference DIR]

For each exported directory: mean KL divergence in nats from the NumPy reference to onnxruntime, and the largest
difference of a logit, for a prompt in one call and for the same tokens one by one. The kernels, and so the figures,
depend on the CPU (docs/boards.md). `--reference DIR` keeps the logits of the reference, so that an emulated machine
need not compute them.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ouro_edge
from ouro_edge.arch import reference
from ouro_edge.bundle import open_bundle
from ouro_edge.evaluation.distances import kl_divergence, log_softmax
from ouro_edge.evaluation.stored_weights import StoredWeights

TEXT = """\
The harbour was built in the twelfth century, when merchants from the north began to trade salt and cloth with
the towns along the river. Its walls were made of grey stone, carried down from the hills by ox cart, and they still
protect the old quarter from the winter storms. Every spring the fishermen repair the gates before the herring return.\
"""

Logits = NDArray[np.floating[Any]]


def reference_logits(path: Path, ids: list[int], cache: Path | None) -> Logits:
    """Logits [T, V] of the stored weights in float32, at full depth."""
    bundle = open_bundle(path)
    name = hashlib.sha256(repr((bundle.weights_id, ids)).encode()).hexdigest()[:16] + ".npy"
    if cache is not None and (cache / name).is_file():
        return np.load(cache / name)
    weights = StoredWeights(bundle)
    logits = reference.head({"head": weights["head"]}, reference.run(bundle.config, weights, np.array(ids)).hidden[-1])
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        np.save(cache / name, logits)
    return logits


def one_by_one(model: ouro_edge.Model, ids: list[int]) -> Logits:
    """Logits [T, V] of decoding: one row a call."""
    sequence, rows = model.new_sequence(), []
    for token in ids:
        sequence.append([token])
        rows.append(sequence.run_until_exit(ouro_edge.FullDepth()).hidden[-1])
    return model.logits(np.stack(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--reference", type=Path)
    options = parser.parse_args()
    print(f"{platform.machine()}; mean KL and largest difference of a logit: prompt; one by one", flush=True)
    for path in options.models:
        with ouro_edge.load(path, kv="fp32", prefill_weights="none", threads=1) as model:
            ids = model.tokenizer.encode(TEXT)[: options.tokens]
            expected = reference_logits(path, ids, options.reference)
            texts = []
            for found in (model.forward(ids, exit=ouro_edge.FullDepth()).logits, one_by_one(model, ids)):
                kl = kl_divergence(log_softmax(expected), log_softmax(found)).mean()
                texts.append(f"{kl:.4f} {np.abs(expected - found).max():.2f}")
            print(f"{path.name:24} {'; '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
