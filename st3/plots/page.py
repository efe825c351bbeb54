"""A page that needs nothing else: pictures are inlined, nothing is fetched or run."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from st3.tables import Table

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
img { max-width: 100%; } figure { margin: 2rem 0; } figcaption { color: #555; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0 0 2rem; }
caption { text-align: left; font-weight: bold; padding: .3rem 0; }
th, td { padding: .15rem .8rem; text-align: right; } thead { border-bottom: 1px solid; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.wide { overflow-x: auto; }
"""


def page(title: str, heading: str, parts: Iterable[str], made: str) -> str:
    """HTML of a whole page.

    Args:
        title, heading: as text.
        parts: of `paragraph`, `listed`, `tabled` and `pictured`.
        made: what it was made with, as text.
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head><body>
<h1>{html.escape(heading)}</h1>
{"".join(part + chr(10) for part in parts)}<p><small>{html.escape(made)}</small></p>
</body></html>
"""


def paragraph(text: str, name: str = "") -> str:
    """Text, behind its name in bold."""
    bold = f"<b>{html.escape(name)}:</b> " if name else ""
    return f"<p>{bold}{html.escape(text)}</p>"


def listed(lines: Iterable[str]) -> str:
    """Lines of text as a list."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def tabled(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Cells of text, figures to the right."""
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def table_of(table: Table) -> str:
    """A table under its title."""
    return tabled(table.heads, table.rows, table.title)


def pictured(path: Path, caption: str) -> str:
    """A PNG and what it shows."""
    text, data = html.escape(caption), base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
