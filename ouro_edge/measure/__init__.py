"""How fast a bundle runs on this machine, and how fast it could: speeds, load time, memory, memory bandwidth.

Measures only: the command line prints.
"""

__all__ = ["bandwidth", "own_process", "speed"]
