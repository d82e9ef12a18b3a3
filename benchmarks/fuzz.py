"""Fuzzing by the clock: requests to a server, exported models and saved states. Exits with 1 if there is a fault.

    python benchmarks/fuzz.py http --minutes 20
    python benchmarks/fuzz.py bundles --minutes 20
    python benchmarks/fuzz.py states --minutes 20

A fault is a status of 500 or more, an answer that is not JSON, a traceback, an exception other than ouro-edge's own,
a message of several lines, a crash, or no answer within a minute. Needs `pip install -e '.[dev]'`.
"""

from __future__ import annotations

import argparse
import sys


def main() -> None:
    """Read the arguments and run one kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["http", "bundles", "states"])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    from fuzzing import files, http

    faults = (
        http.fuzz(args.minutes, args.seed) if args.kind == "http" else files.fuzz(args.kind, args.minutes, args.seed)
    )
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
