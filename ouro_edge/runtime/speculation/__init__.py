"""Lossless speculation: shallow loops draft tokens, deeper loops verify them."""
