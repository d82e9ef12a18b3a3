"""Calibration steps that run an exported model: KV ranges, and fitting the exit gate (Stage II) without torch.

calibrate_kv.py   text -> ranges of keys and values, for int8 and int4 KV caches
gate_pipeline.py  text -> a fitted exit gate and its trade-off, by means of:

gate_data.py      lines of a JSONL file -> pieces of token ids, for fitting and held out
gate_features.py  pieces -> hidden states and losses of every loop, on the exported (quantised) model
gate_fit.py       features -> a gate
gate_tradeoff.py  features and a gate -> loss and accuracy by depth; the threshold for a loop budget
"""

from ouro_edge.fitting.calibrate_kv import Calibration, calibrate
from ouro_edge.fitting.gate_data import Piece, draw, encode, read_lines
from ouro_edge.fitting.gate_features import Features, bytes_per_position, collect
from ouro_edge.fitting.gate_fit import OBJECTIVES, Fit, Objective, fit_to_features, gate_logits, original_gate, targets
from ouro_edge.fitting.gate_pipeline import GateFit, fit_gate
from ouro_edge.fitting.gate_tradeoff import Comparison, Point, at_depth, at_threshold, choose_threshold, compare

__all__ = [
    "OBJECTIVES",
    "Calibration",
    "Comparison",
    "Features",
    "Fit",
    "GateFit",
    "Objective",
    "Piece",
    "Point",
    "at_depth",
    "at_threshold",
    "bytes_per_position",
    "calibrate",
    "calibrate_kv",
    "calibrate_weights",
    "choose_threshold",
    "collect",
    "compare",
    "draw",
    "encode",
    "export_rounding",
    "fit_gate",
    "fit_to_features",
    "gate_logits",
    "gate_pipeline",
    "original_gate",
    "read_lines",
    "targets",
]
