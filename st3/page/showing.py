"""What the page shows, as HTML: pictures inside it as data, so that no file is made for them."""

from __future__ import annotations

import base64
import difflib
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from st3.inference.places import Array
from st3.methods.schedule import Schedule
from st3.page.film import Film
from st3.plots.kept import depth_pixels, kept_pixels

_PREVIEW = 480  # pixels of a side
CSS = """
.st3-pair {display: flex; flex-wrap: wrap; gap: 1rem}
.st3-pair > * {flex: 1 1 14rem; min-width: 0; margin: 0}
.st3-pair img {width: 100%; border-radius: 4px}
.st3-pair figcaption {font-size: .85rem; opacity: .85; margin-top: .25rem}
.st3-pair h3 {margin: 0 0 .25rem; font-size: 1rem}
.st3-pair p {overflow-wrap: anywhere; white-space: pre-wrap; margin: 0}
.st3-pair mark {background: #fde725; color: #111; text-decoration: underline; padding: 0 .15em}
.st3-refusal {border-left: 4px solid #d55e00; padding: .4rem .6rem; font-weight: 600}
.st3-note {opacity: .85; font-size: .9rem}
.prose .st3-table {border-collapse: collapse; width: 100%; font-size: .9rem; border: 0 !important}
.prose .st3-table tr {border: 0}
.st3-table caption {text-align: left; opacity: .8; padding-bottom: .3rem}
.st3-table th, .st3-table td {text-align: right; padding: .2rem .5rem; border: 0;
  border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent)}
.st3-table tbody th, .st3-table thead td {text-align: left; font-weight: 400}
@media (max-width: 600px) {
  .st3-page {flex-direction: column}
  .st3-side {display: contents !important}
  .st3-see {order: 1}
  .st3-ask {order: 2}
  .st3-answer {order: 3}
  .st3-how {order: 4}
  .st3-see .st3-pair > * {flex: 1 1 8rem}
  .prose .st3-table {font-size: .75rem}
  .st3-table th, .st3-table td {padding: .2rem .15rem}
}
"""
"""For what is made here."""


def figure(picture: Image.Image, words: str) -> str:
    """A picture with words under it, which whoever cannot see it reads as well."""
    file = io.BytesIO()
    # A third of a PNG's bytes and a tenth of its time, which the model beside it would wait for.
    picture.save(file, "JPEG", quality=95, subsampling=0)
    data = base64.b64encode(file.getvalue()).decode()
    words = html.escape(words)
    return (
        f'<figure><img alt="{words}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def preview(picture: Image.Image, name: str) -> str:
    """A picture before anything was asked about it."""
    small = picture.copy()
    small.thumbnail((_PREVIEW, _PREVIEW))
    if max(small.size) < _PREVIEW:
        scale = _PREVIEW / max(small.size)
        small = small.resize((round(small.width * scale), round(small.height * scale)))
    width, height = picture.size
    return f'<div class="st3-pair">{figure(small, f"{name}: {width} x {height} pixels")}</div>'


def drawn(film: Film | None, layer: int, after: int) -> str:
    """The patches alive in a layer after so many tokens, and how deep each one gets."""
    if film is None:
        return ""
    total, kept = film.places.count, film.kept(layer, after)
    when = f"after {after} generated token{'s' * (after != 1)}"
    alive = f"Layer {layer} {when}: {len(kept)} of {total} visual tokens alive; the others are grey"
    deep = f"The last layer that holds a patch {when}: dark blue none, yellow layer {film.layers}"
    pair = (
        figure(_image(kept_pixels(film.places, kept)), alive),
        figure(_image(depth_pixels(film.places, film.deepest(after), film.layers)), deep),
    )
    return f'<div class="st3-pair">{"".join(pair)}</div>'


def _image(pixels: Array) -> Image.Image:
    return Image.fromarray((255 * pixels).clip(0, 255).round().astype(np.uint8))


def answers(trimmed: str, untrimmed: str, whole: bool, compared: bool) -> str:
    """Both side by side; once they are whole, words that differ are marked."""
    said = ""
    left, right = html.escape(trimmed), html.escape(untrimmed)
    if whole and compared:
        left, right = marked(trimmed, untrimmed)
        same = trimmed == untrimmed
        said = "The same words." if same else "Words that differ are underlined."
    blocks = f"<section><h3>Trimmed</h3><p>{left or '&nbsp;'}</p></section>"
    if compared:
        blocks += f"<section><h3>Untrimmed</h3><p>{right or '&nbsp;'}</p></section>"
    return f'<div class="st3-pair" aria-live="polite">{blocks}</div><p>{said}</p>'


def marked(trimmed: str, untrimmed: str) -> tuple[str, str]:
    """Both as HTML, words that the other lacks in `<mark>`."""
    a, b = trimmed.split(), untrimmed.split()
    sides: tuple[list[str], list[str]] = ([], [])
    for kind, *ends in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for side, words, (start, end) in zip(sides, (a, b), (ends[:2], ends[2:]), strict=True):
            text = html.escape(" ".join(words[start:end]))
            if text:
                side.append(text if kind == "equal" else f"<mark>{text}</mark>")
    return " ".join(sides[0]), " ".join(sides[1])


def table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """What it took."""
    if not rows:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for label, *cells in rows
    )
    return (
        '<table class="st3-table"><caption>One run each on this machine, while the page draws; '
        "st3 profile measures</caption><thead><tr><td></td><th>trimmed</th><th>untrimmed</th>"
        f"<th>difference</th></tr></thead><tbody>{lines}</tbody></table>"
    )


def keeps(schedule: Schedule) -> str:
    """What a method leaves of a picture, before anybody knows how large that is."""
    enter, share = schedule.entering, 1.0
    if enter.adaptive:
        begin = "The picture decides how many visual tokens enter the decoder. Keeps {} of these"
    elif enter.share is None:
        begin = f"Lets {enter.tokens} visual tokens of a picture into the decoder, or all if it "
        begin += "has fewer. Keeps {} of these"
    else:
        begin, share = "Keeps {} of the visual tokens", enter.share
    said = begin.format(f"{share * schedule.mean_keep:.0%}")
    said += f", mean over {schedule.layers} layers; {share * schedule.keeps[-1]:.1%} in the last"
    return said + (f"; none after {schedule.tau} generated tokens." if schedule.anneals else ".")


def refusal(line: str) -> str:
    """What is wrong and how to mend it."""
    return f'<p class="st3-refusal" role="alert">{html.escape(line)}</p>' if line else ""


def note(lines: Sequence[str]) -> str:
    """What is to be said besides."""
    return "".join(f'<p class="st3-note">{html.escape(line)}</p>' for line in lines)
