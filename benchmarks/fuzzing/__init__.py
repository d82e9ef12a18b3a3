"""Fuzzing: requests to a server, exported models and saved states with damaged content. See benchmarks/fuzz.py."""
