"""Where things are printed: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from rich.console import Console

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def quiet_transformers() -> None:
    """Leave stderr to us: the warnings of transformers and the Hub are for programmers."""
    import transformers

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    if not err.is_terminal:
        transformers.logging.disable_progress_bar()
