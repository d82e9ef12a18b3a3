"""What the page makes of answers: Markdown, hostile text, errors, long conversations, narrow windows."""

from __future__ import annotations

import json

import pytest
from page_driver import CHAT, pretend, say

from ouro_edge.server.limits import Access

pytestmark = pytest.mark.browser

LONG = """## Why

A **bold**, *slanted*, ***both***, ~~gone~~ and `x = "*"` word, a_snake_case and 2 * 3 * 4.
See [the paper](https://example.org/a_(b)) or https://example.org/x_y.

3. three
   - inner
   - inner
4. four

> quoted
> - list

```python
def f(x):
    return "**" + x
```

| a | b |
| --- | :-: |
| 1 | `|` \\| |

---
end \\*not slanted\\*"""

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script><iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "[run](javascript:alert(1)) [run](JaVa&#115;cript:alert(1)) [run](\x01javascript:alert(1))",
    "![see](data:text/html,<script>alert(1)</script>) ![see](https://example.org/track.png)",
    "[run](vbscript:x) [run](file:///etc/passwd) [run](//example.org/) [run](/metrics)",
    "```<img src=x onerror=alert(1)>\n<img src=x onerror=alert(1)>\n```",
    "| <b onclick=alert(1)>x</b> | y |\n| --- | --- |\n| <svg onload=alert(1)> | z |",
    "<a href='javascript:alert(1)'>x</a> <style>*{display:none}</style>",
]

BARE = """e => {
  for (const token of e.querySelectorAll(".tok")) token.replaceWith(...token.childNodes);
  e.querySelector(".foot")?.remove();
  e.normalize();
  return e.innerHTML;
}"""

GROWING = """(pieces) => {
  const answer = new Answer();
  const view = viewOf(answer);
  state.running = { answer };
  for (const text of pieces) {
    answer.add({ text, depth: 1 });
    drawBody(answer, view);
  }
  const body = view.querySelector(".body");
  if (body.querySelectorAll(".wait").length !== 1) throw new Error("one mark of waiting");
  return bare(body);
}"""


def pieces(text, size=3):
    return [text[i : i + size] for i in range(0, len(text), size)]


def test_markdown_whatever_its_tokens(page):
    shapes = set()
    for size in (1, 3, 1000):
        pretend(page, pieces(LONG, size))
        body = say(page, "go").locator(".body")
        shapes.add(body.evaluate(BARE))
    shapes.add(page.evaluate(GROWING.replace("bare(", f"({BARE})("), pieces(LONG, 2)))
    [html] = shapes
    for part in (
        "<h4>Why</h4>",
        "A <strong>bold</strong>, <em>slanted</em>, <strong><em>both</em></strong>, <del>gone</del>",
        '<code>x = "*"</code> word, a_snake_case and 2 * 3 * 4.\n',
        'rel="noopener noreferrer nofollow" title="https://example.org/a_(b)" data-host="example.org">the paper</a>',
        ">https://example.org/x_y</a>.</p>",
        '<ol start="3"><li><p>three</p><ul><li><p>inner</p></li><li><p>inner</p></li></ul></li><li><p>four</p>',
        "<blockquote><p>quoted</p><ul><li><p>list</p></li></ul></blockquote>",
        '<code>def f(x):\n    return "**" + x\n</code>',
        "<thead><tr><th>a</th><th>b</th></tr></thead>",
        "<hr><p>end *not slanted*</p>",
    ):
        assert part in html, part


def test_hostile_text_stays_text(page):
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url) if "completions" not in request.url else None)
    for text in HOSTILE:
        pretend(page, pieces(text), lens=[[{"token": text, "prob": 0.9}]])
        answer = say(page, text)
        assert answer.locator("img, script, iframe, style, svg, b[onclick]").count() == 0
        links = answer.locator(".body a").evaluate_all("all => all.map(a => a.href)")
        assert set(links) <= {"https://example.org/track.png"}
        for word in ("onerror=alert(1)", "javascript:alert(1)", "onload=alert(1)", "<style>*{display:none}</style>"):
            assert (word in answer.locator(".body").inner_text()) == (word in text), text
        answer.locator(".tok").first.hover()
        assert text[:20] in page.locator("#tip .would").first.inner_text()
    assert page.locator(".user .said").first.inner_text() == HOSTILE[0]
    page.reload()
    page.locator(".answer").nth(len(HOSTILE) - 1).wait_for()  # from the window's own store
    assert [url for url in asked if not url.endswith(("/v1/models", ":" + page.url.split(":")[-1]))] == []


def test_text_made_to_be_slow_is_drawn(page):
    for unit in "*;**a ;_a*;[;[a](;`;`` `;> ;- ;<br;http://;\\;  - a\n;#\n;|;|-".split(";"):
        pretend(page, [unit * 3000, "\n\ndone"])
        assert "done" in say(page, "go").locator(".body").inner_text()
        page.click("#new")


def test_thinking_is_folded_and_not_sent_again(page):
    thoughts = [{"reasoning_content": text} for text in ("First", " th")]
    both = {"reasoning_content": "is", "content": "\n\nSo"}  # held back until now
    sent = pretend(page, [{}, *thoughts, both, " that"])
    answer = say(page, "go")
    assert answer.locator("details p").inner_text() == "First this" or not answer.locator("details p").is_visible()
    assert answer.locator("summary").inner_text() == "Reasoning"
    assert answer.locator(".body > p").inner_text() == "So that"
    say(page, "more")
    assert sent[1]["messages"][1] == {"role": "assistant", "content": "So that"}


def test_errors_are_told_and_can_be_retried(page):
    error = {"error": {"message": "2 requests run and 4 wait", "type": "rate_limit_error", "param": None, "code": None}}
    page.route(
        CHAT, lambda r: r.fulfill(status=429, json=error, headers={"Retry-After": "5"}, content_type="application/json")
    )
    problem = say(page, "Ada likes Ben. Ada likes who?").locator(".problem")
    assert problem.inner_text() == "The server is busy\n2 requests run and 4 wait Try again in 5 s."
    page.unroute(CHAT)
    page.route(CHAT, lambda r: r.abort())
    page.locator(".retry").click()
    page.locator(".problem", has_text="Is ouro-edge serve still running?").wait_for()
    failing = "data: " + json.dumps({"error": {"message": "it took too long", "code": "timeout"}}) + "\n\n"
    for end, told in ((failing, "it took too long"), ("", "The answer ended early.")):
        pretend(page, ["half", " said"], end=end)
        page.locator(".retry").click()
        page.locator(".problem", has_text=told).wait_for()
        assert page.locator(".body").inner_text().startswith("half said")
    page.unroute(CHAT)
    page.locator(".retry").click()
    page.locator(".tok", has_text="Ben").wait_for()
    assert page.locator(".problem").is_hidden()


def test_a_key_is_asked_for(serve, visit):
    page = visit(serve(access=Access(api_key="s3cret")))
    page.locator("#needed").wait_for()
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type("s3cret")
    page.keyboard.press("Enter")
    page.locator("#examples button").first.click()
    page.locator(".tok", has_text="Ben").wait_for()
    assert page.evaluate("JSON.stringify(localStorage)").find("s3cret") == -1


def test_the_window_remembers_until_it_is_told_to_forget(page):
    text = say(page, "What can you do?").locator(".body").inner_text()
    page.locator("#threshold").fill("0.8")
    page.reload()
    page.locator(".answer .stats").wait_for()
    assert page.locator(".answer .body").inner_text() == text and page.locator("#exit").inner_text() == "exit at 0.80"
    page.click("#open")
    page.click("#forget")
    page.locator("#examples button").first.wait_for()
    assert page.evaluate("localStorage.length") == 0 and page.locator("#exit").inner_text() == "exit at 0.50"


@pytest.mark.parametrize("width", [360, 900])
def test_nothing_sticks_out(server, visit, width):
    page = visit(server, viewport={"width": width, "height": 640})
    page.locator("#examples button").first.wait_for()
    wide = "() => [document.documentElement, document.getElementById('scroll')].map(e => e.scrollWidth - e.clientWidth)"
    assert page.evaluate(wide) == [0, 0]
    pretend(page, pieces(LONG + "\n\n" + "unbroken" * 60 + "\n\n```\n" + "x" * 900 + "\n```"))
    answer = say(page, "y" * 500)
    assert page.evaluate(wide) == [0, 0]
    answer.locator(".tok").last.click()
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] >= 0 and box["y"] + box["height"] <= 640


def test_light_and_dark(server, visit):
    page = visit(server, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light


@pytest.mark.parametrize(("loops", "gate"), [(1, False), (4, False), (8, True)])
def test_other_models(server, visit, loops, gate):
    card = {"id": "<b>other</b>", "ouro_edge": {"loops": loops, "has_gate": gate, "exit_threshold": None}}
    page = visit(None)
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [card]}))
    page.goto(server.url)
    page.locator("#examples button", has_text="Why is the sky blue?").wait_for()
    assert page.locator("#model").inner_text() == "<b>other</b>"
    assert page.locator("#dial").is_visible() == (loops > 1) and page.locator("#threshold").is_enabled() == gate
    assert page.locator("#legend i").count() == loops
    assert ("mean depth" in say(page, "hello").locator(".stats").inner_text()) == (loops > 1)


def test_it_waits_for_a_server_that_is_not_there_yet(server, visit):
    page = visit(None)
    page.route("**/v1/models", lambda route: route.abort(), times=1)
    page.goto(server.url)
    page.locator("#model", has_text="The server does not answer").wait_for()
    page.locator("#model", has_text="Ouro-nano").wait_for()
