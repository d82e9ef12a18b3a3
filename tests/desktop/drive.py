"""Run by a Python that has PySide6: clicks through the desktop example and fails loudly. Knows Qt, not pytest."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QTextCursor
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "desktop"))
import ouro_chat

import ouro_edge
from ouro_edge.testing import MockModel, ScriptedBackend

PARAGRAPH = "\u2029"  # how Qt spells the end of a line


def until(condition) -> None:
    for _ in range(3000):
        QApplication.processEvents()
        if condition():
            return
        QTest.qWait(10)
    raise AssertionError("it never happened")


def opened(load) -> ouro_chat.Window:
    window = ouro_chat.Window(load)
    window.show()
    until(window.line.isEnabled)
    return window


def ask(window: ouro_chat.Window, text: str) -> None:
    QTest.keyClicks(window.line, text)
    QTest.mouseClick(window.button, Qt.MouseButton.LeftButton)


def tints(window: ouro_chat.Window) -> list[tuple[str, int, str]]:
    """Characters of the page that are tinted, how strongly, and their tooltips."""
    found, cursor = [], QTextCursor(window.page.document())
    while cursor.movePosition(QTextCursor.MoveOperation.Right, QTextCursor.MoveMode.KeepAnchor):
        style = cursor.charFormat()
        if style.toolTip() and cursor.selectedText() != PARAGRAPH:
            found.append((cursor.selectedText(), style.background().color().alpha(), style.toolTip()))
        cursor.setPosition(cursor.position())
    return found


class Talkative(MockModel):
    """Talks for minutes, at the pace of a small model."""

    def __init__(self) -> None:
        super().__init__("word " * 30_000)

    def chat(self, *arguments, **options):
        for event in super().chat(*arguments, **options):
            time.sleep(0.002)
            yield event


def answers_and_tints() -> None:
    window = opened(lambda: MockModel("ab cd", depths=[1, 4]))
    ask(window, "hello")
    until(lambda: window.cancel is None)
    assert window.page.toPlainText() == "hello\nab cd\n", window.page.toPlainText()
    assert window.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ab cd"}]
    shown = tints(window)
    assert "".join(text for text, _, _ in shown) == "ab cd", shown
    assert len({alpha for _, alpha, _ in shown}) == 2 and shown[0][2].startswith("1 of 4 loops (")
    assert "mean depth" in window.status.text()
    window.close()


def a_busy_model_does_not_freeze_the_window_and_stop_stops() -> None:
    models: list[MockModel] = []
    window = opened(lambda: models.append(Talkative()) or models[-1])
    backend = models[0].backend
    assert isinstance(backend, ScriptedBackend)
    lock = backend.lock
    ticks: list[int] = []
    timer = QTimer(interval=0)
    timer.timeout.connect(lambda: ticks.append(1))
    with lock.hold():  # as if a call of the block took very long
        ask(window, "go on")
        until(lambda: lock.waiting == 1)
        timer.start()
        until(lambda: len(ticks) > 20)
        timer.stop()
        assert window.button.text() == "Stop" and "word" not in window.page.toPlainText()
        QTest.mouseClick(window.button, Qt.MouseButton.LeftButton)
        until(lambda: window.cancel is None)
    ask(window, "again")
    until(lambda: "word" in window.page.toPlainText())
    QTest.mouseClick(window.button, Qt.MouseButton.LeftButton)
    until(lambda: window.cancel is None)
    assert window.page.toPlainText().count("word") < 30_000 and window.button.text() == "Send"
    ask(window, "and now close while it talks")
    until(lambda: window.page.toPlainText().split("talks")[-1].count("word") > 3)
    window.close()
    assert not window.thread_.isRunning()


def what_goes_wrong_is_said() -> None:
    def missing():
        raise ouro_edge.BundleError("no such model")

    window = ouro_chat.Window(missing)
    until(lambda: window.status.text() == "no such model")
    assert not window.line.isEnabled()
    window.close()


app = QApplication([])
for test in (answers_and_tints, a_busy_model_does_not_freeze_the_window_and_stop_stops, what_goes_wrong_is_said):
    test()
    print(test.__name__, flush=True)
