"""`ouro-edge chat`: a conversation in the terminal, or line by line in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ouro_edge.cli.options import generation_arguments, generation_options, open_model
from ouro_edge.errors import RequestError


@click.command(name="chat")
@click.argument("model", required=False)
@click.option("--system", help="System message.")
@click.option("--think/--no-think", default=None, help="Set enable_thinking in the chat template.")
@click.option(
    "--show-depth",
    is_flag=True,
    help="Tint tokens by the loops they took (NO_COLOR: dim to bold; in a pipe: numbers on stderr).",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Go on with a conversation that /save has written.",
)
@generation_options
def command(
    model: str | None,
    system: str | None,
    think: bool | None,
    show_depth: bool,
    resume: Path | None,
    **settings: Any,
) -> None:
    """Talk with MODEL: /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the conversation.

    In a terminal answers are drawn as Markdown, and Alt-Enter begins a new line. In a pipe a line is a message,
    answers go to standard output, everything else to standard error.
    OURO_EDGE_HISTORY names the file that remembers your lines; empty, none is kept.
    """  # fmt: skip
    from ouro_edge.terminal.conversation import Conversation
    from ouro_edge.terminal.repl import Repl
    from ouro_edge.terminal.start import open_view, run

    if sys.stdin is None:
        raise RequestError("standard input is closed: chat needs one, run -p does not")
    if resume is not None and system is not None:
        raise RequestError("--resume brings its own system message: leave --system out, or change it with /system")
    with open_model(model, settings) as loaded:

        def build(values: Mapping[str, Any]) -> dict[str, Any]:
            return generation_arguments(loaded, **values)

        build(settings)
        _ = loaded.tokenizer
        conversation = Conversation(loaded, system=system)
        conversation.prompt([{"role": "user", "content": ""}])  # refuse now what cannot work later
        view = open_view(conversation)
        repl = Repl(conversation, view, {**settings, "think": think, "show_depth": show_depth}, build)
        if resume is not None:
            repl.load(resume)
        elif view.lasting:
            view.notice("/help lists the commands, /bye (or Ctrl-D) leaves, Ctrl-C stops an answer.")
        run(repl)
    if repl.failed and not view.lasting:
        sys.exit(1)
