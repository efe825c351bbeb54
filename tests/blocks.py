"""The fenced blocks of README and docs, and what a comment before one says about running it.

    <!-- not run: weights -->     its commands are only parsed: their options must exist
    <!-- on the demo -->          with the demo in place of the model that it names
    <!-- after the first page --> Python that goes on where README's block ended

Without any of these a block runs as it stands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
]  # fmt: skip
SHELL = {"bash", "console"}
LANGUAGES = {*SHELL, "python", "toml", "json", "text"}
REASONS = {
    "weights": "a checkpoint of gigabytes",
    "a GPU": "",
    "the network": "",
    "an extra": "a package that the tests do without",
    "minutes": "it takes too long for every change",
    "several processes": "",
    "it serves": "until somebody stops it",
    "an installation": "of packages, or of this one",
}
DEMO, AFTER = "on the demo", "after the first page"
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^>\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_STARTERS = {"torchrun", "accelerate"}
"""Programs that start st3 in several processes, behind -m or --module."""


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    mark: str | None

    @property
    def runs(self) -> bool:
        """Whether something of it is run."""
        return not (self.mark or "").startswith("not run: ")

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}, line {self.line}"


def blocks(page: Path) -> list[Block]:
    """In their order. Marks that are none (other comments) are not looked at."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        found.append(Block(page, line, match["language"], match["text"], match["mark"]))
    return found


def lines(block: Block) -> Iterator[str]:
    """Commands as a shell reads them: a backslash, a bar or an open quote goes on below."""
    gathered = ""
    for line in block.text.splitlines():
        gathered += line
        if gathered.rstrip().endswith(("\\", "|")) or _is_open(gathered):
            gathered = gathered.rstrip().removesuffix("\\") + "\n"
            continue
        if gathered.strip():
            yield gathered
        gathered = ""
    assert not gathered, f"{block.where}: a command that does not end"


def pieces(line: str) -> list[list[str]]:
    """The words of each program in a line, without assignments before it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for token in lexer:
        if set(token) <= set("();<>|&"):
            found.append([])
        elif found[-1] or not re.match(r"[A-Z_0-9]+=", token):
            found[-1].append(token)
    return [words for words in found if words]


def st3_arguments(words: list[str]) -> list[str] | None:
    """What a program's words give to `st3`; None if it is another program."""
    if words[0] == "st3":
        return words[1:]
    if words[0] in _STARTERS and ({"-m", "--module"} & {*words}):
        at = min(words.index(word) for word in ("-m", "--module") if word in words)
        if words[at + 1].split(".")[0] == "st3_cli":
            return words[at + 2 :]
    return None


def _is_open(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return True
    return False
