"""The sizes of published models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that differ between the published models, or that tests reduce."""

    layers: int
    hidden: int = 2048
    intermediate: int = 5632
    heads: int = 16
    head_dim: int = 128
    vocab: int = 49152
    positions: int = 65536
    family: str = "ouro"  # model_type
    kv_heads: int | None = None  # None: as many as heads
    stacks: tuple[int, ...] = ()  # layers of prelude, core and coda of a Raven model


SHAPES = {
    "1.4b": Shape(layers=24),
    "2.6b": Shape(layers=48),
    "nanbeige4.2-3b": Shape(
        layers=22,
        hidden=3072,
        intermediate=10752,
        heads=48,
        kv_heads=8,
        vocab=166144,
        positions=262144,
        family="nanbeige",
    ),
    "hrm-text-1b": Shape(  # layers of one of the two stacks
        layers=16,
        hidden=1536,
        intermediate=4096,
        heads=12,
        vocab=65536,
        positions=4096,
        family="hrm_text",
    ),
    "tiny-nanbeige": Shape(
        layers=3,
        hidden=64,
        intermediate=176,
        heads=4,
        head_dim=16,
        vocab=384,
        positions=512,
        family="nanbeige",
        kv_heads=2,
    ),
    "tiny": Shape(layers=3, hidden=64, intermediate=176, heads=4, head_dim=16, vocab=384, positions=512),
    "recurrent-llama-1b": Shape(
        layers=14,
        intermediate=8192,
        heads=32,
        head_dim=64,
        vocab=128256,
        positions=131072,
        kv_heads=8,
        stacks=(4, 6, 4),
        family="huginn_raven",
    ),
}
