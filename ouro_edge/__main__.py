"""Entry point of `ouro-edge` and `python -m ouro_edge`: handles Ctrl-C also while the command line is imported."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C exits with status 130."""
    try:
        _open_missing_streams()
        from ouro_edge.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


def _open_missing_streams() -> None:
    """Open the null device for standard streams that are closed (`>&-`), so that printing cannot fail.

    Without it, a file that is opened later, such as a model, could also get the number of a standard stream. Standard
    input stays None: commands that need it say so.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


if __name__ == "__main__":
    main()
