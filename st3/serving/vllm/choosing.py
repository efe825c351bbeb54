"""Which rows of pictures stay: the library's selectors, asked as in transformers. No vLLM here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from st3.engine.merging import Merging
from st3.methods.cells import square
from st3.methods.selecting import Chosen, Selecting
from st3.methods.view import View

_AT_ONCE = 2**26  # similarities, 256 MiB of them in float32


@dataclass(frozen=True)
class Picture:
    """One picture, as the decoder would get it.

    Attributes:
        rows: float [n, d].
        pools: how many rows each choice is made of; n in all. `counts`: how many of them stay.
        grid: lines and columns, where it is one pool and they are known.
        attention: float32 [n], that of the tower's class token; None where nobody looked.
        lines: whether each pool is a line of it.
    """

    rows: torch.Tensor
    pools: tuple[int, ...]
    counts: tuple[int, ...]
    grid: tuple[int, int] | None = None
    attention: torch.Tensor | None = None
    lines: bool = False


@dataclass(frozen=True)
class Kept:
    """What stays of a picture.

    Attributes:
        numbers: int64 [k], its rows' numbers, rising.
        rows: float [k, d], with the values that the method gives them.
    """

    numbers: torch.Tensor
    rows: torch.Tensor


@torch.no_grad()
def choose(
    method: Selecting,
    pictures: Sequence[Picture],
    agree: Callable[[torch.Tensor], torch.Tensor] = lambda picks: picks,
    width: int | None = None,
) -> list[Kept]:
    """Choose from each picture.

    Args:
        method: chooses.
        pictures: of any sizes.
        agree: where several processes choose, makes their picks those of the first.
        width: how many of a row's channels are its embedding, where others follow; None: all.

    Raises:
        ValueError: the method needs what is not there.
    """
    pools = [pool for picture in pictures for pool in _pools(picture)]
    chosen = [kept for some in _some(pools) for kept in _chosen(method, some, agree, width)]
    found, done = [], 0
    for picture in pictures:
        own = chosen[done : done + len(picture.pools)]
        done += len(own)
        begins = [sum(picture.pools[:number]) for number in range(len(own))]
        numbers = [one.numbers + begin for one, begin in zip(own, begins, strict=True)]
        found.append(Kept(torch.cat(numbers), torch.cat([one.rows for one in own])))
    return found


def _pools(picture: Picture) -> Iterator[Picture]:
    """Its pools, each like a picture of its own."""
    several = len(picture.pools) > 1
    rows = picture.rows.split(picture.pools)
    looked: Any = [None] * len(rows)
    if picture.attention is not None:
        looked = picture.attention.split(picture.pools)
    for part, pool, count, attention in zip(
        rows, picture.pools, picture.counts, looked, strict=True
    ):
        grid = (1, pool) if picture.lines else None if several else picture.grid
        yield Picture(part, (pool,), (count,), grid or square(pool), attention)


def _some(pools: list[Picture]) -> Iterator[list[Picture]]:
    """As many at a time as memory should hold the similarities of."""
    some: list[Picture] = []
    for pool in pools:
        widest = max(len(one.rows) for one in (*some, pool))
        if some and (len(some) + 1) * widest**2 > _AT_ONCE:
            yield some
            some = []
        some.append(pool)
    if some:
        yield some


def _chosen(
    method: Selecting,
    pools: list[Picture],
    agree: Callable[[torch.Tensor], torch.Tensor],
    width: int | None,
) -> Iterator[Kept]:
    whole, view = _view(pools, width)
    chosen: Chosen = method.choose(view)
    picks = agree(chosen.picks.contiguous())
    rows = whole
    if (merge := chosen.merge) is not None:
        each = torch.arange(len(rows), device=rows.device)[:, None]
        rows = Merging(each, merge.into, merge.of, merge.weight)(rows)
    for number, pool in enumerate(pools):
        # Where numbers are none (NaN) a selector returns -1: the model is broken then, not we.
        kept = picks[number, : pool.counts[0]].clamp_min(0).sort().values
        yield Kept(kept, rows[number, kept])


def _view(pools: list[Picture], width: int | None) -> tuple[torch.Tensor, View]:
    """All rows [G, n, d], and what the method may look at of them."""
    sizes = tuple(len(pool.rows) for pool in pools)
    first = pools[0].rows
    whole = torch.nn.utils.rnn.pad_sequence([pool.rows for pool in pools], batch_first=True)
    valid = torch.arange(max(sizes), device=first.device) < torch.tensor(
        sizes, device=first.device
    ).unsqueeze(1)

    def words() -> Any:
        raise ValueError("a picture is encoded without its question")

    return whole, View(
        features=whole[..., :width],
        valid=valid,
        sizes=sizes,
        counts=tuple(pool.counts[0] for pool in pools),
        frames=lambda: torch.zeros_like(valid, dtype=torch.long),
        words=words,
        grids=lambda: tuple(pool.grid for pool in pools),
        look=lambda: _Looked(pools),
    )


class _Looked:
    """A `st3.methods.view.Tower` of which the class token alone was watched."""

    tiled = False

    def __init__(self, pools: list[Picture]) -> None:
        self.pools = pools

    def attention(self, layer: str) -> torch.Tensor:
        """See `Tower`; of the layer `features` alone."""
        rows = [pool.attention for pool in self.pools if pool.attention is not None]
        if layer != "features" or len(rows) != len(self.pools):
            raise ValueError("nobody looked at the vision tower")
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def joint(self, layer: str) -> torch.Tensor:
        """Never seen."""
        raise ValueError("nobody looked at the vision tower")

    def keys(self, layer: str) -> torch.Tensor:
        """Never seen."""
        raise ValueError("nobody looked at the vision tower")

    def received(self, layer: str) -> torch.Tensor:
        """Never seen."""
        raise ValueError("nobody looked at the vision tower")

    def crops(self) -> torch.Tensor:
        """Never seen."""
        raise ValueError("nobody looked at the vision tower")

    def features(self) -> torch.Tensor:
        """Never seen."""
        raise ValueError("nobody looked at the vision tower")
