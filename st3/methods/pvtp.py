"""Progressive visual token pruning: keep ratios from P, S and R, or from C; pure arithmetic.

Zhuang et al., AAAI 2025, arXiv 2412.20105, eq. 9. Standard library only.
"""

from __future__ import annotations

import math

from st3.methods.schedule import FIRST_PRUNED_LAYER, tidy


def strides_below(layers: int, stride: int) -> int:
    """floor((L - 3) / S): how often another R has gone by the last layer.

    Raises:
        ValueError: S is no whole number from 1 on.
    """
    _check_stride(stride)
    return (layers - FIRST_PRUNED_LAYER + 1) // stride


def final_keep(layers: int, prune_ratio: float, ratio: float, stride: int) -> float:
    """C of eq. 9: the share left in the last layer; negative where the setting is illegal."""
    if layers < FIRST_PRUNED_LAYER:
        return 1.0
    return tidy(1 - prune_ratio - strides_below(layers, stride) * ratio)


def ratio_for(layers: int, prune_ratio: float, stride: int, final: float) -> float:
    """R of eq. 9 for a wanted C.

    Raises:
        ValueError: no R >= 0 gives this C.
    """
    _check_share("prune ratio P", prune_ratio)
    _check_share("final keep C", final)
    if final > tidy(1 - prune_ratio):
        raise ValueError(
            f"final keep C = {final:g} is more than the {1 - prune_ratio:.4g} that the first cut "
            f"P = {prune_ratio:g} leaves: lower P to {_floor(1 - final):g} or C to "
            f"{_floor(1 - prune_ratio):g}"
        )
    strides = strides_below(layers, stride)
    if strides < 1:
        if layers >= FIRST_PRUNED_LAYER and final < tidy(1 - prune_ratio):
            raise ValueError(
                f"stride S = {stride} is too long for {layers} layers to reach C = {final:g}: "
                f"the largest S that prunes again is {layers - FIRST_PRUNED_LAYER + 1}"
            )
        return 0.0
    return max(0.0, 1 - prune_ratio - final) / strides  # 1 - 0.07 - 0.93 is below nought


def largest_ratio(layers: int, prune_ratio: float, stride: int) -> float:
    """The largest R with C >= 0, rounded down to four decimals; 1 where S never prunes again."""
    strides = strides_below(layers, stride)
    return _floor((1 - prune_ratio) / strides) if strides else 1.0


def pvtp_keeps(layers: int, prune_ratio: float, ratio: float, stride: int) -> tuple[float, ...]:
    """Keep ratio of each layer under progressive pruning (paper, eq. 9).

    1 in layers 1-3, then 1 - P - floor((l - 3) / S) R. The last one is C.

    Raises:
        ValueError: P, R or S out of range, or C < 0, with the values that would fit.
    """
    _check_share("prune ratio P", prune_ratio)
    _check_share("ratio R", ratio)
    left = final_keep(layers, prune_ratio, ratio, stride)
    if left < 0:
        largest = largest_ratio(layers, prune_ratio, stride)
        fitting = next(
            (s for s in range(stride, layers) if final_keep(layers, prune_ratio, ratio, s) >= 0),
            layers,
        )
        raise ValueError(
            f"S = {stride}, R = {ratio:g}, P = {prune_ratio:g} would leave C = {left:.4g} < 0 of "
            f"the visual tokens in layer {layers}: the largest R for this S is {largest:g}, "
            f"the smallest S for this R is {fitting}"
        )
    return tuple(
        1.0
        if layer < FIRST_PRUNED_LAYER
        else tidy(1 - prune_ratio - strides_below(layer, stride) * ratio)
        for layer in range(1, layers + 1)
    )


def _floor(value: float) -> float:
    """Rounded down to four decimals: still legal when typed in."""
    return math.floor(tidy(value) * 10_000) / 10_000


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value:g}")


def _check_stride(stride: int) -> None:
    if stride < 1 or stride != int(stride):
        raise ValueError(f"stride S must be a whole number of layers, at least 1, got {stride}")
