"""cuDNN's attention is switched off while it is in the way, and no longer."""

from __future__ import annotations

import torch

from st3.engine.kernels import without_plans


def test_two_that_overlap() -> None:
    """As threads do: what began second ends last."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    first, second = without_plans(), without_plans()
    first.__enter__()
    second.__enter__()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    first.__exit__(None, None, None)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    second.__exit__(None, None, None)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
