"""The command `optimum-cli export ouro-edge`. Must not load torch.

`REGISTER_COMMANDS` is the list that optimum-cli reads through the distribution optimum-ouro-edge, at every start: so
this module imports nothing large.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from ouro_edge.errors import OuroEdgeError, one_line


class OuroEdgeExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Those options of `ouro-edge export` that choose what is written, by the same names and defaults."""

    COMMAND = CommandInfo(name="ouro-edge", help="Export a looped model (Ouro) in 4 or 8 bits, to run with ouro-edge")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "-m", "--model", required=True, metavar="SRC", help="Checkpoint directory, .gguf file or hub id."
        )
        parser.add_argument("output", type=Path, metavar="OUT", help="Directory to write.")
        parser.add_argument("-p", "--precision", default="int4", metavar="int4|int8|fp32", help="Default: int4.")
        parser.add_argument("--block-size", type=int, help="Weights that share a scale. Default: 128, for int8 32.")
        symmetry = parser.add_mutually_exclusive_group()
        symmetry.add_argument("--symmetric", action="store_true", default=None, help="Without zero points.")
        symmetry.add_argument(
            "--asymmetric", action="store_false", dest="symmetric", help="With zero points. Default for int8."
        )
        parser.add_argument("--revision", help="Branch, tag or commit of a hub id.")
        parser.add_argument(
            "--no-calibration", action="store_true", help="Measure no KV ranges: the cache then stays in float32."
        )
        parser.add_argument("--overwrite", action="store_true", help="Replace OUT if it is an exported model.")

    def run(self) -> None:
        """Export; what goes wrong is one line and exit code 1."""
        from ouro_edge.convert import BUILT_IN_TEXT, export

        args = self.args
        try:
            result = export(
                args.model, args.output, precision=args.precision, block_size=args.block_size,
                symmetric=args.symmetric, format="bundle", revision=args.revision,
                calibration=None if args.no_calibration else BUILT_IN_TEXT, overwrite=args.overwrite,
            )  # fmt: skip
        except OuroEdgeError as problem:
            sys.exit(f"Error: {one_line(problem)}")
        for note in result.notes:
            print(f"Note: {note}", file=sys.stderr)
        print(f"{args.output}: run it with ouro-edge chat {args.output}")


REGISTER_COMMANDS = [(OuroEdgeExportCommand, ExportCommand)]
