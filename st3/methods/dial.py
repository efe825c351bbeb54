"""Which setting of a method leaves so many visual tokens a layer: for comparisons at equal tokens.

The field counts a method's tokens as their mean over the decoder's layers at prefill ("192, 128 or
64 tokens"). A method that has a dial can be turned to such a number. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_STEPS = 40  # halvings: finer than a token


@dataclass(frozen=True)
class Dial:
    """A parameter that trades visual tokens for compute, all else as it is.

    Attributes:
        parameter: of the method.
        least, most: values that leave fewest and most tokens; None: the number of layers but one.
        whole: whether its values are whole numbers.
    """

    parameter: str
    least: float
    most: float | None
    whole: bool = False


def turned(method: Any, layers: int, tokens: float, count: Callable[[Any], float]) -> Any:
    """The method with its dial where `count` of it comes nearest to `tokens`.

    Args:
        method: a `st3.methods.Method`, all of whose other parameters stay.
        layers: of the decoder.
        tokens: visual tokens of a layer, the mean over all.
        count: tokens of a setting; never falls from the dial's least to its most.

    Raises:
        ValueError: the method has no dial, or even its ends leave more or fewer.
    """
    dial: Dial | None = method.dial
    if dial is None:
        raise ValueError(f"{method.name} has no setting that leaves {tokens:g} tokens a layer")
    low, high = dial.least, layers - 1 if dial.most is None else dial.most

    def at(value: float) -> Any:
        changed: Any = {dial.parameter: round(value) if dial.whole else round(value, 9)}
        return method.changed(**changed)

    fewest, most = count(at(low)), count(at(high))
    slack = (most - fewest) / abs(high - low) / 2 if dial.whole else 0.5
    if not fewest - slack <= tokens <= most + slack:
        raise ValueError(
            f"{method.name} leaves {fewest:.0f} to {most:.0f} tokens a layer, and not {tokens:g}"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if count(at(middle)) < tokens:
            low = middle
        else:
            high = middle
        if dial.whole and abs(high - low) < 0.5:
            break
    return min((at(low), at(high)), key=lambda found: abs(count(found) - tokens))
