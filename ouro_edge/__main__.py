"""Entry point of `ouro-edge` and `python -m ouro_edge`: handles Ctrl-C also while the command line is imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C exits with status 130."""
    try:
        from ouro_edge.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
