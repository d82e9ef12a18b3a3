"""The page at `/`: one file, sent with a Content-Security-Policy that lets nothing in but what the file holds.

Its <script> and <style> elements are named by hash; it may talk to this server only.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

FILE = Path(__file__).parent / "page.html"
_NONE = "ouro-edge is running. The API is under /v1, as OpenAI's.\n"


def page_response(file: Path = FILE) -> Response:
    """The page, or a line of text in a build without one."""
    if not file.is_file():
        return PlainTextResponse(_NONE)
    html = file.read_text(encoding="utf-8")
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


async def page(request: Request) -> Response:
    """The endpoint."""
    return page_response()
