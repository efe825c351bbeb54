"""The paper's own methods: PVTP, VTA, and both together, ST3.

Zhuang et al., AAAI 2025, arXiv 2412.20105.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from st3.methods.base import Method
from st3.methods.dial import Dial
from st3.methods.pvtp import pvtp_keeps, ratio_for, strides_below
from st3.methods.schedule import Schedule

DEFAULT_PRUNE_RATIO = 0.5
DEFAULT_TAU = 128


@dataclass(frozen=True)
class PVTP(Method):
    """Progressive visual token pruning across layers.

    Attributes:
        prune_ratio: P, dropped at layer 4.
        stride: S, layers between cuts; None: 4, or a quarter of a depth below 16 (ours).
        ratio: R, dropped every S layers; None: derived from C.
        final_keep: C, left in the last layer; None: 1 % for 32 layers, else 5 % (paper for 32 and
            40 layers, ours elsewhere). Give R or C, not both.
    """

    name: ClassVar[str] = "pvtp"
    source: ClassVar[str] = "ST3, arXiv 2412.20105"

    dial: ClassVar[Dial | None] = Dial("prune_ratio", 1.0, 0.0)

    prune_ratio: float = DEFAULT_PRUNE_RATIO
    stride: int | None = None
    ratio: float | None = None
    final_keep: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and self.final_keep is not None:
            raise ValueError(
                "give the ratio R or the final keep C, not both: each follows from the other"
            )

    def schedule(self, layers: int) -> Schedule:
        return Schedule(self._keeps(layers))

    def settings(self, layers: int) -> dict[str, Any]:
        stride = self._stride(layers)
        keeps = self._keeps(layers)
        found = {
            "stride": stride,
            "ratio": self._ratio(layers, stride),
            "final_keep": keeps[-1],
        }
        return super().settings(layers) | found

    def _keeps(self, layers: int) -> tuple[float, ...]:
        stride = self._stride(layers)
        return pvtp_keeps(layers, self.prune_ratio, self._ratio(layers, stride), stride)

    def _stride(self, layers: int) -> int:
        return self.stride if self.stride is not None else min(4, max(1, layers // 4))

    def _ratio(self, layers: int, stride: int) -> float:
        if self.ratio is not None:
            return self.ratio
        if self.final_keep is not None:
            return ratio_for(layers, self.prune_ratio, stride, self.final_keep)
        if strides_below(layers, stride) < 1:
            return 0.0  # too shallow for a second cut
        final = min(0.01 if layers == 32 else 0.05, max(0.0, 1 - self.prune_ratio))
        return ratio_for(layers, self.prune_ratio, stride, final)


@dataclass(frozen=True)
class VTA(Method):
    """Visual token annealing: in every layer, visual tokens leave as the answer grows.

    Attributes:
        tau: no visual token is left after this many generated tokens; None: they stay.
        annealing: the form of the fall, a key of `st3.methods.schedule.ANNEALINGS`.
    """

    name: ClassVar[str] = "vta"
    source: ClassVar[str] = "ST3, arXiv 2412.20105"
    stage: ClassVar[str] = "while decoding"

    tau: int | None = DEFAULT_TAU
    annealing: str = "cosine"

    def schedule(self, layers: int) -> Schedule:
        return Schedule((1.0,) * layers, self.tau, self.annealing)


@dataclass(frozen=True)
class ST3(PVTP):
    """PVTP across layers and VTA over time, together: the paper's method.

    Attributes:
        tau, annealing: as for `VTA`; the others as for `PVTP`.
    """

    name: ClassVar[str] = "st3"
    stage: ClassVar[str] = "in the decoder and while decoding"

    tau: int | None = DEFAULT_TAU
    annealing: str = "cosine"

    def schedule(self, layers: int) -> Schedule:
        return Schedule(self._keeps(layers), self.tau, self.annealing)
