"""The entry point by which lmms-eval finds `--model st3`.

It is asked while lmms-eval imports itself, and so must import nothing of it before it is called.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval wants to know: the names of our classes, which it imports when used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="st3",
        chat_class_path="st3.evaluation.lmms.Chat",
        simple_class_path="st3.evaluation.lmms.Plain",
    )
