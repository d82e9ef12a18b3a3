"""How fast a bundle runs on this machine, and how fast it could: speeds, load time, memory, memory bandwidth.

Measures only: what to print and how is the command line's affair.
"""
