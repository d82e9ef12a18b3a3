"""The loop: commands and turns, with a view that only writes down what it is told."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from ouro_edge.errors import RequestError
from ouro_edge.loading import load
from ouro_edge.runtime.options import GenerationOptions
from ouro_edge.terminal.commands import COMMANDS
from ouro_edge.terminal.conversation import Conversation
from ouro_edge.terminal.repl import Repl
from ouro_edge.terminal.settings import OPTIONS, changed, shown

QUESTION = "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"
NOTHING_SET = {
    "exit": None, "exit_threshold": None, "loops": None, "loop_budget": None, "max_tokens": None, "stop": (),
    "logit_bias": {}, "temperature": None, "top_k": None, "top_p": None, "min_p": None, "repetition_penalty": None,
    "seed": None, "speculate": None, "force_loops": False, "prefix": None, "think": None, "show_depth": False,
}  # fmt: skip


class Notebook:
    """A view that remembers."""

    script: Iterable[str]

    def __init__(self, lasting=True):
        self.lasting, self.said, self.errors, self.answers, self.shows_depth = lasting, [], [], [], []

    def lines(self, status):
        assert "tokens of context" in status()
        yield from self.script

    def notice(self, text):
        self.said.append(text)

    def error(self, text):
        self.errors.append(text)

    def table(self, rows):
        self.said += [" | ".join(row) for row in rows]

    def answer(self, events, *, show_depth):
        self.shows_depth.append(show_depth)
        self.answers.append("".join(event.text for event in events if not hasattr(event, "usage")))

    def thought(self, text):
        self.said.append(f"thought: {text}")

    def depths(self, tokens):
        self.said.append("depths: " + " ".join(str(token.depth) for token in tokens))
        return True


def hold(model, *lines, lasting=True):
    """Hold a conversation; returns what was noted, and the loop."""
    view = Notebook(lasting)
    view.script = lines
    repl = Repl(Conversation(model), view, NOTHING_SET, lambda values: GenerationOptions(**values).arguments(model))
    repl.run()
    return view, repl


def test_settings_and_the_command_line_have_the_same_names():
    from ouro_edge.cli.chat import command

    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {f"--{name}" for name in OPTIONS} <= options
    assert {option.name for option in OPTIONS.values()} <= {parameter.name for parameter in command.params}
    assert set(NOTHING_SET) - {"logit_bias"} == {option.name for option in OPTIONS.values()}


def test_a_conversation(nano):
    view, repl = hold(nano, QUESTION, "", "/depth", "/stats", "/bye", "not read")
    assert view.answers == ["Cleo"] and not view.errors and not repl.failed
    assert view.said[0].startswith("depths: ") and "turns | 1" in view.said


def test_settings_change_the_next_answer(nano):
    view, _ = hold(nano, "/set loops 1", QUESTION, "/depth", "/set show-depth on", "/set exit-threshold 0.5", QUESTION)
    assert "depths: 1 1" in view.said and view.shows_depth == [False, True]
    assert view.answers[1] == "Cleo" and not view.errors  # the threshold has replaced the fixed depth


def test_set_shows_what_is_set(nano):
    view, _ = hold(nano, "/set seed 5", "/set", "/set seed default", "/set --seed", "/set stop a b")
    assert view.said[0].startswith("seed | 5") and len([x for x in view.said if x.startswith("temp |")]) == 1
    assert view.said[-2].startswith("seed | default") and view.said[-1].startswith("stop | 'a b'")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/nonsense", "is not a command"),
        ("/etc/passwd", "is not a command"),
        ("/set luck 3", "cannot be set"),
        ("/set luck", "cannot be set"),
        ("/set temp hot", "expected a number from 0 to 100, or default"),
        ("/set max-tokens 0", "a whole number of at least 1"),
        ("/set temp -1", "temperature"),
        ("/set think maybe", "on or off"),
        ("/set loops 9", "1 to 4"),
        ("/set exit luck", "confidence:P"),
        ("/undo", "has no messages yet"),
        ("/retry", "has no messages yet"),
        ("/depth", "no answer yet"),
        ("/think", "no reasoning"),
        ("/save", "needs a file name"),
        ("/save --kv", "needs a file name"),
        ("/load", "needs a file name"),
        ("/load /nowhere/at/all", "missing"),
        ("/save /", "will not be overwritten"),
        ("/save /nowhere/at/all", "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(nano, line, says):
    view, repl = hold(nano, line, QUESTION)
    assert len(view.errors) == 1 and says in view.errors[0] and "\n" not in view.errors[0]
    assert view.answers == ["Cleo"] and not repl.failed


def test_a_refused_setting_is_not_kept():
    with pytest.raises(RequestError):
        changed(NOTHING_SET, "temp", "x")
    assert changed(NOTHING_SET, "--temp", "0.5")["temperature"] == 0.5
    assert ("think", "on") in [row[:2] for row in shown({**NOTHING_SET, "think": True})]


def test_help_names_every_command(nano):
    view, _ = hold(nano, "/help")
    assert all(any(line.startswith(f"/{command.name}") for line in view.said) for command in COMMANDS)


def test_undo_retry_and_a_slash(nano):
    view, repl = hold(nano, QUESTION, "/retry", "//etc", "/undo")
    assert view.answers[:2] == ["Cleo", "Cleo"] and len(view.answers) == 3
    assert any("the same answer" in line for line in view.said) and view.said[-1] == "removed: /etc"
    assert len(repl.conversation.messages) == 2


def test_system_message(nano):
    view, repl = hold(nano, "/system", "/system be\nkind", "/system")
    assert view.said[0] == "no system message" and view.said[2] == "system message: be\nkind"
    assert repl.conversation.prompt([])  # it is handed to the template
    view, repl = hold(nano, "/system x", "/system none")
    assert repl.conversation.system is None


def test_save_and_load(nano, tmp_path):
    file = tmp_path / "a chat.json"
    hold(nano, "/system be kind", QUESTION, f"/save {file}", f"/save {file}")
    assert [path.name for path in tmp_path.iterdir()] == ["a chat.json"]
    view, repl = hold(nano, f"/load {file}", "/retry")
    assert view.answers == ["Cleo"] and repl.conversation.system == "be kind" and QUESTION[:40] in view.said[0]
    (tmp_path / "mine.txt").write_text("precious")
    view, _ = hold(nano, f"/save {tmp_path / 'mine.txt'}")
    assert "will not be overwritten" in view.errors[0] and (tmp_path / "mine.txt").read_text() == "precious"
    (tmp_path / "notes.kv").write_text("precious")
    view, _ = hold(nano, QUESTION, f"/save {tmp_path / 'notes'} --kv")
    assert "will not be overwritten" in view.errors[0] and (tmp_path / "notes.kv").read_text() == "precious"
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "model": "another\x1b[2J"}))
    view, _ = hold(nano, f"/load {file}")
    assert "saved with another" in view.said[0] and "\x1b" not in view.said[0]


@pytest.fixture(scope="module")
def talker(bundle_of, checkpoint_of):
    """A random model whose template shows it the whole history."""
    from toy_text import add_tokenizer

    with load(bundle_of(add_tokenizer(checkpoint_of(vocab_size=300)))) as model:
        yield model


def cached(repl):
    done = repl.conversation.last.done
    return done.usage.cached_tokens, done.usage.prompt_tokens


def test_a_resumed_conversation_is_not_read_again(talker, tmp_path):
    file = tmp_path / "chat.json"
    _, first = hold(talker, "/set max-tokens 5", "hello there", f"/save {file} --kv")
    view, resumed = hold(talker, f"/load {file}", "/set max-tokens 5", "and you")
    kept, prompt = cached(resumed)
    assert len(first.conversation.sequence) <= kept and not view.errors
    (tmp_path / "chat.json.kv").write_bytes(b"damaged")
    view, again = hold(talker, f"/load {file}", "/set max-tokens 5", "and you")
    assert cached(again)[0] == 0 and prompt and "will be computed again" in view.said[0]
    assert len(again.conversation.messages) == 4


def test_what_breaks_does_not_end_a_conversation_with_a_person(nano, monkeypatch):
    calls = []

    def breaks(*_, **__):
        calls.append(1)
        raise RuntimeError("device\nlost")

    monkeypatch.setattr("ouro_edge.runtime.model.Model.generate", breaks)
    view, repl = hold(nano, "hello", "again")
    assert len(view.errors) == len(calls) == 2 and "unexpected RuntimeError" in view.errors[0] and repl.failed
    with pytest.raises(RuntimeError):
        hold(nano, "hello", lasting=False)


def test_a_closed_pipe_ends_it(nano, monkeypatch):
    monkeypatch.setattr(Notebook, "answer", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError()))
    with pytest.raises(BrokenPipeError):
        hold(nano, "hello")


def test_a_full_context_says_what_to_do(talker):
    view, repl = hold(talker, "x" * 5000)
    assert view.errors[0].endswith("; /clear starts a new conversation") and repl.failed


def test_a_thought_can_be_shown(scripted):
    view = Notebook()
    view.script = ("hello", "/think")
    Repl(Conversation(scripted([7, "why", 8, "so"])), view, NOTHING_SET, lambda values: {}).run()
    assert view.said == ["thought: why"] and not view.errors


def test_stopping_before_the_first_token_is_said(scripted, monkeypatch):
    import signal

    model = scripted(["never said"])

    def interrupted(self, events, *, show_depth):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # a second one does nothing more
        list(events)

    monkeypatch.setattr(Notebook, "answer", interrupted)
    view = Notebook()
    view.script = ("hello",)
    repl = Repl(Conversation(model), view, NOTHING_SET, lambda values: {})
    repl.run()
    assert "question is removed" in view.said[0] and repl.conversation.messages == []
