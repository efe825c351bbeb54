"""The cells of a sweep: which settings there are, which of them can be, and which are the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from st3.methods import Method, make_method
from st3.methods.pvtp import final_keep, largest_ratio, ratio_for
from st3.methods.st3 import DEFAULT_PRUNE_RATIO


@dataclass(frozen=True)
class Cell:
    """One setting.

    Attributes:
        spec: the method with its parameters in one word, what `--method` takes.
        stride, ratio, tau: S, R and tau of a cell of the grid; None for a peer (and tau where
            nothing is annealed).
        final_keep: C, the share of visual tokens left in the last layer; below 0 it cannot be.
        problem: why it cannot be run, or None.
        largest_ratio: where C is below 0, the largest R that fits this S.
        budget: visual tokens a layer that it is to leave, of a comparison at equal tokens.
    """

    spec: str
    stride: int | None
    ratio: float | None
    tau: int | None
    final_keep: float
    problem: str | None = None
    largest_ratio: float | None = None
    budget: int | None = None

    @property
    def method(self) -> Method:
        """What to trim with.

        Raises:
            ValueError: the cell cannot be.
        """
        if self.problem is not None:
            raise ValueError(self.problem)
        return make_method(self.spec)


def make_grid(
    layers: int,
    strides: Sequence[int],
    ratios: Sequence[float],
    taus: Sequence[int | None],
    *,
    finals: Sequence[float] = (),
    prune_ratio: float = DEFAULT_PRUNE_RATIO,
    peers: Iterable[str] = (),
) -> list[Cell]:
    """All cells, the grid first, tau outermost.

    Args:
        layers: of the decoder.
        strides, ratios, taus: S, R and tau; a tau of None is no annealing.
        finals: C in place of R, which follows from S and C then; `ratios` is not used.
        prune_ratio: P.
        peers: specs of other methods.

    Raises:
        ValueError: an empty grid, or a peer that does not fit.
    """
    found = []
    for tau in taus:
        for stride in strides:
            if finals:
                found += [_from_final(layers, stride, c, tau, prune_ratio) for c in finals]
            else:
                found += [
                    _cell(layers, f"stride={stride},ratio={r:.9g}", stride, r, tau, prune_ratio)
                    for r in ratios
                ]
    for spec in peers:
        method = make_method(spec)
        keeps = method.schedule(layers)
        problem = None
        if keeps.entering.adaptive:
            problem = f"{spec} decides by each picture how many tokens stay: give keep a number"
        enter = keeps.entering.share or 1.0  # a number of tokens is a share of nobody knows what
        found.append(Cell(spec, None, None, keeps.tau, keeps.keeps[-1] * enter, problem))
    unique = list({cell.spec: cell for cell in found}.values())
    if not unique:
        raise ValueError("the grid is empty: give strides and ratios, or methods")
    return unique


def signature(cell: Cell, layers: int) -> tuple[object, ...]:
    """What decides the result: cells with one signature are run once."""
    method = cell.method
    schedule = method.schedule(layers)
    annealing = (schedule.tau, schedule.annealing) if schedule.anneals else None
    scorer = method.scorer if schedule.anneals or set(schedule.keeps) - {0.0, 1.0} else None
    own = method if method.decides or method.selector is not None else None
    return schedule.keeps, annealing, scorer, method.kv_cache_dtype, own


def origins(cells: Iterable[Cell], layers: int) -> dict[str, Any]:
    """Spec -> where its method comes from, of those from outside the package."""
    able = [cell for cell in cells if cell.stride is None and cell.problem is None]
    peers = {cell.spec: cell.method.settings(layers) for cell in able}
    return {spec: found["origin"] for spec, found in peers.items() if "origin" in found}


def _from_final(layers: int, stride: int, final: float, tau: int | None, prune: float) -> Cell:
    try:
        ratio = ratio_for(layers, prune, stride, final)
    except ValueError:
        ratio = None
    return _cell(layers, f"stride={stride},final_keep={final:.9g}", stride, ratio, tau, prune)


def _cell(
    layers: int, setting: str, stride: int, ratio: float | None, tau: int | None, prune: float
) -> Cell:
    spec = f"st3:{setting},tau={'none' if tau is None else tau}"
    if prune != DEFAULT_PRUNE_RATIO:
        spec += f",prune_ratio={prune:g}"
    try:
        left, problem = make_method(spec).schedule(layers).keeps[-1], None
    except ValueError as error:
        left, problem = final_keep(layers, prune, ratio or 0.0, stride), str(error)
    largest = largest_ratio(layers, prune, stride) if left < 0 else None
    return Cell(spec, stride, ratio, tau, left, problem, largest)
