"""Fitting an exit gate on the device, without torch: text -> features -> Stage II -> what it gains. Knows the runtime.

data.py      lines of a JSONL file -> pieces of token ids, fitting and held out
features.py  pieces -> hidden states and losses of every loop, on the exported (quantised) model
fit.py       features -> a gate
tradeoff.py  features and a gate -> depth against loss and accuracy; the threshold for a budget
"""

from ouro_edge.fitting.gate_data import Piece, draw, encode, read_lines
from ouro_edge.fitting.gate_features import Features, bytes_per_position, collect
from ouro_edge.fitting.gate_fit import OBJECTIVES, Fit, Objective, fit_gate, gate_logits, original_gate, targets
from ouro_edge.fitting.gate_tradeoff import Point, at_depth, at_threshold, choose_threshold

__all__ = [
    "OBJECTIVES",
    "Features",
    "Fit",
    "Objective",
    "Piece",
    "Point",
    "at_depth",
    "at_threshold",
    "bytes_per_position",
    "choose_threshold",
    "collect",
    "draw",
    "encode",
    "fit_gate",
    "gate_logits",
    "original_gate",
    "read_lines",
    "targets",
]
