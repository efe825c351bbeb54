"""MkDocs' hook (`mkdocs.yml`): pages that are written for GitHub, as a site that needs no network.

- README, CONTRIBUTING, SECURITY and CHANGELOG, which lie beside docs/, become pages of it.
- A link goes to the page that its file has become; a source file that is linked becomes a page.
- `<!-- api: NAME -->`, which GitHub does not show, becomes that name's docstring.
- A built page that would load anything from elsewhere is an error, and so is a link to no file.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
BESIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages beside docs/ -> what they are called on the site."""
_LINK = re.compile(r"(?<=\]\()(?P<target>[^)#\s]+)(?P<rest>#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
_API = re.compile(r"<!-- api: (\S+) -->")
_LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?![^>]*rel=[\"']?(?:canonical|next|prev))[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
    r"|@import\s+[^;]*//[^;]*;"
)
_LANGUAGES = {".py": "python", ".cff": "yaml", ".txt": "text", ".toml": "toml"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere, and one for each source file that a page links."""
    for path, uri in BESIDE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=text))
    pages = [*BESIDE, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    for page in pages:
        source = ROOT / page
        if not source.is_file():  # one that was added above
            continue
        for path in _linked(page, source.read_text(encoding="utf-8")):
            uri = _uri(path)
            if uri.startswith("source/") and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, content=_listing(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where their files are on the site; put docstrings in."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        page.meta["search"] = {"exclude": True}
        return markdown
    path = {uri: path for path, uri in BESIDE.items()}.get(uri, f"docs/{uri}")

    def lead(match: re.Match[str]) -> str:
        target = _target(path, match["target"])
        if target is None:
            return match[0]
        there = posixpath.relpath(_uri(target), posixpath.dirname(uri) or ".")
        return there + (match["rest"] or "")

    markdown = _outside_code(markdown, lambda text: _LINK.sub(lead, text))
    return _API.sub(r"\n::: \1\n", markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse what would be fetched from elsewhere.

    Raises:
        PluginError: a script, a style, a font or a picture of another host.
    """
    found = _LOADED.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri} would load from elsewhere: {found[0]}")
    return output


def _target(page: str, target: str) -> str | None:
    """The file, from the root, that a link of a page leads to; None if that is on the web.

    Raises:
        PluginError: there is none.
    """
    if ":" in target:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    if not (ROOT / path).is_file():
        raise PluginError(f"{page}: there is no file {target}")
    return path


def _linked(page: str, text: str) -> list[str]:
    """Files that a page links."""
    text = _outside_code(text, lambda part: part, code="")
    targets = [_target(page, match["target"]) for match in _LINK.finditer(text)]
    return [target for target in targets if target is not None]


def _uri(path: str) -> str:
    """What a file of the repository is called on the site."""
    if path in BESIDE:
        return BESIDE[path]
    if path.startswith("docs/") and not path.endswith(".py"):
        return path.removeprefix("docs/")
    return f"source/{path}.md"


def _listing(path: str) -> str:
    """A source file as a page."""
    text = (ROOT / path).read_text(encoding="utf-8")
    language = _LANGUAGES.get(os.path.splitext(path)[1], "text")
    return f"# {posixpath.basename(path)}\n\n`{path}`\n\n````{language}\n{text}\n````\n"


def _outside_code(text: str, change: Callable[[str], str], code: str | None = None) -> str:
    """Change everything but fenced code, which is left, or becomes `code`."""
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0] if code is None else code]
        end = fence.end()
    return "".join([*parts, change(text[end:])])
