"""Marks in time, and what lies between two of them: milliseconds, or operations launched."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Clock(ABC):
    """Take marks while something runs; read the differences when it has ended."""

    @abstractmethod
    def mark(self) -> Any:
        """Now."""

    @abstractmethod
    def between(self, first: Any, second: Any) -> float:
        """From one mark to another."""


class WallClock(Clock):
    """Milliseconds by `perf_counter`."""

    def mark(self) -> Any:
        """Seconds."""
        return time.perf_counter()

    def between(self, first: Any, second: Any) -> float:
        """Milliseconds."""
        return 1000 * float(second - first)


class CudaClock(Clock):
    """Milliseconds by CUDA events in the current stream."""

    def mark(self) -> Any:
        """An event; taking it does not make the host wait."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, second: Any) -> float:
        """Milliseconds; waits for the second event."""
        second.synchronize()
        return float(first.elapsed_time(second))


class LaunchCounter(TorchDispatchMode, Clock):
    """Operations that do work; views do none. As a context, it counts what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))

    def mark(self) -> Any:
        """Operations so far."""
        return self.count

    def between(self, first: Any, second: Any) -> float:
        """Operations."""
        return float(second - first)


def clock_for(device: torch.device) -> Clock:
    """CUDA events on a GPU, `perf_counter` elsewhere."""
    return CudaClock() if device.type == "cuda" else WallClock()
