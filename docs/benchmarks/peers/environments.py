"""An environment for each peer, from PyPI by pinned version; nothing of theirs is copied here.

    python docs/benchmarks/peers/environments.py FOLDER [NAME ...]

makes those that are missing in FOLDER. What cannot be installed is a line, and the others are made
all the same. torch comes first, as constraints.txt pins it: on Linux PyPI's is a CUDA build of
gigabytes, so let pip find a CPU build (PIP_FIND_LINKS, or an index of CPU wheels).
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_FAILED = "failed.txt"


@dataclass(frozen=True)
class Environment:
    """What it has.

    Attributes:
        packages: requirements, with all that they need; torch is there before.
        alone: without what they need, since they ask for another torch, or for much that is not
            used.
        without: taken away again: built for CUDA, they cannot be imported beside a CPU build.
        proof: what can be imported then.
    """

    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    proof: str = "import torch"

    @property
    def check(self) -> str:
        """Code that runs where all of this is there, in the versions that are pinned."""
        pins = dict(one.split("==") for one in (*self.packages, *self.alone) if "==" in one)
        return (
            f"import importlib.metadata as m\n{self.proof}\nfor name, wanted in {pins}.items():\n"
            "    found = m.version(name)\n"
            "    if found != wanted:\n        raise ImportError(f'it has {name} {found}')\n"
        )


ENVIRONMENTS = {
    "openvino": Environment(
        ("optimum-intel==2.2.0",), without=("torchvision",),
        proof="from optimum.intel import OVModelForVisualCausalLM",
    ),
    "kvpress": Environment(("kvpress==0.5.5",), proof="import kvpress"),
    "sparsevlm": Environment(
        # Transformers 5: it reaches into the cache as that release has it.
        ("transformers==5.23.0", "accelerate", "pillow", "numpy"), alone=("sparsevlm==0.1.3",),
        proof="from sparsevlm import sparsevlm_generate",
    ),
    "quantized": Environment(
        ("transformers==5.23.0", "accelerate", "hqq==0.2.8.post1"),
        proof="from hqq.core.quantize import Quantizer",
    ),
}  # fmt: skip


def python_of(folder: Path, name: str) -> str:
    """The interpreter of an environment, made or not."""
    return str(folder.resolve() / name / "bin" / "python")


def make(folder: Path, name: str) -> str | None:
    """Make an environment if it is not there.

    Returns:
        None; or why it cannot be had, in one line. That is remembered: remove FOLDER/NAME to try
        again.
    """
    wanted, there = ENVIRONMENTS[name], folder / name
    failed, python = there / _FAILED, python_of(folder, name)
    if _proves(python, wanted.check) is None:  # maybe mended by hand since
        failed.unlink(missing_ok=True)
        return None
    if failed.exists():
        return failed.read_text(encoding="utf-8").strip()
    there.parent.mkdir(parents=True, exist_ok=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--no-input"]
    pinned = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    steps = [[sys.executable, "-m", "venv", str(there)]] if not Path(python).exists() else []
    torch = pinned[0] if pinned else "torch"
    steps.append([*pip, torch, *wanted.packages])  # together: else torchvision takes another torch
    if wanted.alone:
        steps.append([*pip, "--no-deps", *wanted.alone])
    if wanted.without:
        steps.append([python, "-m", "pip", "uninstall", "--quiet", "--yes", *wanted.without])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing said"]
            said = [line for line in lines if "ERROR" in line] or lines
            return _remember(
                failed, f"{' '.join(step[3:])} ended with {done.returncode}: {said[-1]}"
            )
    why = _proves(python, wanted.check)
    return None if why is None else _remember(failed, f"installed, but {wanted.proof!r}: {why}")


def _proves(python: str, code: str) -> str | None:
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError as error:
        return str(error.strerror)
    if not done.returncode:
        return None
    return next((x for x in reversed(done.stderr.splitlines()) if x.strip()), "it failed")


def _remember(path: Path, why: str) -> str:
    if path.parent.is_dir():
        path.write_text(f"{why}\n", encoding="utf-8")
    return why


def main() -> int:
    """The number of environments that cannot be had."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.stderr.write("give a folder for the environments\n")
        return 2
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(ENVIRONMENTS)
    unknown = [name for name in names if name not in ENVIRONMENTS]
    if unknown:
        sys.stderr.write(f"no environment {unknown[0]!r}; there are: {', '.join(ENVIRONMENTS)}\n")
        return 2
    lost = 0
    for name in names:
        why = make(folder, name)
        lost += why is not None
        sys.stderr.write(f"{name}: {why or python_of(folder, name)}\n")
    return lost


if __name__ == "__main__":
    sys.exit(main())
