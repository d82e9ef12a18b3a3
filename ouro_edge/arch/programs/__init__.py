"""The families whose passes are not "one block, R times": a file each, and what early exits mean with a coda."""

__all__ = ["hrm_text", "raven", "raven_reference"]
