"""The page of `trace --html` in Chromium: nothing is cut off or overflows, in light and dark."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from page_driver import chromium

from ouro_edge.cli import main

pytestmark = pytest.mark.browser
LONG = "Ada likes Ben. " * 12 + "W" * 120
MEASURE = """() => ({
    wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    outside: [...document.querySelectorAll('body *')].filter(
        (node) => node.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length,
    heading: document.querySelector('h1').innerText,
    background: getComputedStyle(document.body).backgroundColor})"""


@pytest.mark.parametrize("prompt", ["Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?", LONG])
def test_a_window_of_1000_pixels_shows_all(tmp_path, prompt):
    page_file = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["trace", "-p", prompt, "--whole", "--html", str(page_file)])
    assert result.exit_code == 0, result.output
    backgrounds = set()
    with chromium() as browser:
        for scheme in ("light", "dark"):
            for width in (1000, 360):
                context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
                page = context.new_page()
                page.goto(page_file.as_uri())
                found = page.evaluate(MEASURE)
                assert found["wider"] == 0  # on narrow windows the table scrolls inside the page
                assert found["outside"] == 0 or width < 1000
                words = found["heading"].removesuffix("…").split()[1:]
                assert words and all(word in prompt.split() for word in words)
                backgrounds.add(found["background"])
                context.close()
    assert len(backgrounds) == 2
