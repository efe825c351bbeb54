"""The tables in README and docs are those of docs/benchmarks, to the letter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_tables_are_rendered_from_the_benchmarks() -> None:
    command = [sys.executable, ROOT / "docs" / "make_tables.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_conversations_cost() -> None:
    """Qwen2.5-VL-7B: 28 layers, 4 key heads of 128 in 2 bytes; 1536 visual tokens a turn."""
    from st3.methods import make_method

    page = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    for method in ("none", "pvtp", "st3"):
        schedule = make_method(method).schedule(28)
        cells = []
        for turns in (1, 5, 10, 20):
            ages = [127 * (turns - turn) for turn in range(turns)]
            visual = sum(schedule.count(n, 1536, age) for age in ages for n in range(1, 29))
            held = 2 * 4 * 128 * 2 * (visual + 28 * 160 * turns)
            cells.append(f"{held / 1e6:.0f} MB")
        assert f"| `{method}` | {' | '.join(cells)} |" in page


def test_every_link_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_that_contributing_names_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"[\w./-]*(?:\.ci|st3|st3_cli|docs|tests)/[\w./-]*\w/?", page)
    lost = {name for name in named if not (ROOT / name).exists()}
    assert not lost
    assert len({*named}) > 20
    scripts = {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir() if not path.suffix}
    assert scripts <= {*named}


def test_benchmarks_say_how_they_were_made() -> None:
    import json

    for path in (ROOT / "docs" / "benchmarks").glob("[ps]*-*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        assert document["settings"]["command"].startswith(("st3 profile", "st3 sweep"))
        assert document["settings"]["date"]
        assert document["machine"]["torch"]
        assert "/root" not in path.read_text(encoding="utf-8")
        assert not document["interrupted"]
