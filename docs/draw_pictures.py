"""Draw the README's pictures from a real run: `make docs`. Needs Chromium (CHROMIUM names its path)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main() -> None:
    """Train the quick recipe, or take the run folder that is given, and photograph its report in light and dark."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "quick"
        if not run.exists():
            subprocess.run([sys.executable, "-m", "residuum", "train", "quick", "--run.dir", str(run)], check=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": 1000, "height": 1460}, color_scheme=scheme)
                page.goto((run / "report.html").resolve().as_uri())
                page.wait_for_selector(".chart svg")
                page.wait_for_timeout(500)
                page.screenshot(path=HERE / f"report-{scheme}.png")
            browser.close()


if __name__ == "__main__":
    main()
