"""Features of an exported model against the plain reference."""

from __future__ import annotations

import numpy as np
import pytest
from models import oracle

import ouro_edge
from ouro_edge.arch.config import ModelConfig
from ouro_edge.bundle.directory import open_bundle
from ouro_edge.errors import BundleError
from ouro_edge.fitting import Piece, bytes_per_position, collect, gate_logits, original_gate
from ouro_edge.fitting.gate_features import window


def piece(ids, counted):
    return Piece(tuple(ids), np.array(counted), False)


def test_features_equal_the_reference(checkpoint_of, bundle_of):
    checkpoint = checkpoint_of()
    rng = np.random.default_rng(0)
    pieces = [
        piece(rng.integers(0, 96, 30).tolist(), range(1, 30)),
        piece(rng.integers(0, 96, 300).tolist(), [1, 127, 128, 129, 130, 256, 257, 299]),  # over calls of 128 rows
        piece(rng.integers(0, 96, 7).tolist(), [5]),
    ]
    seen = []
    with ouro_edge.load(bundle_of(checkpoint)) as model:
        features = collect(model, pieces, lambda *a: seen.append(a))
        gates = gate_logits(features.hidden, original_gate(open_bundle(bundle_of(checkpoint))))
    assert seen == [(29, 38, ""), (37, 38, ""), (38, 38, "")]
    assert features.hidden.shape == (4, 38, 48) and features.hidden.dtype == np.float32
    assert features.hidden.nbytes + features.loss.nbytes + features.hits.nbytes == 38 * bytes_per_position(model.config)
    done = 0
    for one in pieces:
        logits, steps = oracle(checkpoint, list(one.ids))
        at, labels = one.counted - 1, np.array(one.ids)[one.counted]
        part = features.part(done, done := done + len(at))
        np.testing.assert_allclose(part.hidden, steps.hidden[:, at], atol=2e-4)
        wide = logits[:, at].astype(np.float64)
        loss = np.log(np.exp(wide).sum(-1)) - np.take_along_axis(wide, labels[None, :, None], -1)[..., 0]
        np.testing.assert_allclose(part.loss, loss, atol=1e-3)
        assert (part.hits == (wide.argmax(-1) == labels)).mean() > 0.99
        np.testing.assert_allclose(gates[done - len(at) : done], steps.gate_logits[at], atol=1e-3)


def test_a_model_that_computes_nonsense_is_refused(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        right = model.logits
        model.logits = lambda rows: right(rows) * np.float32("nan")
        with pytest.raises(BundleError, match="not finite"):
            collect(model, [piece([1, 2, 3], [2])])


def test_the_window_follows_memory_and_context(bundle_of):
    with ouro_edge.load(bundle_of()) as model:
        config = model.config.to_dict()
    sizes = {"num_layers": 24, "num_heads": 16, "num_kv_heads": 16, "head_dim": 128, "max_positions": 65536}
    assert window(ModelConfig.from_dict(config | sizes)) == 341  # 1.5 MiB of KV a token, in 512 MiB
    assert window(ModelConfig.from_dict(config | sizes | {"num_layers": 2000})) == 64
    assert window(ModelConfig.from_dict(config | {"max_positions": 40})) == 40
    assert window(ModelConfig.from_dict(config | {"max_positions": 65536})) == 1024
