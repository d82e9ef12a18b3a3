"""What benchmarks/peers.py needs to run other runtimes on models of Ouro's shapes."""
