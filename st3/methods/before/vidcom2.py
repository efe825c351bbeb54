"""VidCom2: more tokens for frames that stand out, and in each those that stand out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from st3.methods.by_clip import Cut, each_clip
from st3.methods.selecting import Chosen, Selecting

if TYPE_CHECKING:
    import torch

    from st3.methods.view import View

_WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class VidCom2(Selecting):
    """Tokens unlike the middle of the video and of their frame, more of frames unlike the video.

    Liu et al., *VidCom2*, EMNLP 2025, as its code has it: channels of low variance, directions, and
    Gaussian kernels of five widths around two means. A frame's share is 1 + p - mean p, p the
    softmax of how much it stands out. An order: shares do not depend on the budget.

    Attributes:
        temperature: of that softmax; the greater, the more alike are the shares.
    """

    name: ClassVar[str] = "vidcom2"
    source: ClassVar[str] = "VidCom2, arXiv 2505.14454"
    needs: ClassVar[tuple[str, ...]] = ("features", "videos")
    differs: ClassVar[str] = (
        "the budget is met to the token (frames get their shares by Webster's rule, one at least), "
        "where theirs rounds each frame's; a picture is a video of one frame"
    )
    published: ClassVar[Mapping[str, str]] = {"25%": "keep=25%", "15%": "keep=15%"}

    keep: float | int | str = "25%"
    per: str = "prompt"
    temperature: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"vidcom2: temperature must be above 0, got {self.temperature:g}")

    def choose(self, view: View) -> Chosen:
        return each_clip(view, self._cut)

    def _cut(self, tokens: torch.Tensor, score: torch.Tensor, count: int) -> Cut:
        from torch.nn.functional import normalize

        from st3.methods.orders import order_of, rank

        quiet = tokens.flatten(0, 1).var(0, correction=0).argsort(stable=True)
        units = normalize(tokens[..., quiet[: max(1, tokens.shape[2] // 2)]], dim=-1)
        to_video = _kernel(units, units.mean((0, 1)))
        to_frame = _kernel(units, units.mean(1, keepdim=True))
        standing_out = -to_video.mean(1)
        p = ((standing_out - standing_out.amax()).double() / self.temperature).softmax(0)
        share = (1 + p - p.mean())[:, None]
        number = rank(-(to_video + to_frame))
        return Cut(order_of((number > 0).int(), (number + 0.5) / share))


def _kernel(units: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Sum of Gaussians of [f, n, c] around a centre, [f, n]."""
    square = (units - centre).square().sum(-1)
    kernels = [(-square / (2 * width)).exp() for width in _WIDTHS]
    return sum(kernels[1:], kernels[0])


METHOD = VidCom2
