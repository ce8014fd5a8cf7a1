"""A headless Chromium for tests of pages, and what pages must not do in it: no error, no request beyond the machine."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# On a busy machine a page takes a minute; a test that finds nothing fails after this.
_SECONDS = 240
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def open_browser() -> Iterator:
    """Yield a Chromium; skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if program is None:
        pytest.skip("no Chromium: install it (Debian and Ubuntu: apt-get install chromium)")
    with playwright.sync_playwright() as play:
        # Tests run as root in containers, where Chromium's own sandbox cannot.
        chromium = play.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"], timeout=1000 * _SECONDS
        )
        yield chromium
        chromium.close()


@contextmanager
def visit(browser, address: str, allowed: tuple[str, ...] = ("file:", "data:"), **options) -> Iterator:
    """Yield a page at an address; at the end it has met no error and asked for nothing that is not `allowed`."""
    context = browser.new_context(**options)
    context.set_default_timeout(1000 * _SECONDS)
    context.route("**/favicon*", lambda route: route.fulfill(status=204))  # a browser's own wish
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: message.type == "error" and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url[:200]}"))
    page.on("request", lambda request: request.url.startswith(allowed) or problems.append(f"asks {request.url[:200]}"))
    page.goto(address)
    yield page
    context.close()
    assert not problems, problems


def wait_until(page, expression: str, seconds: float = _SECONDS) -> None:
    """Wait until a JavaScript expression is true. Playwright's own way needs `eval`, which our pages forbid."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(20)
