"""The bar of long operations: one for each job in a terminal; lines elsewhere."""

from __future__ import annotations

import io

from ouro_edge.cli.progress import conversion_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_for_each_job(monkeypatch):
    monkeypatch.setattr("sys.stderr", stderr := Terminal())
    with conversion_progress("Working") as progress:
        progress(0, 0, "nothing is known yet")
        progress(0, 10, "download")
        progress(10, 30, "download")  # more files were found
        progress(30, 30, "")
        progress(0, 5, "tensor")
        progress(2, 5, "tensor")
        progress(5, 5, "")
    shown = stderr.getvalue()
    assert shown.count("\n") == 2 and shown.count("100%") >= 2 and "33%" in shown
    assert "Working" in shown and "download" in shown and "tensor" in shown


def test_no_bar_where_nobody_can_see_it(monkeypatch):
    for stderr in (io.StringIO(), None):
        monkeypatch.setattr("sys.stderr", stderr)
        with conversion_progress() as progress:
            progress(1, 2, "x")
        assert stderr is None or stderr.getvalue() == ""


def test_a_line_now_and_then_in_a_log_file(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr", stderr := io.StringIO())
    with conversion_progress("Exporting") as progress:
        for done in range(8):
            now[0] += 12
            progress(done, 7, f"layer {done}" if done < 7 else "")
    assert stderr.getvalue() == "Exporting: 28%, layer 2\nExporting: 71%, layer 5\n"
