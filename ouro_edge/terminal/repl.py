"""The input loop of `chat`: each line is a turn or a command. Must not import terminal libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ouro_edge.errors import ContextOverflowError, RequestError, one_line
from ouro_edge.runtime.saved.state_file import is_saved_sequence, load_sequence, save_sequence
from ouro_edge.terminal.commands import COMMANDS, LEAVING
from ouro_edge.terminal.conversation import Conversation
from ouro_edge.terminal.display.depth import rows
from ouro_edge.terminal.display.view import View
from ouro_edge.terminal.input.interrupt import stop_on_interrupt
from ouro_edge.terminal.saved import SavedChat, read_chat, state_path, write_chat
from ouro_edge.terminal.settings import changed, shown

Build = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # settings -> arguments of Model.generate; RequestError


class Repl:
    """Reads lines and shows answers until the user quits. A failure is one line; the conversation continues."""

    def __init__(self, conversation: Conversation, view: View, values: Mapping[str, Any], build: Build) -> None:
        self.conversation, self.view = conversation, view
        self._values, self._build = dict(values), build
        self.failed = False  # whether any turn failed
        self._commands: Mapping[str, Callable[[str], None]] = {
            command.name: getattr(self, f"_{command.name}") for command in COMMANDS if f"/{command.name}" not in LEAVING
        }

    def run(self) -> None:
        """Run until the input ends or the user types /bye."""
        for line in self.view.lines(self.status):
            line = line.strip()
            if line in LEAVING:
                return
            if line:
                self._handle(line)

    def status(self) -> str:
        """A short status line: context used, and the model."""
        model = self.conversation.model
        used, room = len(self.conversation.sequence), model.config.max_positions
        return f" {used} of {room} tokens of context · {model.name}"

    def load(self, path: Path) -> None:
        """Continue a saved conversation. RequestError when the file cannot be read."""
        chat, talk = read_chat(path), self.conversation
        sequence = None
        if (state := state_path(path)).is_file():
            try:
                sequence = load_sequence(talk.model, state)
            except RequestError as problem:
                self.view.notice(f"{problem}; the conversation will be computed again")
        talk.resume(chat.system, chat.messages, sequence)
        turns, name = len(chat.messages) // 2, talk.model.name
        other = "" if chat.model == name else f" (saved with {one_line(chat.model, 60)}, continued with {name})"
        last = f"; the last question was: {one_line(chat.messages[-2]['content'], 60)}" if chat.messages else ""
        self.view.notice(f"{turns} turn{'s' * (turns != 1)}{other}{last}")

    def _handle(self, line: str) -> None:
        try:
            if not line.startswith("/") or line.startswith("//"):
                self._turn(line.removeprefix("/") if line.startswith("//") else line)
                return
            name, *rest = line.split(maxsplit=1)
            command = self._commands.get(name[1:])
            if command is None:
                raise RequestError(f"{name} is not a command; /help lists them, // sends a line with a leading slash")
            command(rest[0] if rest else "")
        except RequestError as problem:
            hint = "; /clear starts a new conversation" if isinstance(problem, ContextOverflowError) else ""
            self.view.error(f"{problem}{hint}")
        except BrokenPipeError:  # the reader has closed the pipe
            raise
        except (Exception, KeyboardInterrupt) as problem:
            if not self.view.lasting:
                raise
            self.view.error(f"unexpected {type(problem).__name__}: {problem}; the conversation is still here")

    def _turn(self, text: str | None) -> None:
        try:
            self._say(text)
        except BaseException:
            self.failed = True
            raise

    def _say(self, text: str | None) -> None:
        """Send a message, or regenerate the last answer for None."""
        talk, values = self.conversation, self._values
        said = talk.last
        template = {} if values.get("think") is None else {"enable_thinking": values["think"]}
        arguments = self._build(_generation(values))
        with stop_on_interrupt(insist=not self.view.lasting) as cancel:
            options = {"template": template, "cancel": cancel, **arguments}
            events = talk.retry(**options) if text is None else talk.ask(text, **options)
            self.view.answer(events, show_depth=bool(values.get("show_depth")))
        if talk.last is said and cancel.cancelled:
            now = "the old answer is restored" if text is None else "the question is removed"
            self.view.notice(f"(stopped before the first token: {now})")

    def _help(self, _: str) -> None:
        self.view.table([(f"/{c.name} {c.argument}".rstrip(), c.help) for c in COMMANDS])
        self.view.notice(_KEYS if self.view.lasting else _SLASHES)

    def _set(self, argument: str) -> None:
        name, *text = argument.removeprefix("--").split(maxsplit=1)[:2] if argument else ("",)
        if text:
            values = changed(self._values, name, text[0])
            policy = self._build(_generation(values)).get("exit")
            if policy is not None:
                policy.limit(self.conversation.model.config)  # report an error now that every turn would report
            self._values = values
        table = [row for row in shown(self._values) if name in ("", row[0])]
        if not table:
            raise RequestError(f"{name} cannot be set; /set lists the settings")
        self.view.table(table)

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = None if text == "none" else text
        system = self.conversation.system
        self.view.notice("no system message" if system is None else f"system message: {system}")

    def _retry(self, _: str) -> None:
        if not self.conversation.messages:
            raise RequestError("the conversation has no messages yet")
        before = self.conversation.last
        self._turn(None)
        after, sampler = self.conversation.last, self._build(_generation(self._values))["sampler"]
        if before and after and before is not after and before.text == after.text and sampler.temperature == 0:
            self.view.notice("the same answer, because decoding is greedy: /set temp 0.7 varies it")

    def _undo(self, _: str) -> None:
        self.view.notice(f"removed: {one_line(self.conversation.undo(), 60)}")

    def _clear(self, _: str) -> None:
        self.conversation.clear()

    def _think(self, _: str) -> None:
        last = self.conversation.last
        if last is None or not last.thought.strip():
            raise RequestError("the last answer has no reasoning")
        self.view.thought(last.thought)

    def _depth(self, argument: str) -> None:
        last = self.conversation.last
        if last is None:
            raise RequestError("there is no answer yet")
        if argument not in ("", "table"):
            raise RequestError(f"/depth has the argument {argument!r}; expected none or table")
        if argument == "table" or not self.view.depths(last.tokens):
            self.view.table([("token", "depth", "stops at"), *rows(last.tokens)])

    def _stats(self, _: str) -> None:
        self.view.table(self.conversation.figures())

    def _save(self, argument: str) -> None:
        bare = argument.removesuffix("--kv").rstrip()
        path, talk = _path("save", bare), self.conversation
        if path.exists():
            try:
                read_chat(path)
            except RequestError as problem:
                raise RequestError(f"{problem}; it will not be overwritten") from None
        if bare != argument and state_path(path).exists() and not is_saved_sequence(state_path(path)):
            raise RequestError(f"{state_path(path)} is not a saved sequence; it will not be overwritten")
        write_chat(path, SavedChat(talk.model.name, talk.system, talk.messages))
        if bare != argument:
            save_sequence(talk.sequence, state_path(path))
            state_path(path).chmod(0o600)  # it contains the same text
        self.view.notice(f"saved to {path}")

    def _load(self, argument: str) -> None:
        self.load(_path("load", argument))


_SLASHES = "A line is a message; // sends a line that begins with a slash."
_KEYS = (
    "Enter sends, Alt-Enter (or Esc, Enter) begins a new line, arrows browse the history; "
    "Ctrl-C stops an answer; // sends a line that begins with a slash."
)


def _generation(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `Build` accepts."""
    return {name: value for name, value in values.items() if name not in ("think", "show_depth")}


def _path(command: str, argument: str) -> Path:
    if not argument:
        raise RequestError(f"/{command} needs a file name")
    try:
        return Path(argument).expanduser()
    except RuntimeError as problem:
        raise RequestError(f"{argument}: {problem}") from None
