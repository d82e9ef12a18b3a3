"""The page at `/`: what it may not contain, and a click-through in headless Chromium."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from page_driver import pretend, say

from ouro_edge.server.http.page import FOLDER, SCRIPTS, STYLES, joined_page, policy

HTML = joined_page() or ""
VOID = {"meta", "link", "input", "path", "circle", "rect", "br"}


def test_it_comes_with_a_policy_for_exactly_its_own_script_and_style(server):
    answer = server.http.get("/")
    rules = answer.headers["Content-Security-Policy"]
    assert answer.text == HTML and answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert rules == policy(HTML) and "unsafe" not in rules
    assert "default-src 'none'" in rules and "connect-src 'self'" in rules
    assert len(re.findall(r"script-src 'sha256-[^']+';", rules)) == 1 == len(re.findall("<script", HTML))
    assert len(re.findall(r"style-src 'sha256-[^']+';", rules)) == 1 == len(re.findall("<style", HTML))


def test_every_file_is_part_of_it_once_and_short_enough_to_read():
    names = {"page.html", *(f"{name}.css" for name in STYLES), *(f"{name}.js" for name in SCRIPTS)}
    assert names == {file.name for file in FOLDER.iterdir()} and len(names) == 1 + len(STYLES) + len(SCRIPTS)
    for name in names - {"page.html"}:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert HTML.count(text) == 1 and text.startswith(("/*", '"use strict";\n/*')), name
        assert len(text.splitlines()) <= 250, name


def test_it_is_small_and_names_no_other_host():
    assert len(HTML.encode()) < 60_000
    assert not re.findall(r"(?:https?:|src\s*=\s*[\"']?|href\s*=\s*[\"']?|url\([\"']?)//[\w.-]+", HTML)
    assert not re.findall(r"@import|\bsrc=", HTML)


def test_text_of_a_model_can_only_become_text():
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|\bFunction\(", HTML
    )


def test_its_html_is_well_formed():
    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.ids, self.wrong = [], [], []

        def handle_starttag(self, tag, attrs):
            if tag not in VOID:
                self.open.append(tag)
            for name, value in attrs:
                self.ids += [value] * (name == "id")
                self.wrong += [(tag, name)] * (name.startswith("on") or name == "style")

        def handle_startendtag(self, tag, attrs):
            self.handle_starttag(tag, attrs)
            if tag not in VOID:
                self.open.pop()

        def handle_endtag(self, tag):
            assert tag == self.open.pop()

    reader = Reader()
    reader.feed(HTML)
    reader.close()
    assert not reader.open and not reader.wrong
    assert [name for name, count in Counter(reader.ids).items() if count > 1] == []
    used = set(re.findall(r'\$\("([\w-]+)"\)', HTML)) | set(re.findall(r'copyOf\("([\w-]+)"\)', HTML))
    assert used <= set(reader.ids)


@pytest.mark.browser
def test_a_first_visit_shows_deeper_answers_to_harder_questions(page):
    depths = []
    for hops in range(3):
        page.locator("#examples button").nth(hops).click()
        answer = page.locator(".answer")
        answer.locator(".actions").wait_for()
        assert answer.locator(".tok").first.inner_text() == ["Ben", "Cleo", "Dan"][hops]
        depths.append(int(re.search(r"took (\d) of 4 loops", answer.locator(".path .caption").inner_text())[1]))
        assert re.search(
            r"2 tokens · .+ · mean depth [\d.]+ · \d+ loops run, \d+ (saved|caught up)", answer.inner_text()
        )
        page.click("#new")
    assert depths == sorted(depths) and depths[0] < depths[-1]
    assert page.locator("#welcome").is_visible() and page.locator("#legend i").count() == 4


@pytest.mark.browser
def test_a_token_under_the_pointer_tells_of_its_loops(page):
    answer = say(page, "What can you do?")
    tokens = answer.locator(".tok")
    assert len({tokens.nth(i).evaluate("e => getComputedStyle(e).backgroundColor") for i in range(tokens.count())}) >= 3
    tokens.nth(1).hover()
    assert "“answer” took" in page.locator("#tip").inner_text() and "loop 4" in page.locator("#tip").inner_text()
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()
    tokens.nth(2).click()
    page.mouse.move(5, 5)
    assert "“small”" in page.locator("#tip").inner_text()  # stays where it was clicked
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.click("#legend")
    assert tokens.nth(1).evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"


@pytest.mark.browser
def test_the_keyboard_alone_is_enough(page):
    focus = "() => document.activeElement.id || document.activeElement.className"
    assert page.evaluate(focus) == "say"
    page.keyboard.type("Ada likes Ben.")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Ada likes who?")
    assert page.input_value("#say") == "Ada likes Ben.\nAda likes who?"
    page.keyboard.press("Enter")
    page.locator(".answer .actions").wait_for()
    seen = []
    while not seen or seen[-1] != "body":
        page.keyboard.press("Shift+Tab")
        seen.append(page.evaluate(focus))
    assert seen == ["quiet retry", "quiet copy", "body"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    assert "“Ben” took" in page.locator("#tip").inner_text() and "Ben: " in page.locator("#live").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text().startswith("End took")
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    for _ in seen:
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowUp")  # edits the last message
    assert page.input_value("#say").startswith("Ada likes Ben.") and page.locator("#editing").is_visible()
    page.keyboard.press("Escape")
    assert page.input_value("#say") == "" and page.locator("#editing").is_hidden()
    order = []
    for _ in range(4):
        page.keyboard.press("Tab")
        order.append(page.evaluate(focus))
    assert order[:3] == ["threshold", "usual", "legend"]


@pytest.mark.browser
def test_stop_retry_edit(serve, held, visit):
    page = visit(serve(held))
    page.locator("#examples button").first.click()
    page.locator(".wait").wait_for()
    assert page.locator("#send").get_attribute("aria-label") == "Stop"
    page.keyboard.press("Escape")
    page.get_by_text("stopped", exact=True).wait_for()
    held.open.set()
    page.locator(".retry").click()
    page.locator(".tok").first.wait_for()
    assert page.locator(".answer").count() == 1 and page.locator(".tok").first.inner_text() == "Ben"
    page.locator(".turn.user").hover()
    page.locator(".edit").click()
    page.fill("#say", "Ada likes Cleo. Ada likes who?")
    page.press("#say", "Enter")
    page.locator(".tok", has_text="Cleo").wait_for()
    assert page.locator(".answer").count() == page.locator(".user").count() == 1


@pytest.mark.browser
def test_the_slider_and_the_settings_reach_the_server(page):
    sent = pretend(page, ["yes"])
    say(page, "one")
    page.locator("#threshold").fill("0.3")
    say(page, "two")
    page.locator("#threshold").fill("1")
    assert page.locator("#exit").inner_text() == "all 4 loops"
    page.click("#open")
    page.fill("#system", "Be brief.")
    page.fill("#most", "7")
    page.fill("#temperature", "0")
    page.locator("#lens").uncheck()
    page.keyboard.press("Escape")
    say(page, "three")
    page.click("#usual")
    say(page, "four")
    depth = [(request.get("exit_threshold"), request.get("loops"), request.get("lens")) for request in sent]
    assert depth == [(None, None, 3), (0.3, None, 3), (None, 4, None), (None, None, None)]
    assert sent[3]["messages"][:3] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "yes"},
    ]
    assert (sent[3]["max_tokens"], sent[3]["temperature"]) == (7, 0)


@pytest.mark.browser
def test_full_depth_is_full_depth(page):
    page.locator("#threshold").fill("1")
    assert "took 4 of 4 loops" in say(page, "Ada likes Ben. Ada likes who?").locator(".path").inner_text()
