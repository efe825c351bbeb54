"""Two processes that torchrun starts, on CPUs, for not too long: those that wait wait forever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_LONGEST = 150  # seconds


def torchrun(*arguments: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of both together."""
    started = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         *arguments],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1], start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    try:
        out, err = started.communicate(timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    return started.returncode, out, err
