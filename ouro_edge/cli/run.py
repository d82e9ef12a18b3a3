"""`ouro-edge run`: answers one prompt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ouro_edge.cli.options import generation_options, open_model, say, take_load_options
from ouro_edge.errors import RequestError, not_text
from ouro_edge.runtime.options import GenerationOptions

if TYPE_CHECKING:
    from ouro_edge.runtime.events import Done, Token


@click.command(name="run")
@click.argument("model", required=False)
@click.option("-p", "--prompt", help="The prompt. Default: standard input.")
@click.option("--ids", help="The prompt as token ids, such as '504 3575 282'; needs no tokenizer.")
@click.option("--system", help="System message.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one object: text, ids, depth per token, usage, timings.")
@generation_options
def command(
    model: str | None,
    prompt: str | None,
    ids: str | None,
    system: str | None,
    raw: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Answer one prompt with MODEL and exit."""
    from ouro_edge.runtime.events import Done
    from ouro_edge.terminal.display.sanitize import clean

    if ids is not None and (prompt is not None or system is not None or raw):
        raise RequestError("--ids is a complete prompt: omit -p, --system and --raw")
    if raw and system is not None:
        raise RequestError("--raw omits the chat template, which holds the system message: omit --system or --raw")
    if settings["temperature"] is None:
        settings["temperature"] = 0.0
    loading, options = take_load_options(settings), GenerationOptions(**settings)
    with open_model(model, loading, loops=options.forced_loops) as loaded:
        arguments = options.arguments(loaded)
        if ids is not None:
            events = loaded.generate(_parse_ids(ids), **arguments)
        else:
            _ = loaded.tokenizer  # report a missing tokenizer before reading standard input
            text = prompt if prompt is not None else _standard_input()
            if raw:
                events = loaded.generate(text, **arguments)
            else:
                if loaded.chat_hint:
                    say(f"Note: {loaded.chat_hint}")
                messages = [{"role": "system", "content": system}] if system is not None else []
                events = loaded.chat([*messages, {"role": "user", "content": text}], **arguments)
        show_text = loaded.has_tokenizer and not as_json
        tokens: list[Token] = []
        for event in events:
            if isinstance(event, Done):
                done = event
            else:
                tokens.append(event)
                if show_text:
                    click.echo(clean(event.text) if sys.stdout.isatty() else event.text, nl=False)
        if as_json:
            click.echo(_json(tokens, done))
        else:
            click.echo("" if show_text else " ".join(str(token.id) for token in tokens))


def _standard_input() -> str:
    if sys.stdin is None:
        raise RequestError("standard input is closed: give the prompt with -p")
    if sys.stdin.isatty():
        click.echo("Prompt (end with Ctrl-D):", err=True)
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as problem:
        raise RequestError(not_text("standard input", problem)) from None


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise RequestError(f"--ids is {text!r}; expected whole numbers, such as '504 3575 282'") from None


def _json(tokens: list[Token], done: Done) -> str:
    import dataclasses
    import json

    usage = dataclasses.asdict(done.usage) | {"loops_full": done.usage.loops_full}
    rate = done.timings.decode_rate(done.usage.completion_tokens)
    return json.dumps(
        {
            "text": done.text,
            "ids": [token.id for token in tokens],
            "depth": [token.depth for token in tokens],
            "logprobs": [token.logprob for token in tokens],
            "reason": done.reason,
            "usage": usage,
            "timings": {**dataclasses.asdict(done.timings), "tokens_per_second": rate},
        },
        ensure_ascii=(sys.stdout.encoding or "").lower().replace("-", "") != "utf8",
    )
