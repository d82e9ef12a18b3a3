"""The page at `/`: one response, joined from the files in `server/page` when the server starts.

The styles and scripts of the list below go into the <style> and the <script> of `page.html`, in this order. They share
one scope, as parts of one script. A Content-Security-Policy names both elements by hash and lets nothing else in; the
page may talk to this server only.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

FOLDER = Path(__file__).parents[1] / "page"
STYLES = ("colours", "base", "conversation", "markdown", "controls")
SCRIPTS = (
    "dom",
    "markdown_blocks",
    "markdown_inline",
    "state",
    "answer_text",
    "answer_depth",
    "drawing",
    "card",
    "server",
    "generation",
    "composer",
    "settings",
    "start",
)
_NONE = "ouro-edge is running. The API is under /v1, as OpenAI's.\n"


def page_endpoint(folder: Path = FOLDER) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint that serves the page; its files are read here, once."""
    html = joined_page(folder)

    async def page(request: Request) -> Response:
        return page_response(html)

    return page


def joined_page(folder: Path = FOLDER) -> str | None:
    """The page as one file; None in a build without it."""
    if not (folder / "page.html").is_file():
        return None

    def joined(names: tuple[str, ...], kind: str) -> str:
        return "\n" + "\n".join((folder / f"{name}.{kind}").read_text(encoding="utf-8") for name in names)

    html = (folder / "page.html").read_text(encoding="utf-8")
    html = html.replace("<style></style>", f"<style>{joined(STYLES, 'css')}</style>")
    return html.replace("<script></script>", f"<script>{joined(SCRIPTS, 'js')}</script>")


def page_response(html: str | None) -> Response:
    """The page, or a line of text in a build without one."""
    if html is None:
        return PlainTextResponse(_NONE)
    headers = {
        "Content-Security-Policy": policy(html),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


def policy(html: str) -> str:
    """A Content-Security-Policy under which exactly this page works."""

    def sources(element: str) -> str:
        texts = re.findall(rf"<{element}\b[^>]*>(.*?)</{element}>", html, re.S | re.I)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"

    rules = {
        "default-src": "'none'",
        "script-src": sources("script"),
        "style-src": sources("style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())
