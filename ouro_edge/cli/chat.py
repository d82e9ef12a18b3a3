"""`ouro-edge chat`: a conversation in the terminal. Plain input and output, so that it works in a pipe too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from ouro_edge.cli.interrupt import stop_on_interrupt
from ouro_edge.cli.options import generation_arguments, generation_options, open_model
from ouro_edge.errors import ContextOverflowError, RequestError

if TYPE_CHECKING:
    from ouro_edge.runtime.events import Done
    from ouro_edge.runtime.model import Model
    from ouro_edge.runtime.sequence import TokenSequence

_HELP = (
    "/clear forgets the conversation, /bye (or Ctrl-D) leaves, // sends a line with a slash; Ctrl-C stops an answer."
)


@click.command(name="chat")
@click.argument("model", required=False)
@click.option("--system", help="System message.")
@click.option("--think/--no-think", default=None, help="Set enable_thinking in the chat template.")
@generation_options
def command(
    model: str | None,
    system: str | None,
    think: bool | None,
    threads: int | None,
    kv: str,
    kv_share: str,
    context: int | None,
    **settings: Any,
) -> None:
    """Talk with MODEL. Ctrl-C stops an answer, Ctrl-D ends the conversation."""
    if sys.stdin is None:
        raise RequestError("standard input is closed: chat needs one, run -p does not")
    with open_model(model, threads=threads, kv=kv, kv_share=kv_share, context=context) as loaded:
        arguments = generation_arguments(loaded, **settings)
        start: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
        template = {} if think is None else {"enable_thinking": think}
        _ = loaded.tokenizer
        loaded.render([*start, {"role": "user", "content": ""}], **template)  # refuse now what cannot work later
        interactive, failed = sys.stdin.isatty(), False
        if interactive:
            click.echo(_HELP, err=True)
        messages = list(start)
        sequence = loaded.new_sequence()
        for line in _lines():
            if line in ("/bye", "/exit", "/quit"):
                break
            if line == "/help":
                click.echo(_HELP, err=True)
            elif line == "/clear":
                messages, sequence = list(start), loaded.new_sequence()
            elif line.startswith("/") and not line.startswith("//"):
                click.echo(f"{line.split()[0]} is no command. {_HELP}", err=True)
            elif line:
                messages.append({"role": "user", "content": line.removeprefix("/") if line[:2] == "//" else line})
                try:
                    answer = _answer(loaded, messages, sequence, template, arguments)
                except RequestError as problem:
                    hint = "; /clear starts anew" if isinstance(problem, ContextOverflowError) else ""
                    click.echo(f"Error: {problem}{hint}", err=True)
                    messages.pop()
                    failed = True
                else:
                    messages.append({"role": "assistant", "content": answer})
    if failed and not interactive:
        sys.exit(1)


def _answer(
    model: Model,
    messages: list[dict[str, str]],
    sequence: TokenSequence,
    template: dict[str, bool],
    arguments: dict[str, Any],
) -> str:
    """Stream one answer; what was said before a Ctrl-C stays said."""
    from ouro_edge.runtime.events import Done

    with stop_on_interrupt() as cancel:
        for event in model.chat(messages, template=template, sequence=sequence, cancel=cancel, **arguments):
            if isinstance(event, Done):
                click.echo()
                if sys.stdin.isatty():
                    click.echo(click.style(_summary(event), dim=True), err=True)
                return event.text
            click.echo(event.text, nl=False)
    raise AssertionError("generation ended without Done")


def _summary(done: Done) -> str:
    usage = done.usage
    rate = done.timings.decode_rate(usage.completion_tokens)
    stopped = " (stopped)" if done.reason == "cancelled" else ""
    return (
        f"[{usage.completion_tokens} tokens, {rate:.1f} tokens/s, mean depth {usage.mean_depth:.2f}, "
        f"{usage.loops_saved} of {usage.loops_full} loops saved]{stopped}"
    )


def _lines() -> Iterator[str]:
    """The user's lines, with the terminal's own editing where there is a terminal."""
    with _line_editing():
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "")
            except EOFError:
                return
            except UnicodeDecodeError as problem:
                raise RequestError(f"standard input is no {problem.encoding} text: {problem.reason}") from None
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                click.echo("\n(Ctrl-D or /bye leaves)", err=True)
                continue
            yield line.strip()


@contextmanager
def _line_editing() -> Iterator[None]:
    with suppress(ImportError):  # Windows has none; its console edits lines by itself
        import readline  # noqa: F401  (importing it is what gives input() a history)
    yield
