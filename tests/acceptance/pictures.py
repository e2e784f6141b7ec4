"""The admin page's pictures for docs/admin, of generated objects, by headless Chromium.

python -m tests.acceptance.pictures docs/admin
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.admin_demo import demo_gateway, fill
from tests.integration.test_admin import browser_program, serving, signed_in

WIDTH, COLOURS = 1100, 128


def main() -> None:
    """Write one PNG a page into the folder."""
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        gateway = demo_gateway(Path(home) / "home")
        done = fill(gateway)["done"]
        pages = {
            "overview": "/admin", "failures": "/admin/failures", "destinations": "/admin/destinations",
            "instance": f"/admin/instances/{done[0]}", "system": "/admin/system",
        }  # fmt: skip
        with serving(gateway) as base:
            browser = playwright.chromium.launch(executable_path=browser_program(), args=["--no-sandbox"])
            page, _ = signed_in(browser, base, gateway, viewport={"width": WIDTH, "height": 480})
            for name, path in pages.items():
                page.goto(base + path)
                page.screenshot(path=folder / f"{name}.png", full_page=True)
            browser.close()
        gateway.close()
    for name in pages:
        with Image.open(folder / f"{name}.png") as picture:
            small = picture.convert("RGB").quantize(COLOURS)
        small.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
