"""OpenVINO's own pipeline beside ours, under another interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from st3.profiling.peer import PeerProcess

OPENVINO = "openvino"
PIPELINE = Path(__file__).with_name("openvino_pipeline.py")


class OpenVino(PeerProcess):
    """optimum-intel's pipeline, exported when the first answer is wanted.

    Args:
        python: an interpreter that has optimum-intel.
        config, dtype, more: see `PeerProcess`.

    Attributes:
        facts: precisions of computing and of the cache, threads, versions.
    """

    def __init__(self, python: str, config: Any, dtype: torch.dtype, **more: Any) -> None:
        super().__init__(python, PIPELINE, config, dtype, **more)
