"""Tokenizer and text settings of a GGUF file: reading, choosing and writing them."""

__all__ = ["tokenizer", "tokenizer_choice", "vocabulary"]
