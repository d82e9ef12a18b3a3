"""Drives the server's page in headless Chromium.

Tests marked `browser` need playwright (extra `browser`) and a Chromium: the system's (`apt-get install chromium`),
playwright's own, or the one that OURO_EDGE_CHROMIUM names. Without them they are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHAT = "**/v1/chat/completions"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, or a skipped test."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not here: pip install 'ouro-edge[browser]'")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("OURO_EDGE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with api.sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip("no Chromium is here: OURO_EDGE_CHROMIUM may name one")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def say(page: Any, text: str) -> Any:
    """Ask by keyboard and wait for the end of the answer, which is returned."""
    before = page.locator(".answer").count()
    page.fill("#say", text)
    page.press("#say", "Enter")
    answer = page.locator(".answer").nth(before)
    answer.locator(".actions").wait_for()
    return answer


def pretend(page: Any, texts: list[Any], lens: list[Any] | None = None, end: str = "data: [DONE]\n\n") -> list[Any]:
    """Let the server answer with these tokens (text, or a whole delta), of depth 1, 2, 3, 4, 1, ...; the requests that
    came are returned.
    """
    events: list[Any] = []
    for i, text in enumerate(texts):
        delta = {"content": text} if isinstance(text, str) else text
        depth = {"depth": i % 4 + 1, "exit_probs": [0.2] * (i % 4 + 1), "lens": lens or []}
        events.append({"choices": [{"index": 0, "delta": delta, "ouro_edge": depth}]})
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ": alive\n\n" + end
    sent: list[Any] = []

    def fulfil(route: Any) -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(content_type="text/event-stream", body=body)

    page.unroute(CHAT)
    page.route(CHAT, fulfil)
    return sent
