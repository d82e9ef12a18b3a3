"""`ouro-edge chat`: an interactive conversation in a terminal, or line by line in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ouro_edge.cli.options import click_option, generation_options, open_model, say, take_load_options
from ouro_edge.errors import RequestError
from ouro_edge.runtime.options import GenerationOptions
from ouro_edge.terminal.settings import CHAT_OPTIONS


@click.command(name="chat")
@click.argument("model", required=False)
@click.option("--system", help="System message.")
@click_option(CHAT_OPTIONS["think"])
@click_option(CHAT_OPTIONS["show_depth"])
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Continue a conversation saved by /save.",
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
    """Chat with MODEL in the terminal.

    /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the conversation. In a terminal, answers are rendered
    as Markdown and Alt-Enter inserts a new line. In a pipe, each line is a message; answers go to standard output,
    everything else to standard error.
    OURO_EDGE_HISTORY sets the file of the input history; an empty value disables it.
    """  # fmt: skip
    from ouro_edge.terminal.conversation import Conversation
    from ouro_edge.terminal.repl import Repl
    from ouro_edge.terminal.start import open_view, run

    if sys.stdin is None:
        raise RequestError("standard input is closed; chat needs it, use run -p instead")
    if resume is not None and system is not None:
        raise RequestError("--resume restores the saved system message: omit --system, or change it with /system")
    loading = take_load_options(settings)
    options = GenerationOptions(**settings)  # reports invalid values before the model is loaded
    with open_model(model, loading, loops=options.forced_loops) as loaded:

        def build(values: Mapping[str, Any]) -> Mapping[str, Any]:
            return GenerationOptions(**values).arguments(loaded)

        build(settings)
        _ = loaded.tokenizer
        if loaded.chat_hint:
            say(f"Note: {loaded.chat_hint.partition(': ')[0]}")
        conversation = Conversation(loaded, system=system)
        conversation.prompt([{"role": "user", "content": ""}])  # report template errors now
        view = open_view(conversation)
        repl = Repl(conversation, view, {**settings, "think": think, "show_depth": show_depth}, build)
        if resume is not None:
            repl.load(resume)
        elif view.lasting:
            view.notice("/help lists the commands, /bye (or Ctrl-D) quits, Ctrl-C stops an answer.")
        run(repl)
    if repl.failed and not view.lasting:
        sys.exit(1)
