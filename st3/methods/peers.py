"""Other people's training-free methods, and baselines, on the same schedule and scorer.

Each is a few lines because `st3.trim` does the rest in the same way for all of them; what the
authors left open, or did otherwise, is named where it matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from st3.methods.base import Method
from st3.methods.dial import Dial
from st3.methods.schedule import Schedule, tidy
from st3.methods.st3 import ST3


@dataclass(frozen=True)
class FastV(Method):
    """One cut: after layer K a share R of the visual tokens goes, the least attended there.

    Chen et al., *An Image is Worth 1/2 Tokens After Layer 2*, ECCV 2024.

    Attributes:
        k: layers that see every visual token; 1 <= K < L.
        r: the share dropped after them.
    """

    name: ClassVar[str] = "fastv"
    source: ClassVar[str] = "FastV, arXiv 2403.06764"

    dial: ClassVar[Dial | None] = Dial("r", 1.0, 0.0)

    k: int = 2
    r: float = 0.5

    def schedule(self, layers: int) -> Schedule:
        _check_depth(self.name, self.k, layers)
        if not 0 <= self.r <= 1:
            raise ValueError(f"fastv: R must lie between 0 and 1, got {self.r:g}")
        return Schedule((1.0,) * self.k + (tidy(1 - self.r),) * (layers - self.k))


@dataclass(frozen=True)
class VTW(Method):
    """Visual tokens withdrawal: after layer K none is left.

    Lin et al., *Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
    Inference*, AAAI 2025. The authors choose K for each model on a small data set; half of the
    depth is our default.

    Attributes:
        k: layers that see every visual token; None: half of them (ours).
    """

    name: ClassVar[str] = "vtw"
    source: ClassVar[str] = "VTW, arXiv 2405.05803"

    dial: ClassVar[Dial | None] = Dial("k", 1, None, whole=True)

    k: int | None = None

    def schedule(self, layers: int) -> Schedule:
        k = self._k(layers)
        _check_depth(self.name, k, layers)
        return Schedule((1.0,) * k + (0.0,) * (layers - k))

    def settings(self, layers: int) -> dict[str, Any]:
        return super().settings(layers) | {"k": self._k(layers)}

    def _k(self, layers: int) -> int:
        return layers // 2 if self.k is None else self.k


@dataclass(frozen=True)
class PyramidDrop(Method):
    """Stages of equal depth; at the end of each, a share `ratio` of what is left stays.

    Xing et al., *PyramidDrop*, CVPR 2025: four stages and a half, so 1, 1/2, 1/4, 1/8.

    Attributes:
        stages: number of stages, at most one a layer.
        ratio: lambda, the share that survives a stage.
    """

    name: ClassVar[str] = "pyramiddrop"
    source: ClassVar[str] = "PyramidDrop, arXiv 2410.17247"

    dial: ClassVar[Dial | None] = Dial("ratio", 0.0, 1.0)

    stages: int = 4
    ratio: float = 0.5

    def schedule(self, layers: int) -> Schedule:
        if not 1 <= self.stages <= layers:
            raise ValueError(
                f"pyramiddrop: stages must lie in 1..{layers}, the number of layers, "
                f"got {self.stages}"
            )
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"pyramiddrop: ratio must lie between 0 and 1, got {self.ratio:g}")
        return Schedule(tuple(self.ratio ** (n * self.stages // layers) for n in range(layers)))


@dataclass(frozen=True)
class Random(ST3):
    """ST3's schedule, but which tokens go is drawn by lot: the floor for any score."""

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "baseline"

    scorer: str = "random"


@dataclass(frozen=True)
class Uniform(ST3):
    """ST3's schedule, but kept tokens are spread evenly over the picture: no attention is read."""

    name: ClassVar[str] = "uniform"
    source: ClassVar[str] = "baseline"

    scorer: str = "uniform"


def _check_depth(name: str, k: int, layers: int) -> None:
    if not 1 <= k < layers:
        raise ValueError(f"{name}: K must lie in 1..{layers - 1} for {layers} layers, got {k}")
