"""A model that says what a test wants, and a terminal in memory that a test can read."""

from __future__ import annotations

from types import SimpleNamespace

import pyte
import pytest
from rich.console import Console

from ouro_edge.errors import RequestError
from ouro_edge.loading import load
from ouro_edge.runtime.events import Done, Timings, Token, Usage
from ouro_edge.runtime.text.reasoning import KNOWN
from ouro_edge.terminal.conversation import Piece
from ouro_edge.terminal.display.markdown import THEME

SPECIAL = {7: "<think>", 8: "</think>", 9: "<|im_end|>"}


class ScriptedModel:
    """Stands in for Model: each call of generate says the next text, token by token (a string, or a special id)."""

    def __init__(self, *answers, opening="", broken_after=None):
        self.answers, self.opening, self.broken_after = list(answers), opening, broken_after
        self.kv = "fp32"
        self.config = SimpleNamespace(loops=4, max_positions=1000)
        self.name, self.reasoning_tags = "scripted", KNOWN[0]
        self.stop_ids = (9,)
        self.tokenizer = SimpleNamespace(
            encode=lambda text: [text],
            decode=lambda ids, skip_special: None,
            token_id=lambda text: {v: k for k, v in SPECIAL.items()}.get(text),
            is_special=SPECIAL.__contains__,
            piece=SPECIAL.get,
        )
        self.prompts = []

    def prefix_of(self, ids):
        return 0

    def new_sequence(self):
        return []  # has a length, as much as the loop asks of it

    def render(self, messages, **variables):
        return "".join(f"{m['role']}: {m['content']}\n" for m in messages) + "assistant: " + self.opening

    def generate(self, prompt, *, cancel=None, sequence=None, **options):
        self.prompts += prompt
        script = self.answers.pop(0)
        if isinstance(script, Exception):
            raise script

        def events():
            count = 0
            for part in script:
                if isinstance(part, Exception):
                    raise part
                if cancel is not None and cancel.cancelled:
                    break
                count += 1
                text = part if isinstance(part, str) else ""
                yield Token(part if isinstance(part, int) else 100, text, -0.1, 1 + count % 4, (0.5, 0.5))
            yield Done("stop", "", Usage(10, 0, count, 20, 20, 5, 2.0), Timings(0.1, 1.0))

        return events()


@pytest.fixture
def scripted():
    return ScriptedModel


@pytest.fixture(scope="session")
def nano():
    """The model in the box: it answers puzzles, the same way every time."""
    with load() as model:
        yield model


class Memory:
    """A pyte screen that a rich console writes to; everything that ever scrolled off is kept."""

    def __init__(self, width=80, height=24, color_system="truecolor", **settings):
        self.screen = pyte.HistoryScreen(width, height, history=10_000, ratio=1)
        self.screen.set_mode(pyte.modes.LNM)  # a terminal driver turns newlines into both
        self.stream = pyte.Stream(self.screen)
        self.raw = ""
        self.console = Console(
            file=self, force_terminal=True, width=width, height=height, color_system=color_system,
            highlight=False, markup=False, emoji=False, theme=THEME, legacy_windows=False, _environ={}, **settings,
        )  # fmt: skip

    def write(self, text):
        self.raw += text
        self.stream.feed(text)
        return len(text)

    def flush(self):
        pass

    @property
    def lines(self):
        """What a user sees when scrolling back, without trailing spaces and empty lines at the end."""
        top = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*top, *self.screen.display]).rstrip().split("\n")


@pytest.fixture
def memory():
    return Memory


@pytest.fixture
def pieces():
    """Pieces and Done of an answer that comes in parts, each part a token."""

    def make(parts, thought=()):
        count = 0
        for thinking, texts in ((True, thought), (False, parts)):
            for text in texts:
                count += 1
                yield Piece(text, thinking, 1 + count % 4, count)
        yield Done("stop", "", Usage(10, 0, count, 20, 20, 5, 2.0), Timings(0.1, 1.0))

    return make


@pytest.fixture
def refusal():
    return RequestError("the template refuses it")
