"""What the rows of one process have in common: machine, versions, date, command, commit."""

from __future__ import annotations

import datetime
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from st3.machine import describe_machine


def start(
    device: torch.device, dtype: torch.dtype, command: str, commit: str | None
) -> dict[str, Any]:
    """For `st3.benchmark.run.run`; the commit is git's, if none is given."""
    return {
        "machine": describe_machine(device, dtype),
        "settings": {
            "date": datetime.date.today().isoformat(),
            "command": command,
            "commit": commit or _commit(),
        },
    }


def noted(program: Sequence[str], words: Sequence[str], places: Mapping[str, str]) -> str:
    """What was asked for, without the places of this machine.

    Args:
        program: what it is called.
        words: behind that.
        places: what is written for a word, or for the value of an option, `--output X` or
            `--output=X`.
    """
    shown = [places.get(word, word) if word[:2] != "--" else word for word in words]
    for number, word in enumerate(words):
        option, _, value = word.partition("=")
        if option[:2] != "--" or option not in places:
            continue
        if value:
            shown[number] = f"{option}={places[option]}"
        elif number + 1 < len(shown):
            shown[number + 1] = places[option]
    return shlex.join([*program, *shown])


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
