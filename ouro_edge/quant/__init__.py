"""Number formats: bits per tensor, packing, scale search and error reports. Pure functions on arrays.

Must not import file formats (ONNX, GGUF) or the runtime. The packed layout is the one that onnxruntime's MatMulNBits
reads; tests check that bit for bit.
"""

from ouro_edge.quant.blockwise import QuantizedTensor, concatenate, dequantize, dequantize_rows, quantize
from ouro_edge.quant.grid import Grid, Rounded, grid_of
from ouro_edge.quant.objective import Objective
from ouro_edge.quant.report import ErrorMeter, TensorError
from ouro_edge.quant.rounding import round_matrix
from ouro_edge.quant.scheme import PRESETS, Recipe, Scheme, preset

__all__ = [
    "PRESETS",
    "ErrorMeter",
    "Grid",
    "Objective",
    "QuantizedTensor",
    "Recipe",
    "Rounded",
    "Scheme",
    "TensorError",
    "concatenate",
    "dequantize",
    "dequantize_rows",
    "grid_of",
    "packing",
    "preset",
    "quantize",
    "rotation",
    "round_matrix",
]
