"""Other runtimes on models of Ouro's shapes, for benchmarks/peers.py."""
