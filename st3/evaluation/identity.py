"""What a model is, whatever it is called: other weights under an old name are another model."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

import st3
from st3.inference.checkpoints import fetching, find

_WHOLE = 1 << 26  # bytes of a file that is read from end to end; of a larger one
_PIECE, _EVERY = 1 << 12, 1 << 20  # so many bytes out of every so many are
_PACKAGES = ("lmms-eval", "torch", "transformers")


def model_identity(name: str) -> dict[str, str]:
    """A checkpoint's place, and a commit or a fingerprint of its files.

    Of files of gigabytes 4 KiB out of every MiB are read, which no layer's matrix falls between:
    weights that were merged or trained further and saved under the old name are noticed.

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
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for start in (*range(0, size, _EVERY), size - _PIECE):
                file.seek(start)
                digest.update(file.read(_PIECE))
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
