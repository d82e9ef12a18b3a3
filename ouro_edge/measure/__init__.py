"""Measures a model on this machine: speed, load time, memory, memory bandwidth, and the quality of its answers.

Returns figures only; the command line formats and prints them.
"""

__all__ = ["bandwidth", "doctor", "own_process", "quality", "quality_chart", "speed", "streams"]
