"""The house's rules (docs/architecture.md): which room may import which, and no circle."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS: list[set[str]] = [
    {"st3_cli"},
    {"st3.benchmark", "st3.page", "st3.serving"},
    {
        "st3.sweep",
        "st3.attention",
        "st3.evaluation",
        "st3.profiling",
        "st3.plots",
        "st3.verification",
    },
    {"st3.demo"},
    {"st3.batch"},
    {"st3.inference"},
    {"st3.engine"},
    {"st3.families", "st3.methods"},
    {"st3"},
]
"""From the roof down. Rooms of one floor know each other only as far as no circle comes of it, and
`families` and `methods` not at all."""


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    _name(path): path for room in ("st3", "st3_cli") for path in sorted((ROOT / room).rglob("*.py"))
}


def _imports(module: str) -> set[str]:
    """The project's modules that a module imports, wherever in its text that stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: no relative imports, they are not looked at here"
            doors = {
                "load": "st3.inference.loading",
                "trim": "st3.engine.trim",
                "answer_all": "st3.batch.answering",
            }
            names = [alias.name for alias in node.names]
            found |= {str(node.module)} | {f"{node.module}.{name}" for name in names}
            found |= {doors[name] for name in names if node.module == "st3" and name in doors}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES and name != module}


def _room(module: str) -> str:
    parts = module.split(".")
    inside = len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir()
    return ".".join(parts[:2]) if inside else parts[0]


def _floor(room: str) -> int:
    floors = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert floors, f"{room} has no floor in FLOORS"
    return floors[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str) -> None:
    if module == "st3":  # `st3.load` and `st3.trim` are doors to the rooms above
        return
    own = _room(module)
    for imported in _imports(module) - {"st3"}:
        other = _room(imported)
        assert _floor(other) >= _floor(own), f"{module} imports {imported}, which is above it"
        assert {own, other} != {"st3.families", "st3.methods"}, f"{module} imports {imported}"
        if ".demo.training" in imported:
            assert module.startswith("st3.demo.training"), f"{module} imports {imported}"


def test_no_circle() -> None:
    left = {name: _imports(name) - {"st3"} for name in MODULES if name != "st3"}
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"a circle: {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_few_modules_stand_outside_the_rooms() -> None:
    assert len(list((ROOT / "st3").glob("*.py"))) <= 7


def test_matplotlib_is_drawn_with_in_one_room() -> None:
    for module, path in MODULES.items():
        if "matplotlib" in path.read_text():
            assert module.startswith(("st3.plots", "st3.machine")), module


def test_text_files_are_utf8() -> None:
    """Whatever the locale: `read_text()` alone takes its encoding."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                plain = {"read_text": 0, "write_text": 1}.get(node.func.attr)
                if plain is not None and len(node.args) == plain:
                    said = {keyword.arg for keyword in node.keywords}
                    assert "encoding" in said, f"{module}, line {node.lineno}"


def test_markup_is_never_written() -> None:
    """The command line prints text as it is: a style goes beside it, not into it."""
    for module, path in MODULES.items():
        if module.startswith("st3_cli"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\[/?(dim|bold|red|yellow|green)\b[^]]*\]", text), module


def test_help_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, st3_cli.app, st3.methods; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
