"""Lossless speculation: shallow loops draft tokens, deeper loops verify them."""

__all__ = ["decoder", "draft_policy", "eligibility", "learned"]
