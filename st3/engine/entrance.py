"""Layer 0, the stage between the vision tower and the decoder: a selector chooses what enters.

It sees each picture's tokens by themselves, or all of a prompt's, and gives an order. How many
enter is known on the host beforehand, but for selectors that decide that themselves; which ones, on
the device alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from st3.engine.lines import Lines, grids, lines_of
from st3.engine.merging import Merging
from st3.engine.pools import Table
from st3.engine.prompt import Prompt
from st3.methods.base import Selector
from st3.methods.budget import Budget
from st3.methods.clips import Clip, clips_of, in_pools
from st3.methods.selecting import Chosen, Merge
from st3.methods.view import Tower, View, fixed


class Entrance:
    """One prefill's choice before layer 1.

    Args:
        selector: chooses.
        budget: how many tokens enter.
        prompt: whose.

    Attributes:
        sizes, counts: of each pool, how many tokens it has and how many of them enter; at most so
            many, until an adaptive choice has been made.
        doubt: bool [], on the device, whether the choice cannot be; see `complain`.
        perhaps: see `View`.
    """

    def __init__(self, selector: Selector, budget: Budget, prompt: Prompt) -> None:
        self.selector, self.prompt, self.adaptive = selector, prompt, budget.adaptive
        rows = [budget.pools(row) if row else () for row in prompt.parts]
        self.pools = tuple(pool for row in rows for pool in row)
        self.rows = tuple(
            tuple(sum(piece.tokens for piece in pool) for pool in row) for row in rows
        )
        self.sizes = tuple(size for row in self.rows for size in row)
        self.counts = tuple(budget.of_pool(pool) for pool in self.pools)
        self.doubt = torch.zeros(())
        self.perhaps: list[tuple[torch.Tensor, str]] = []
        self.tower: Callable[[Entrance], Tower] | None = None
        self.lines: Callable[[], tuple[Lines, ...]] = partial(lines_of, prompt, {}, {})
        self._held: list[torch.Tensor] = []
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
        table = Table.of(self.rows, device)
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
            grids=lambda: grids(self.rows, self.lines()),
            look=self._look,
            notes=notes,
            perhaps=self.perhaps,
            films=self._films(),
            pools=self.pools,
            held=self._held,
        )
        with torch.no_grad():
            chosen = self.selector.choose(view)
        if not isinstance(chosen, Chosen):
            raise ValueError(  # noqa: TRY004
                f"the selector {self.selector.name!r} returned a {type(chosen).__name__}: it must "
                "return Chosen(picks)"
            )
        picks = chosen.picks
        if self.adaptive:
            self.counts = self._counted(chosen)
        most = max(self.counts)
        few = picks.dim() != 2 or len(picks) != len(self.sizes) or picks.shape[1] < most
        if few or picks.dtype != torch.long:
            raise ValueError(
                f"the selector {self.selector.name!r} returned {list(picks.shape)} of "
                f"{picks.dtype}: it must order at least {most} tokens, int64 "
                f"[{len(self.sizes)}, {most}]"
            )
        self._chosen = chosen
        self._standing, self.doubt = _standing(picks, table.valid, self.counts, self.sizes)
        if chosen.merge is not None:
            self.doubt = self.doubt | self._unsound(chosen.merge)

    def tables(self) -> tuple[Any, ...]:
        """What it looks up on the device; caches may let go of it while a recording reads it."""
        device = self._standing.device
        known = (fixed(numbers, device) for numbers in (self.counts, self.sizes))
        return Table.of(self.rows, device), *known, *self._held

    @property
    def entering(self) -> tuple[int, ...]:
        """How many of each row's visual tokens enter."""
        counts = iter(self.counts)
        return tuple(sum(next(counts) for _ in row) for row in self.rows)

    @property
    def merging(self) -> Merging | None:
        """The new values of some tokens; None where the selector gives none."""
        if self._chosen is None or self._chosen.merge is None:
            return None
        merge = self._chosen.merge
        table = Table.of(self.rows, self._place.device)
        row, last = table.row[:, None], table.valid.shape[1] - 1
        place = self._place[row, table.ordinal]
        into, of = (place.gather(1, x.clamp(0, last)) for x in (merge.into, merge.of))
        return Merging(row, into, of, merge.weight)

    def pooled(self, values: torch.Tensor) -> torch.Tensor:
        """What belongs to tokens, [B, n, ...], by pools: [G, n, ...]."""
        table = Table.of(self.rows, values.device)
        row = table.row[:, None]
        return values[row, self._place[row, table.ordinal]]

    @property
    def standing(self) -> torch.Tensor:
        """Float32 [B, N]: of every visual token by its number in its row, see `importance`."""
        table = Table.of(self.rows, self._standing.device)
        return self._standing[table.pool, table.column]

    def importance(self, ordinal: torch.Tensor) -> torch.Tensor:
        """Float32 [B, n] of tokens that are the `ordinal`-th visual ones of their rows [B, n].

        Those that enter come before all others, and the best of each pool before the second best.
        """
        by_number = self.standing
        return by_number.gather(1, ordinal.clamp_max(by_number.shape[1] - 1))

    def _counted(self, chosen: Chosen) -> tuple[int, ...]:
        """What a selector that decides how many stay has decided."""
        found = () if chosen.counts is None else tuple(chosen.counts)
        known = len(found) == len(self.sizes)
        if not known or not all(1 <= n <= size for n, size in zip(found, self.sizes, strict=True)):
            raise ValueError(
                f"the selector {self.selector.name!r} was to decide how many of "
                f"{list(self.sizes)} tokens stay, and said {list(found) or 'nothing'}"
            )
        return found

    def _unsound(self, merge: Merge) -> torch.Tensor:
        """bool []: whether a merge names tokens that are none, or by weights that are none."""
        shapes = [list(x.shape) for x in (merge.into, merge.of, merge.weight)]
        if shapes[1:] != shapes[:-1] or len(shapes[0]) != 2 or shapes[0][0] != len(self.sizes):
            raise ValueError(
                f"the selector {self.selector.name!r} merges by {', '.join(map(str, shapes))}: "
                f"into, of and weight must be [{len(self.sizes)}, m] each"
            )
        size = fixed(self.sizes, merge.into.device)[:, None]
        off = [(x < 0) | (x >= size) for x in (merge.into, merge.of)]
        return (~merge.weight.isfinite() | ((merge.weight != 0) & (off[0] | off[1]))).any()

    def _films(self) -> tuple[tuple[Clip, ...], ...]:
        films = self.prompt.films
        rows = zip(films, self.rows, strict=True) if films else ()
        return tuple(pool for row, sizes in rows for pool in in_pools(clips_of(row), sizes))

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
        "none (NaN); or it merges such"
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
