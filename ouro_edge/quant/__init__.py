"""Number formats: which tensor gets how many bits, the packing itself, and what it cost. Pure functions on arrays.

Knows NumPy and the errors. Refuses to know models, files, ONNX and GGUF: the layout happens to be the one that
onnxruntime's MatMulNBits reads, and tests hold that to the bit.
"""

from ouro_edge.quant.blockwise import QuantizedTensor, concatenate, dequantize, dequantize_rows, quantize
from ouro_edge.quant.report import ErrorMeter, TensorError
from ouro_edge.quant.scheme import PRESETS, Recipe, Scheme, preset

__all__ = [
    "PRESETS",
    "ErrorMeter",
    "QuantizedTensor",
    "Recipe",
    "Scheme",
    "TensorError",
    "concatenate",
    "dequantize",
    "dequantize_rows",
    "packing",
    "preset",
    "quantize",
    "rotation",
]
