"""Blocks of GGUF types in the layout of MatMulNBits: `repack` for Q4_0, Q4_1, Q8_0, `coded` for K-quants, Q5, IQ4."""

__all__ = ["coded", "repack"]
