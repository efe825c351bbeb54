"""Every command and every Python block of README and docs does what a reader would see it do.

Commands run in this process, in a folder with the files that they name; what cannot be run here
says so in a comment before it (`blocks.py`), and is parsed: its command and options must exist.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from blocks import (
    AFTER,
    DEMO,
    LANGUAGES,
    PAGES,
    REASONS,
    ROOT,
    SHELL,
    Block,
    blocks,
    lines,
    pieces,
    st3_arguments,
)
from PIL import Image

from st3 import demo
from st3_cli import commands

SHORTER = {
    "profile": [
        "--repeats", "1", "--min-seconds", "0", "--new-tokens", "3", "--methods", "none,st3",
    ],
    "verify": ["--new", "3", "--methods", "none,st3"],
    "attention-map": ["--new-tokens", "2", "--layers", "1,2", "--heads", "1"],
    "run": ["--max-new-tokens", "3"],
    "sweep": ["--scenes", "1", "--strides", "4"],
    "batch": ["--max-new-tokens", "3", "--workers", "0"],
}  # fmt: skip
"""So that a page takes seconds; an option that a command has already stays as it is."""


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_blocks_say_what_they_are(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: a language, such as bash or text"
        if block.language == "python":
            compile(block.text, block.where, "exec", dont_inherit=True)
        if block.mark and block.mark.startswith("not run"):
            assert block.mark.removeprefix("not run: ") in REASONS, f"{block.where}: {block.mark}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_exist(page: Path) -> None:
    """Each `st3`, its options and what they may be; each module, extra and file of ours."""
    for block in blocks(page):
        if block.language not in SHELL:
            continue
        for line in lines(block):
            for words in pieces(line):
                arguments = st3_arguments(words)
                if arguments is not None:
                    _parse(arguments, block)
                else:
                    _look_up(words, block)


def _parse(arguments: list[str], block: Block) -> None:
    """As the command line does, and nothing is called."""
    group: Any = typer.main.get_command(commands.app)
    name, *rest = arguments
    if name.startswith("--"):
        assert name in ("--help", "--version"), block.where
        return
    assert name in group.commands, f"{block.where}: no command {name}"
    try:
        group.commands[name].make_context(name, rest)
    except Exception as error:  # Typer's own Click has them
        shown = getattr(error, "message", error)
        raise AssertionError(f"{block.where}: st3 {name}: {shown}") from error


def _look_up(words: list[str], block: Block) -> None:
    """What other programs are given of ours."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if words[0] == "pip":
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert {*extras.split(",")} <= {*project["optional-dependencies"]}, block.where
    if words[:2] == ["python", "-m"] and words[2].split(".")[0] == "st3":
        spec = importlib.util.find_spec(words[2])
        assert spec is not None, f"{block.where}: no module {words[2]}"
    for word in words:
        if re.match(r"(docs|tests|\.ci)/[\w./]+$", word):
            assert (ROOT / word).exists(), f"{block.where}: no file {word}"


def _has_work(page: Path) -> bool:
    return any(b.runs and b.language in {*SHELL, "python"} for b in blocks(page))


@pytest.mark.parametrize("page", list(filter(_has_work, PAGES)), ids=_name)
def test_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, st3_: Any, first: dict[str, Any]
) -> None:
    _furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # `st3 chat` reads messages from there
    own: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if not block.runs:
            continue
        if block.language == "python":
            names = own
            if block.mark == AFTER:
                names = {**first, **own}
            _execute(block, names, tmp_path)
            own.update({k: v for k, v in names.items() if k not in first})
        elif block.language in SHELL:
            for line in lines(block):
                _run(line, block, st3_)


def _execute(block: Block, names: dict[str, Any], folder: Path) -> None:
    text = block.text
    if block.mark == DEMO:
        text = re.sub(r"(st3\.load\()\"[^\"]+\"", r'\1"demo"', text)
    path = folder / f"block{block.line}.py"  # a dataclass looks up where it was written
    path.write_text(text, encoding="utf-8")
    saved = re.search(r"Save it as `([\w.]+)`", _before(block))
    if saved:
        (folder / saved[1]).write_text(text, encoding="utf-8")
    exec(compile(text, str(path), "exec", dont_inherit=True), names)


def _before(block: Block) -> str:
    """The paragraph above a block."""
    return "\n".join(block.page.read_text(encoding="utf-8").splitlines()[: block.line - 1][-4:])


def _run(line: str, block: Block, st3_: Any) -> None:
    found = pieces(line)
    if any(st3_arguments(words) is None for words in found):
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": programs}
        shell = re.sub(r"(?<=--model )\S+", "demo", line) if block.mark == DEMO else line
        done = subprocess.run(["bash", "-ceu", shell], capture_output=True, text=True, env=env)
        assert done.returncode == 0, f"{block.where}: {line}\n{done.stderr}"
        return
    for words in found:
        arguments = list(st3_arguments(words) or [])
        if block.mark == DEMO and "--model" in arguments:
            arguments[arguments.index("--model") + 1] = "demo"
        more = SHORTER.get(arguments[0], [])
        for option, value in zip(more[::2], more[1::2], strict=True):
            if option not in arguments:
                arguments += [option, value]
        done = st3_(*arguments)
        assert done.code == 0, f"{block.where}: st3 {' '.join(arguments)}\n{done.err}"
        assert done.out or done.err, block.where


@pytest.fixture(scope="module")
def first() -> dict[str, Any]:
    """What README's Python block leaves behind."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(ROOT / "README.md"):
        if block.language == "python":
            exec(block.text, names)
    return names


def _furnish(folder: Path) -> None:
    """The files that commands name."""
    picture = Image.open(demo.PICTURE).convert("RGB")
    for name in ("photo.jpg", "photo.png", "a.jpg", "b.jpg", "before.jpg", "after.jpg"):
        picture.save(folder / name)
    for name in ("photos", "frames", "some"):
        (folder / name).mkdir()
        for number in range(2):
            picture.rotate(90 * number).save(folder / name / f"{number}.png")
    turned = [picture.rotate(90 * n) for n in range(3)]
    turned[0].save(folder / "clip.gif", save_all=True, append_images=turned[1:], duration=250)
    rows = [{"id": n, "image": f"photos/{n}.png", "prompt": "describe"} for n in range(2)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("questions.jsonl", "rows.jsonl", "products.jsonl"):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "my-checkpoint").symlink_to(Path(demo.PICTURE).parents[1] / "model")
