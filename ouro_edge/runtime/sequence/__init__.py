"""Token sequences, the frontier of every loop, and the hidden rows between them."""
