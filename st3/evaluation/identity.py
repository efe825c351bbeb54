"""What a model is, whatever it is called: other weights under an old name are another model."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

import st3
from st3.inference.checkpoints import fetching, find

_ENDS = 1 << 20  # bytes that are read at both ends of a file of weights
_PACKAGES = ("lmms-eval", "torch", "transformers")


def model_identity(name: str) -> dict[str, str]:
    """A checkpoint's place, and a commit or a fingerprint of its files.

    Of weights in a folder both ends and the length are read, and not the gigabytes between.

    Raises:
        ValueError, OSError: see `st3.inference.checkpoints.find`; not found, or not reachable.
    """
    source = find(name)
    if not source.is_folder:
        with fetching(source):
            path = Path(str(cached_file(source.place, "config.json", revision=source.revision)))
        return {"model": source.place, "weights": path.parent.name}
    digest = hashlib.sha256()
    folder = Path(source.place)
    for path in sorted(
        (*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.jinja"))
    ):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update(file.read(_ENDS))
            file.seek(max(0, path.stat().st_size - _ENDS))
            digest.update(file.read())
    return {"model": source.place, "weights": digest.hexdigest()[:16]}


def versions() -> dict[str, str | None]:
    """Of what computes and scores."""
    found: dict[str, str | None] = {"st3": st3.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def cell_settings(
    identity: dict[str, Any], task: dict[str, Any], method: dict[str, Any], **how: Any
) -> dict[str, Any]:
    """All that decides the answers of a cell.

    Args:
        identity: of `model_identity`. `task`: what of the task decides them. `method`: its name and
            parameters. `how`: dtype, device and the like.
    """
    return {**identity, "task": task, "method": method, **how, "versions": versions()}
