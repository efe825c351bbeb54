"""Every figure that st3 draws; matplotlib is imported in this folder and nowhere else."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path


def _has_a_home() -> bool:
    """Whether matplotlib can keep its settings and its list of fonts where it does that."""
    try:
        home = Path.home()
        folders = [home / ".matplotlib"]
        if sys.platform.startswith(("linux", "freebsd")):
            folders = [
                Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "matplotlib"),
                Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache", "matplotlib"),
            ]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return False
    return all(os.access(folder, os.W_OK) for folder in folders)


if "MPLCONFIGDIR" not in os.environ and not _has_a_home():
    # It would say in several lines that it takes a folder of its own; so here is one.
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="st3-")
    atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
