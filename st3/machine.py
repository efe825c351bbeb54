"""What a figure was made with: versions, processor, memory, GPU. For reports and `st3 env`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

import st3

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "fvcore", "numpy", "matplotlib")


def describe_machine(device: torch.device | None = None, dtype: Any = None) -> dict[str, Any]:
    """Versions and hardware, and where a model ran if that is given. Sizes in bytes."""
    found: dict[str, Any] = {"st3": st3.__version__}
    found |= {name: _version(name) for name in _PACKAGES}
    found |= {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_limit(),
    }
    if device is None or device.type == "cuda":
        found |= _gpu(device)
    if device is not None:
        found["device"] = str(device)
    if dtype is not None:
        found["dtype"] = str(dtype).removeprefix("torch.")
    return found


def made_with(document: dict[str, Any]) -> str:
    """Date, machine and command of a report, in one sentence.

    Args:
        document: with `machine`, and `date` and `command` in `settings`.
    """
    machine, settings = document["machine"], document["settings"]
    where = machine.get("gpu") if str(machine.get("device")).startswith("cuda") else None
    where = where or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    return (
        f"Made {settings['date']} on {where}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, by `{settings['command']}`."
    )


def available_cores() -> int:
    """Cores that this process may use."""
    return len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else (
        os.cpu_count() or 1
    )  # fmt: skip


def memory_limit() -> int:
    """Bytes of main memory, or of the container's share of it."""
    return min(int(psutil.virtual_memory().total), _container("memory.max") or 2**62)


def gpu_count() -> int:
    """CUDA devices that torch sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still take on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = _container("memory.max"), _container("memory.current")
    if limit is None or used is None:
        return free
    return min(free, limit - used + _reclaimable())


def _container(name: str) -> int | None:
    """A figure of our control group, where there is one and it is a limit."""
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _reclaimable() -> int:
    """Bytes of files in our control group's memory that the system gives up when asked."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu(device: torch.device | None) -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"gpu": None}
    properties = torch.cuda.get_device_properties(device or torch.device("cuda"))
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip()
