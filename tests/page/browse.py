"""The page in a real browser: `python tests/page/browse.py [FOLDER FOR SHOTS]`; see `.ci/page`.

It starts `st3 page` with the demo, sends `visits.py` there, and looks at what is left.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import visits
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    environment = os.environ | {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "st3_cli", "page", "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert server.stdout is not None
    passed = 0
    try:
        lines = io.StringIO()
        while not lines.getvalue().endswith("}\n"):
            line = server.stdout.readline()
            assert line, "st3 page has ended"
            lines.write(line)
        url = json.loads(lines.getvalue())["url"]
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            outside: list[str] = []

            def note(request: Any) -> None:
                if urlsplit(request.url).scheme not in ("data", "blob") and (
                    urlsplit(request.url).hostname != "127.0.0.1"
                ):
                    outside.append(request.url)

            context.on("request", note)
            page = context.new_page()
            steps: list[tuple[Any, tuple[Any, ...]]] = [
                (visits.asks, (url, page)),
                (visits.moves_sliders, (url, page)),
                (visits.shares_a_link, (url, page, context)),
                (visits.refuses, (url, page)),
                (visits.turns_a_knob, (url, page)),
                (visits.says_the_command, (url, page)),
                (visits.uploads, (url, page, folder)),
                (visits.two_tabs, (url, context)),
                (visits.keyboard_alone, (url, page)),
            ]
            for step, what in steps:
                step(*what)
                passed += 1
                print(f"passed: {step.__name__}")
            if visits.SHOTS is not None:
                for name, width, scheme in (
                    ("wide-light", 1280, "light"), ("wide-dark", 1280, "dark"),
                    ("phone-light", 390, "light"), ("phone-dark", 390, "dark"),
                ):  # fmt: skip
                    other = browser.new_context(
                        viewport={"width": width, "height": 844}, color_scheme=scheme
                    )
                    seen = other.new_page()
                    seen.goto(f"{url}?layer=6&ask=1")
                    visits.answered(seen)
                    wide = seen.evaluate("document.documentElement.scrollWidth")
                    assert wide <= width, f"{name}: {wide} pixels wide"
                    box = seen.locator(".st3-table").bounding_box()
                    assert box is not None
                    assert box["x"] + box["width"] <= width, f"{name}: the table is cut off"
                    if width < 600:
                        visits.pictured_first(seen)
                    visits.shot(seen, name)
                    other.close()
            assert not outside, outside
            passed += 1
            print("passed: no request left this machine")
            browser.close()
        server.terminate()
        assert server.wait(30) == 0, server.returncode
        left = [path.name for path in folder.iterdir() if path.name.startswith(("st3", "gradio"))]
        assert not left, left
        passed += 1
        print("passed: no file is left")
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{passed} passed, 0 failed")


if __name__ == "__main__":
    main()
