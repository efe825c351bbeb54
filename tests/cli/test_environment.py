"""However the process was started: streams that are closed, a locale of letters alone, no home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from st3 import demo
from st3_cli.errors import explain

ROOT = Path(__file__).parents[2]
CLEAN = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING", "MPL", "XDG_"))
}


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `st3 ...` in a shell, where $ST3 stands for it."""
    words = {"PYTHONPATH": str(ROOT), "ST3": f"{sys.executable} -m st3_cli", **environment}
    return subprocess.run(
        ["/bin/sh", "-c", command], env=CLEAN | words, capture_output=True, text=True,
        encoding="utf-8", errors="surrogateescape", timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        ("$ST3 run - <&-", 1, "", "st3: standard input is closed: give a path, or pipe"),
        ("$ST3 --version <&-", 0, "st3 ", ""),
        ("$ST3 --version >&-", 1, "", "st3: standard output is closed: send it to a file"),
        ("$ST3 methods --json >&- <&-", 1, "", "st3: standard output is closed"),
        ("$ST3 methods --json 2>&- <&-", 0, "{", ""),
        ("$ST3 nonsense 2>&-", 2, "", ""),
    ],
)
def test_closed_streams(command: str, code: int, out: str, err: str) -> None:
    done = shell(command)
    assert (done.returncode, done.stdout[: len(out)]) == (code, out)
    assert done.stderr.startswith(err)
    assert len(done.stderr.splitlines()) == bool(err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has such a device")
def test_a_full_disk() -> None:
    done = shell("$ST3 methods --json >/dev/full")
    assert done.returncode == 1
    assert done.stderr == "st3: [Errno 28] No space left on device\n"


LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX"},
    {"LC_ALL": "C", "PYTHONUTF8": "0"},
    {"PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"},
]


@pytest.mark.parametrize("locale", LOCALES)
def test_names_in_any_locale(tmp_path: Path, locale: dict[str, str]) -> None:
    done = shell(f"$ST3 run --show-kept '{tmp_path}/wie heißt 猫/a.png'", **locale)
    assert done.returncode == 2
    ascii_only = locale.get("PYTHONUTF8") == "0" and locale["LC_ALL"] == "C"
    shown = r"wie hei\xdft \u732b" if ascii_only else "wie heißt 猫"
    assert done.stderr == f"st3: --show-kept: there is no folder {tmp_path}/{shown}\n"


def test_an_answer_in_ascii(tmp_path: Path) -> None:
    """Files, folders, prompts and JSON with other letters, where the locale knows none of them."""
    picture = tmp_path / "猫.png"
    shutil.copy(demo.PICTURE, picture)
    folder = tmp_path / "übersicht"
    folder.mkdir()
    done = shell(
        f"$ST3 run '{picture}' 'wie heißt 猫?' --json --max-new-tokens 2 --show-kept "
        f"'{folder}/kept ü.png'",
        LC_ALL="C", PYTHONUTF8="0", HOME="/dev/null/nowhere", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert done.stderr == ""  # nor does a library complain of the home that is none
    assert done.returncode == 0
    assert json.loads(done.stdout)["prompt"] == "wie heißt 猫?"
    assert (folder / "kept ü.png").exists()


def test_a_name_that_a_library_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are read by compiled code, which knows UTF-8 alone."""
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UnicodeEncodeError) as caught:
        "mod\udcc3\udca8le".encode()
    message, code = explain(caught.value)
    assert (message, code) == (
        "this locale (ascii) lacks letters that are needed: set PYTHONUTF8=1, or LC_ALL=C.UTF-8", 1,
    )  # fmt: skip


def test_a_torchvision_of_another_torch_is_named() -> None:
    """As PyPI's, beside a CPU build: transformers wraps what its registration raised."""
    error = ModuleNotFoundError("Could not import module 'PreTrainedModel'.")
    error.__cause__ = RuntimeError("operator torchvision::nms does not exist")
    message, code = explain(error)
    assert code == 1
    assert "take both from one index, or pip uninstall torchvision" in message
