"""Makes docs/page.png: the server's page in headless Chromium, with Ouro-nano answering.

Run it from the repository's root: `python docs/page_capture.py [CHROMIUM]` (needs the extras `serve` and `browser`).
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PORT = 18473
OUT = Path(__file__).with_name("page.png")


def answered(page: Page, number: int) -> None:
    """Wait for the answer with this number, counted from 0."""
    page.locator(".answer").nth(number).locator(".actions").wait_for()


def capture(page: Page) -> None:
    page.goto(f"http://127.0.0.1:{PORT}/")
    page.locator("#examples button").nth(2).click()
    answered(page, 0)
    page.fill("#say", "What can you do?")
    page.press("#say", "Enter")
    answered(page, 1)
    page.locator("#scroll").evaluate("scroll => { scroll.scrollTop = 0 }")
    page.locator(".answer").nth(1).locator(".tok", has_text="whom").first.hover()
    page.screenshot(path=OUT)


def main() -> None:
    chromium = sys.argv[1] if len(sys.argv) > 1 else "/usr/bin/chromium"
    server = subprocess.Popen([sys.executable, "-m", "ouro_edge", "serve", "--port", str(PORT)])
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health")
                break
            except OSError:
                time.sleep(0.1)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(
                viewport={"width": 860, "height": 790}, device_scale_factor=1.5, reduced_motion="reduce"
            )
            capture(page)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
