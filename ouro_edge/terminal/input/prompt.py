"""The input prompt of a terminal: multi-line editing, history, completion, status line. Uses prompt_toolkit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.styles import Style

from ouro_edge.terminal.commands import COMMANDS
from ouro_edge.terminal.display.sanitize import clean
from ouro_edge.terminal.settings import OPTIONS

_STYLE = Style.from_dict({
    "prompt": "bold",
    "placeholder": "ansibrightblack",
    "bottom-toolbar": "noreverse ansibrightblack",
    "bottom-toolbar.text": "noreverse ansibrightblack",
})  # fmt: skip
_PLACEHOLDER = "type a message; /help lists commands"


class Prompt:
    """Reads messages: Enter sends, Alt-Enter or Esc Enter inserts a new line; pasted text may have several lines."""

    def __init__(self, history: History, *, input: Input | None = None, output: Output | None = None) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=history,
            multiline=True,
            key_bindings=_keys(),
            completer=_Commands(),
            complete_while_typing=Condition(self._is_command),
            prompt_continuation="  ",
            placeholder=_placeholder,
            style=_STYLE,
            reserve_space_for_menu=4,
            input=input,
            output=output,
        )

    def lines(self, status: Callable[[], str]) -> Iterator[str]:
        """The messages typed until Ctrl-D; Ctrl-C clears the line."""
        while True:
            try:
                line = self._session.prompt([("class:prompt", "> ")], bottom_toolbar=lambda: clean(status()))
            except EOFError:
                return
            except KeyboardInterrupt:
                continue
            yield line

    def _is_command(self) -> bool:
        text = self._session.default_buffer.text
        return text.startswith("/") and not text.startswith("//")


def _placeholder() -> FormattedText:
    """The placeholder, shown only while the line is being edited: an empty line that was sent must not keep it."""
    return FormattedText([] if get_app().is_done else [("class:placeholder", _PLACEHOLDER)])


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class _Commands(Completer):
    """Completes commands after a slash, then their arguments: setting names and files."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        command, space, argument = text.partition(" ")
        if not text.startswith("/") or "\n" in text:
            return
        if not space:
            yield from _starting(command, [(f"/{c.name}", c.help) for c in COMMANDS])
        elif command == "/set" and " " not in argument:
            yield from _starting(argument, [(name, option.help) for name, option in OPTIONS.items()])
        elif command in ("/save", "/load"):
            yield from self._paths.get_completions(Document(argument), complete_event)


def _starting(typed: str, words: Sequence[tuple[str, str]]) -> Iterator[Completion]:
    for word, help in words:
        if word.startswith(typed):
            yield Completion(word, start_position=-len(typed), display_meta=help)
