"""A chat window: ouro-edge in a Qt program, off the UI thread, every token tinted by how deep the model thought.

    python ouro_chat.py [MODEL]

MODEL is an exported directory; without it the small built-in model answers.
"""

from __future__ import annotations

import argparse
import sys
from queue import SimpleQueue
from typing import Any

from PySide6.QtCore import QObject, QThread, QTimer, Signal, Slot
from PySide6.QtGui import QCloseEvent, QColor, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import (
    QApplication,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMainWindow,
    QPushButton,
    QTextEdit,
    QVBoxLayout,
    QWidget,
)

import ouro_edge

Message = dict[str, str]
_TICK = 30  # milliseconds between looks at what the worker has made
_MOST = 50  # events shown at one look


class Worker(QObject):
    """Loads the model and answers in a thread of its own; `events` carries what comes of it to the window.

    A queue and not signals: a small model makes tokens faster than a window shows them, and signals in such numbers
    would leave Qt no time for clicks.
    """

    ready = Signal(int)  # the model is loaded; its number of loops
    failed = Signal(str)

    def __init__(self, load: Any) -> None:
        super().__init__()
        self._load = load
        self.events: SimpleQueue[ouro_edge.Event | str] = SimpleQueue()  # a text says what went wrong

    @Slot()
    def open(self) -> None:
        try:
            self.model: ouro_edge.Model = self._load()
            self.sequence = self.model.new_sequence()  # keeps the conversation's state between answers
        except ouro_edge.OuroEdgeError as problem:
            self.failed.emit(str(problem))
        except ImportError as problem:  # a packaged app leaves out what only conversions need
            self.failed.emit(f"this app opens exported models only: {problem}")
        else:
            self.ready.emit(self.model.config.loops)

    @Slot(object, object)
    def answer(self, messages: list[Message], cancel: ouro_edge.Cancel) -> None:
        try:
            for event in self.model.chat(messages, cancel=cancel, sequence=self.sequence):
                self.events.put(event)
        except ouro_edge.OuroEdgeError as problem:
            self.events.put(str(problem))


class Window(QMainWindow):
    """The conversation above, a line to type below. Everything that takes time is the worker's."""

    asked = Signal(object, object)  # messages, Cancel: crosses to the worker's thread
    opened = Signal()
    answered = Signal(str)
    failed = Signal(str)

    def __init__(self, load: Any = ouro_edge.load) -> None:
        super().__init__()
        self.setWindowTitle("ouro-edge")
        self.resize(640, 480)
        self.messages: list[Message] = []
        self.cancel: ouro_edge.Cancel | None = None  # of the answer that is being made
        self.loops = 1
        self.page = QTextEdit(readOnly=True)
        self.line = QLineEdit(placeholderText="Loading the model …", enabled=False)
        self.button = QPushButton("Send", enabled=False)
        self.status = QLabel("A deeper tint means more loops; point at a token to see them.")
        row, column, middle = QHBoxLayout(), QVBoxLayout(), QWidget()
        row.addWidget(self.line)
        row.addWidget(self.button)
        column.addWidget(self.page)
        column.addLayout(row)
        column.addWidget(self.status)
        middle.setLayout(column)
        self.setCentralWidget(middle)
        self.line.returnPressed.connect(self.send)
        self.button.clicked.connect(self.send_or_stop)

        self.thread_ = QThread()
        self.worker = Worker(load)
        self.worker.moveToThread(self.thread_)
        self.thread_.started.connect(self.worker.open)
        self.asked.connect(self.worker.answer)
        self.worker.ready.connect(self.on_ready)
        self.worker.failed.connect(self.on_failed)
        self.thread_.start()
        self.timer = QTimer(interval=_TICK)  # runs while an answer is made
        self.timer.timeout.connect(self.show_events)

    def show_events(self) -> None:
        for _ in range(min(self.worker.events.qsize(), _MOST)):
            event = self.worker.events.get()
            if isinstance(event, ouro_edge.Token):
                self.on_token(event)
            elif isinstance(event, ouro_edge.Done):
                self.on_done(event)
            else:
                self.on_failed(event)
        self.page.ensureCursorVisible()

    def send_or_stop(self) -> None:
        if self.cancel is None:
            self.send()
        else:
            self.cancel.cancel()  # from any thread; the answer's Done follows

    def send(self) -> None:
        text = self.line.text().strip()
        if not text or self.cancel is not None or not self.line.isEnabled():
            return
        self.line.clear()
        self.messages.append({"role": "user", "content": text})
        self.write(f"{text}\n", bold=True)
        self.cancel = ouro_edge.Cancel()
        self.button.setText("Stop")
        self.timer.start()
        self.asked.emit(list(self.messages), self.cancel)

    def on_ready(self, loops: int) -> None:
        self.loops = loops
        self.line.setPlaceholderText("Ask something")
        for widget in (self.line, self.button):
            widget.setEnabled(True)
        self.line.setFocus()
        self.opened.emit()

    def on_token(self, token: ouro_edge.Token) -> None:
        shares = ", ".join(f"{share:.0%}" for share in token.exit_probs)
        self.write(token.text, tint=token.depth / self.loops, tip=f"{token.depth} of {self.loops} loops ({shares})")

    def on_done(self, done: ouro_edge.Done) -> None:
        self.messages.append({"role": "assistant", "content": done.text})
        usage, rate = done.usage, done.timings.decode_rate(done.usage.completion_tokens)
        saved = usage.loops_saved / max(usage.loops_full, 1)
        self.idle(f"{usage.completion_tokens} tokens, {rate:.1f} tokens/s, mean depth {usage.mean_depth:.1f} of "
                  f"{self.loops}, {saved:.0%} of the loops saved")  # fmt: skip
        self.answered.emit(done.text)

    def on_failed(self, problem: str) -> None:
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()
        if not self.line.isEnabled():
            self.line.setPlaceholderText("No model")
        self.idle(problem)
        self.failed.emit(problem)

    def idle(self, status: str) -> None:
        self.write("\n")
        self.status.setText(status)
        self.cancel = None
        self.timer.stop()
        self.button.setText("Send")

    def write(self, text: str, *, bold: bool = False, tint: float = 0.0, tip: str = "") -> None:
        style = QTextCharFormat()
        if bold:
            style.setFontWeight(700)
        if tint:
            style.setBackground(QColor(90, 120, 255, int(20 + 100 * tint)))  # see-through: right on light and dark
            style.setToolTip(tip)
        cursor = self.page.textCursor()
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.insertText(text, style)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802  (Qt's name)
        if self.cancel is not None:
            self.cancel.cancel()
        self.thread_.quit()
        self.thread_.wait()
        event.accept()


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat window on ouro-edge.")
    parser.add_argument("model", nargs="?", help="an exported directory; default: the built-in model")
    parser.add_argument("--ask", metavar="TEXT", help="ask this, print the answer and quit: to test a packaged app")
    options = parser.parse_args()
    app = QApplication(sys.argv[:1])
    window = Window(lambda: ouro_edge.load(options.model))
    window.show()
    if options.ask:
        window.opened.connect(lambda: (window.line.setText(options.ask), window.send()))
        window.answered.connect(lambda text: (print(text, flush=True), app.exit(0)))
        window.failed.connect(lambda problem: (print(problem, file=sys.stderr, flush=True), app.exit(1)))
    code = app.exec()
    window.close()
    sys.exit(code)


if __name__ == "__main__":
    main()
