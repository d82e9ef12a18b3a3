"""`ouro-edge chat` on a real terminal: a process behind a pseudo-terminal, its screen kept by pyte."""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
import time

import pyte
import pytest

if sys.platform == "win32":
    pytest.skip("no pseudo-terminals", allow_module_level=True)
import fcntl
import termios

QUESTION = "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"
PATIENCE = 120  # seconds until a test gives up; nothing is measured


class Screen(pyte.HistoryScreen):
    """Answers what programs ask of a terminal (where the cursor is)."""

    def __init__(self, width, height, handle):
        super().__init__(width, height, history=1000, ratio=1)
        self.handle = handle

    def write_process_input(self, data):
        os.write(self.handle, data.encode())


class Terminal:
    """A process and its screen."""

    def __init__(self, *arguments, width=80, height=24, **environment):
        self.handle, child = os.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.screen = Screen(width, height, self.handle)
        self.stream, self.raw = pyte.ByteStream(self.screen), b""
        plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES", "COLORTERM")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ouro_edge", "chat", *map(str, arguments)],
            stdin=child, stdout=child, stderr=child, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**plain, "TERM": "xterm-256color", "OPENBLAS_NUM_THREADS": "1", **environment},
        )  # fmt: skip
        os.close(child)

    @property
    def text(self):
        """Everything that was shown, without trailing spaces."""
        top = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*top, *self.screen.display])

    def send(self, keys):
        os.write(self.handle, keys.encode())

    def until(self, condition):
        """Read until the condition holds; a number of occurrences of a text may be given as (text, count)."""
        if isinstance(condition, tuple):
            text, count = condition
            condition = lambda: self.text.count(text) >= count  # noqa: E731
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.text
            if select.select([self.handle], [], [], 0.1)[0]:
                try:
                    data = os.read(self.handle, 65536)
                except OSError:  # the other end is closed
                    data = b""
                if not data:
                    self.process.wait(PATIENCE)
                    assert condition(), self.text
                    return
                self.raw += data
                self.stream.feed(data)

    def ends(self):
        """The exit code, once everything was read."""
        self.until(lambda: self.process.poll() is not None)
        return self.process.returncode


@pytest.fixture
def terminal(tmp_path):
    made = []

    def start(*arguments, **settings):
        settings.setdefault("OURO_EDGE_HISTORY", str(tmp_path / "history"))
        made.append(Terminal(*arguments, **settings))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        os.close(one.handle)


def test_a_conversation(terminal, tmp_path):
    chat = terminal()
    chat.until(("tokens of context", 1))
    chat.send(QUESTION + "\r")
    chat.until(("loops saved]", 1))
    chat.send("/undo\r")
    chat.until(("removed: Ada", 1))
    chat.send("\x04")
    assert chat.ends() == 0
    lines = chat.text.split("\n")
    at = lines.index("> " + QUESTION)
    assert lines[at + 1 : at + 3] == ["Cleo", ""] and lines[at + 3].startswith("[2 tokens")
    assert QUESTION in (tmp_path / "history").read_text()


def test_ctrl_c_stops_an_answer_and_nothing_else(terminal, bundle_of, checkpoint_of):
    from toy_text import add_tokenizer

    model = bundle_of(add_tokenizer(checkpoint_of(vocab_size=300, max_position_embeddings=8192)))
    endless = ("--logit-bias", 0, -1000, "--logit-bias", 2, -1000)
    chat = terminal(model, "--temp", 1, *endless)
    chat.until(("tokens of context", 1))
    chat.send("hello\r")
    chat.until(lambda: "…".encode() in chat.raw)  # it is answering
    chat.send("\x03\x03\x03")
    chat.until(("(stopped", 1))
    chat.send("\x03\x03/stats\r")
    chat.until(("tokens generated", 1))
    os.kill(chat.process.pid, signal.SIGINT)  # as from outside, at the prompt
    chat.send("/bye\r")
    assert chat.ends() == 0 and "Traceback" not in chat.text


@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_broken_by_the_terminal_itself(terminal, width):
    chat = terminal(width=width, height=50)
    chat.until(("tokens of context", 1))
    chat.send("/help\r")
    chat.until(("begins with a slash.", 1) if width > 50 else ("slash.", 1))
    chat.send("/bye\r")
    assert chat.ends() == 0
    help_lines = chat.text[chat.text.index("/help  ") :].split("\n")
    assert any(line.startswith("/set [NAME VALUE]") for line in help_lines)


def test_no_color(terminal):
    chat = terminal("--show-depth", NO_COLOR="1")
    chat.until(("tokens of context", 1))
    chat.send(QUESTION + "\r")
    chat.until(("loops saved]", 1))
    chat.send("/bye\r")
    assert chat.ends() == 0 and "tokens by loops" in chat.text
    colours = {cell.fg for line in chat.screen.buffer.values() for cell in line.values()}
    assert colours == {"default"}


def test_a_dumb_terminal_gets_plain_lines(terminal):
    chat = terminal(TERM="dumb")
    chat.until(lambda: b"> " in chat.raw)
    chat.send(QUESTION + "\n")
    chat.until(("loops saved]", 1))
    chat.send("/bye\n")
    assert chat.ends() == 0 and "Cleo" in chat.text
    assert b"\x1b[" not in chat.raw.replace(b"\x1b[?2004h", b"").replace(b"\x1b[?2004l", b"")


def test_history_that_cannot_be_kept_is_said_and_harmless(terminal, tmp_path):
    chat = terminal(OURO_EDGE_HISTORY=str(tmp_path))
    chat.until(("history will not be stored", 1))
    chat.until(("tokens of context", 1))
    chat.send(QUESTION + "\r")
    chat.until(("loops saved]", 1))
    chat.send("\x04")
    assert chat.ends() == 0
