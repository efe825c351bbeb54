"""Work for a GPU, recorded once as a CUDA graph and replayed without its launch overhead."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch


class DecodeGraphWarning(UserWarning):
    """CUDA graphs or a compiled step were asked for and cannot be had; the answer is the same."""


def warn(message: str) -> None:
    """Say what cannot be had."""
    warnings.warn(message, DecodeGraphWarning, stacklevel=2)


def first_line(error: Exception) -> str:
    """What an error says, in one line; torch.compile wraps what went wrong."""
    error = getattr(error, "inner_exception", error)
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def obstacle(device: torch.device) -> str | None:
    """Why nothing can be recorded here, or None if it can."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, the model is on {device.type!r}"
    return None


def bare(device: torch.device) -> bool:
    """Whether neither gradients nor autocast are asked for, which a replay leaves out."""
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled(device.type)


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Run `step` to warm up, record it, and return what replays it.

    Raises:
        RuntimeError: something in it cannot be recorded.
    """
    with torch.cuda.device(device):
        before, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(before)
        try:
            with torch.cuda.stream(side):
                step()
                step()
            before.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                step()
        except RuntimeError:
            torch.cuda.synchronize()
            raise
        finally:
            torch.cuda.set_stream(before)  # a capture that fails does not come back by itself
    replay: Callable[[], None] = graph.replay
    return replay
