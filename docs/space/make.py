"""`python docs/space/make.py FOLDER`: all files of a Space, the package and the demo included."""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def requirements() -> str:
    """What the package and the page need, torch's CPU build first."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["page"]]
    return "\n".join(["--extra-index-url https://download.pytorch.org/whl/cpu", *needs, ""])


def make(folder: Path) -> None:
    """Write it; what is in the folder besides stays.

    Raises:
        FileExistsError: there is a package in it already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns("__pycache__", "training")
    shutil.copytree(ROOT / "st3", folder / "st3", ignore=ignore)
    for name in ("app.py", "README.md"):
        shutil.copy(HERE / name, folder / name)
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")
    (folder / "requirements.txt").write_text(requirements(), encoding="utf-8")
    (folder / ".gitattributes").write_text(
        "*.safetensors filter=lfs diff=lfs merge=lfs -text\n", encoding="utf-8"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python docs/space/make.py FOLDER")
    make(Path(sys.argv[1]))
