"""What the rows of one process have in common: machine, versions, date, command, commit."""

from __future__ import annotations

import datetime
import subprocess
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


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
