"""Layer 0, the stage between the vision tower and the decoder: a selector chooses what enters.

It sees each picture's tokens by themselves, or all of a prompt's, and gives an order. How many
enter is known on the host beforehand; which ones, on the device alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from st3.engine.prompt import Prompt
from st3.methods.base import Selector
from st3.methods.budget import Budget
from st3.methods.cells import square
from st3.methods.selecting import Chosen
from st3.methods.view import Tower, View, fixed, weighted_sums


class Entrance:
    """One prefill's choice before layer 1.

    Args:
        selector: chooses.
        budget: how many tokens enter.
        prompt: whose.

    Attributes:
        sizes, counts: of each pool, how many tokens it has and how many of them enter.
        doubt: bool [], on the device, whether the choice cannot be; see `complain`.
    """

    def __init__(self, selector: Selector, budget: Budget, prompt: Prompt) -> None:
        self.selector, self.prompt = selector, prompt
        rows = [budget.pools(row) if sum(row) else () for row in prompt.pictures]
        self.rows = tuple(rows)
        self.sizes = tuple(size for row in rows for size in row)
        self.counts = tuple(budget.of(size) for size in self.sizes)
        self.doubt = torch.zeros(())
        self.tower: Callable[[Entrance], Tower] | None = None
        self.grids: Callable[[], tuple[tuple[int, int] | None, ...]] | None = None
        self._chosen: Chosen | None = None
        self._place = torch.empty(0)

    @property
    def done(self) -> bool:
        """Whether the choice has been made."""
        return self._chosen is not None

    def choose(
        self,
        hidden: torch.Tensor,
        visual: torch.Tensor,
        valid: torch.Tensor | None,
        frames: Callable[[], torch.Tensor],
        notes: list[str],
    ) -> None:
        """Let the selector look, and keep what it says.

        Args:
            hidden: [B, n, d], the prompt's embeddings, features of pictures among them.
            visual: bool [B, n]. `valid`: bool [B, n], or None if there is no padding.
            frames: makes int64 [B, n], see `LayerView.frame`.
            notes: to be added to.

        Raises:
            ValueError: the selector needs what is not there, or returns too few.
        """
        device = hidden.device
        table = _Table.of(self.rows, device)
        self._place = (~visual).to(torch.uint8).argsort(dim=1, stable=True)  # of each visual token

        def words() -> tuple[torch.Tensor, torch.Tensor]:
            text = ~visual if valid is None else valid & ~visual
            return hidden[table.row], text[table.row]

        view = View(
            features=self.pooled(hidden),
            valid=table.valid,
            sizes=self.sizes,
            counts=self.counts,
            frames=lambda: self.pooled(frames()),
            words=words,
            grids=self._grids,
            look=self._look,
            notes=notes,
        )
        with torch.no_grad():
            chosen = self.selector.choose(view)
        picks = chosen.picks
        few = picks.dim() != 2 or len(picks) != len(self.sizes) or picks.shape[1] < view.most
        if few or picks.dtype != torch.long:
            raise ValueError(
                f"the selector {self.selector.name!r} returned {list(picks.shape)} of "
                f"{picks.dtype}: it must order at least {view.most} tokens, int64 "
                f"[{len(self.sizes)}, {view.most}]"
            )
        self._chosen = chosen
        self._standing, self.doubt = _standing(picks, table.valid, self.counts, self.sizes)

    def tables(self) -> tuple[Any, ...]:
        """What it looks up on the device; caches may let go of it while a recording reads it."""
        device = self._standing.device
        return _Table.of(self.rows, device), fixed(self.counts, device), fixed(self.sizes, device)

    @property
    def merges(self) -> bool:
        """Whether it gives some tokens new values."""
        return self._chosen is not None and self._chosen.merge is not None

    def pooled(self, values: torch.Tensor) -> torch.Tensor:
        """What belongs to tokens, [B, n, ...], by pools: [G, n, ...]."""
        table = _Table.of(self.rows, values.device)
        row = table.row[:, None]
        return values[row, self._place[row, table.ordinal]]

    @property
    def standing(self) -> torch.Tensor:
        """Float32 [B, N]: of every visual token by its number in its row, see `importance`."""
        table = _Table.of(self.rows, self._standing.device)
        return self._standing[table.pool, table.column]

    def importance(self, ordinal: torch.Tensor) -> torch.Tensor:
        """Float32 [B, n] of tokens that are the `ordinal`-th visual ones of their rows [B, n].

        Those that enter come before all others, and the best of each pool before the second best.
        """
        by_number = self.standing
        return by_number.gather(1, ordinal.clamp_max(by_number.shape[1] - 1))

    def merged(self, hidden: torch.Tensor) -> torch.Tensor:
        """The embeddings [B, n, d], some of them with the values that the selector gives them."""
        assert self._chosen is not None
        assert self._chosen.merge is not None
        merge = self._chosen.merge
        table = _Table.of(self.rows, hidden.device)
        row = table.row[:, None]
        place = self._place[row, table.ordinal]
        into, of = place.gather(1, merge.into), place.gather(1, merge.of)
        return weighted_sums(hidden, row, into, of, merge.weight)

    def _grids(self) -> tuple[tuple[int, int] | None, ...]:
        found = () if self.grids is None else self.grids()
        if len(found) != len(self.sizes):
            found = (None,) * len(self.sizes)
        return tuple(
            grid if grid is not None and grid[0] * grid[1] == size else square(size)
            for grid, size in zip(found, self.sizes, strict=True)
        )

    def _look(self) -> Tower:
        if self.tower is None:
            raise ValueError(
                f"the method {self.selector.name!r} needs to see the vision tower at work: give "
                "pictures, not features of them, and ask for one sequence a prompt"
            )
        return self.tower(self)


def complain(selector: str) -> ValueError:
    """What is wrong where `Entrance.doubt` is true."""
    return ValueError(
        f"the selector {selector!r} chose a token twice, one that is none, or by numbers that are "
        "none (NaN)"
    )


def _standing(
    picks: torch.Tensor, valid: torch.Tensor, counts: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 [G, n], and whether the picks cannot be, bool [].

    Above 1 for those that enter and falling with their number, above 0 for those picked behind.
    """
    device, most = picks.device, picks.shape[1]
    number = torch.arange(most, device=device)
    count, size = (fixed(x, device)[:, None] for x in (counts, sizes))
    enters = number < count
    key = torch.where(
        enters,
        2 - (number + 0.5) / count.clamp_min(1),
        1 - number / max(most, *sizes, 1),
    )
    inside = (picks >= 0) & (picks < size)
    safe = picks.clamp(0, valid.shape[1] - 1)
    standing = torch.zeros(valid.shape, device=device)
    standing.scatter_reduce_(1, safe, key * inside, "amax")
    named = (standing > 1).sum(1, keepdim=True)
    return standing, ((enters & ~inside).any() | (named != count).any())


class _Table:
    """Where tokens of pools are, as tensors that stay where they are.

    Attributes:
        row: int64 [G], the prompt of each pool. `ordinal`: int64 [G, n], a token's number among
            its row's visual tokens; `valid`: bool [G, n], where there is one.
        pool, column: int64 [B, N], where each visual token of a row is.
    """

    def __init__(self, rows: tuple[tuple[int, ...], ...], device: torch.device) -> None:
        pools = [(row, size) for row, sizes in enumerate(rows) for size in sizes]
        widest = max(size for _, size in pools)
        most = max(map(sum, rows))
        ordinal = torch.zeros(len(pools), widest, dtype=torch.long)
        valid = torch.zeros(len(pools), widest, dtype=torch.bool)
        pool = torch.zeros(len(rows), most, dtype=torch.long)
        column = torch.zeros_like(pool)
        begin = [0] * len(rows)
        for number, (row, size) in enumerate(pools):
            first = begin[row]
            ordinal[number, :size] = torch.arange(first, first + size)
            valid[number, :size] = True
            pool[row, first : first + size] = number
            column[row, first : first + size] = torch.arange(size)
            begin[row] += size
        of = torch.tensor([row for row, _ in pools])
        self.row, self.ordinal, self.valid, self.pool, self.column = (
            (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
            for x in (of, ordinal, valid, pool, column)
        )

    @staticmethod
    @lru_cache(maxsize=32)
    def of(rows: tuple[tuple[int, ...], ...], device: torch.device) -> _Table:
        """The table of pools of these sizes in each row."""
        return _Table(rows, device)
