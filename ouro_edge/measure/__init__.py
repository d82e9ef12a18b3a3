"""Measures a model on this machine: speed, load time, memory, and the memory bandwidth that bounds decoding.

Returns figures only; the command line formats and prints them.
"""

__all__ = ["bandwidth", "doctor", "own_process", "speed", "streams"]
