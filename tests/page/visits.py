"""What people do on the page: steps of `browse.py`, by keyboard where that is the question."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, expect

SHOTS = Path(sys.argv[1]) if len(sys.argv) > 1 else None


def shot(page: Page, name: str) -> None:
    if SHOTS is not None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def answered(page: Page) -> None:
    expect(page.locator(".st3-table")).to_be_visible(timeout=60_000)


def spec(page: Page) -> Any:
    return page.get_by_label("Method", exact=True)


def asks(url: str, page: Page) -> None:
    page.goto(url)
    expect(page.locator("figure img").first).to_be_visible(timeout=30_000)
    shot(page, "open")
    began = time.perf_counter()
    page.get_by_role("button", name="Ask").click()
    said = "document.querySelector('.st3-pair section p')?.textContent.trim()"
    page.wait_for_function(said, timeout=60_000)  # looks every frame; `expect` less and less often
    print(f"  first words after {time.perf_counter() - began:.2f} s, as the browser sees it")
    first = page.locator(".st3-pair section p").first
    answered(page)
    expect(first).to_contain_text("square")
    took = page.locator(".st3-table tr", has_text="TTFT").locator("td").all_inner_texts()
    print(f"  TTFT, trimmed and untrimmed: {took[0]}, {took[1]}")
    said = page.locator(".st3-pair section p").all_inner_texts()
    assert len(said) == 2, said
    assert all(text.strip() for text in said), said
    shot(page, "answer")


def moves_sliders(url: str, page: Page) -> None:
    caption = page.locator("figcaption").first
    layer = page.get_by_role("slider", name="Layer to look at")
    layer.focus()
    page.keyboard.press("Home")
    expect(caption).to_contain_text("Layer 1 ", timeout=10_000)
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(caption).to_contain_text("Layer 6 ", timeout=10_000)
    after = page.get_by_role("slider", name="range slider for Generated tokens", exact=True)
    after.focus()
    page.keyboard.press("Home")
    expect(caption).to_contain_text("after 0 generated", timeout=10_000)


def shares_a_link(url: str, page: Page, context: Any) -> None:
    page.wait_for_function("new URL(location).searchParams.get('ask') === '1'", timeout=10_000)
    query = parse_qs(urlsplit(page.url).query)
    assert query["layer"] == ["6"], query
    caption = page.locator("figcaption").first.inner_text()
    said = page.locator(".st3-pair section p").all_inner_texts()
    other = context.new_page()
    other.goto(page.url)
    answered(other)
    assert other.locator("figcaption").first.inner_text() == caption
    other.wait_for_function("new URL(location).searchParams.get('ask') === '1'", timeout=10_000)
    assert other.locator(".st3-pair section p").all_inner_texts() == said
    other.close()


def refuses(url: str, page: Page) -> None:
    spec(page).fill("st3:stride=2,ratio=30%")
    spec(page).press("Enter")
    alert = page.get_by_role("alert").first
    expect(alert).to_contain_text("the largest R for this S is", timeout=10_000)
    shot(page, "refusal")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_have_count(2, timeout=10_000)
    spec(page).fill("./x.py:Mine")
    spec(page).press("Enter")
    expect(alert).to_contain_text("only methods of the package", timeout=10_000)
    spec(page).fill("st3")
    spec(page).press("Enter")
    expect(page.locator(".st3-note").first).to_contain_text("mean over", timeout=10_000)


def turns_a_knob(url: str, page: Page) -> None:
    page.goto(url)
    expect(page.locator(".st3-note").first).to_be_visible(timeout=30_000)
    stride = page.get_by_role("slider", name="S, layers")
    stride.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "(new URL(location).searchParams.get('method') || '').includes('stride=')", timeout=10_000
    )


def uploads(url: str, page: Page, folder: Path) -> None:
    from PIL import Image

    text, bomb, photo = folder / "notes.txt", folder / "bomb.png", folder / "mine.png"
    text.write_text("no picture", encoding="utf-8")
    Image.new("1", (20_000, 20_000)).save(bomb)
    Image.new("RGB", (300, 200), (10, 60, 20)).save(photo)
    for file, words in (
        (text, "notes.txt is not a picture that Pillow can read"),
        (bomb, "bomb.png unpacks to more than 100 million pixels: scale it down"),
    ):
        page.goto(url)
        expect(page.locator("figure img").first).to_be_visible(timeout=30_000)
        page.locator("input[type=file]").first.set_input_files(file)
        expect(page.get_by_role("alert").first).to_have_text(words, timeout=30_000)
    page.goto(url)
    expect(page.locator("figure img").first).to_be_visible(timeout=30_000)
    page.locator("input[type=file]").first.set_input_files(photo)
    expect(page.locator("figcaption").first).to_contain_text("300 x 200", timeout=30_000)
    page.get_by_role("button", name="Ask").click()
    answered(page)
    expect(page.locator(".st3-note").last).to_contain_text("is a guess")


def two_tabs(url: str, context: Any) -> None:
    tabs = [context.new_page() for _ in range(2)]
    for tab, name in zip(tabs, ("five", "crowd"), strict=True):
        tab.goto(f"{url}?picture={name}")
        expect(tab.locator("figure img").first).to_be_visible(timeout=30_000)
    for tab in tabs:
        tab.get_by_role("button", name="Ask").click()
    for tab in tabs:
        answered(tab)
    texts = [tab.locator(".st3-pair section p").first.inner_text() for tab in tabs]
    assert texts[0] != texts[1], texts
    for tab in tabs:
        tab.close()


def keyboard_alone(url: str, page: Page) -> None:
    page.goto(url)
    expect(page.locator("figure img").first).to_be_visible(timeout=30_000)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Ask":
            break
    else:
        raise AssertionError("Tab never comes to Ask")
    page.keyboard.press("Enter")
    answered(page)


def pictured_first(page: Page) -> None:
    """On a phone the picture comes first, then the question, the answer, and how it was made."""
    parts = (".st3-see", ".st3-ask", ".st3-answer", ".st3-how")
    boxes = [page.locator(part).first.bounding_box() for part in parts]
    tops = [box["y"] for box in boxes if box is not None]
    assert len(tops) == len(parts), boxes
    assert tops == sorted(tops), tops


def says_the_command(url: str, page: Page) -> None:
    """Of what stands there now, also before it is asked."""
    page.goto(url)
    expect(page.locator(".st3-note").first).to_be_visible(timeout=30_000)
    command = page.locator(".st3-command textarea")
    expect(command).to_have_value(re.compile("--compare"), timeout=10_000)
    page.get_by_label("Untrimmed as well, to compare").uncheck()
    expect(command).not_to_have_value(re.compile("--compare"), timeout=10_000)
    tokens = page.get_by_role("slider", name="Most tokens")
    tokens.focus()
    page.keyboard.press("Home")
    expect(command).to_have_value(re.compile("--max-new-tokens 1 "), timeout=10_000)
    page.wait_for_function("new URL(location).searchParams.get('tokens') === '1'", timeout=10_000)
