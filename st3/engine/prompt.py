"""The layout of a batch of prompts: how many tokens of which kind stand where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from st3.methods.budget import Piece


@dataclass(frozen=True)
class Prompt:
    """The shape of a batch of prompts, on the host.

    Attributes:
        tokens: length n of the padded rows.
        visual: visual tokens in each row.
        text: other tokens in each row, padding not counted.
        trailing: tokens behind the last visual token, in the row that has most; at least 1.
        last_visual: the last place of a visual token in any row, -1 if there is none.
        pictures: in each row, visual tokens of each picture, tile, frame or video: what lies
            together, and what came as one.
        pieces: the same, where more is known of them; nothing where it is not.
        films: the same with each video one piece, wherever its frames stand; nothing where nobody
            asked.
    """

    tokens: int
    visual: tuple[int, ...]
    text: tuple[int, ...]
    trailing: int
    last_visual: int = -1
    pictures: tuple[tuple[int, ...], ...] = ()
    pieces: tuple[tuple[Piece, ...], ...] = ()
    films: tuple[tuple[Piece, ...], ...] = ()

    @property
    def parts(self) -> tuple[tuple[int | Piece, ...], ...]:
        """What budgets are spent on in each row."""
        return self.pieces or self.pictures

    @property
    def full(self) -> bool:
        """Whether there is no padding."""
        return all(a + b == self.tokens for a, b in zip(self.visual, self.text, strict=True))

    def of_rows(self, rows: Sequence[int]) -> Prompt:
        """Some rows alone, in this order; the lengths of all remain."""

        def some(of_each: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(of_each[row] for row in rows) if of_each else ()

        return replace(
            self, visual=some(self.visual), text=some(self.text), pictures=some(self.pictures),
            pieces=some(self.pieces), films=some(self.films),
        )  # fmt: skip


def layout(visual: torch.Tensor, mask: torch.Tensor | None, brought: Sequence[int] = ()) -> Prompt:
    """Read the shape of the prompts, the only thing read back from the device, before any layer.

    Args:
        visual: bool [B, n].
        mask: the attention mask [B, n] that `generate` got, or None.
        brought: visual tokens of each picture of the batch, in order, if that is known.

    Raises:
        ValueError: padding on the right, or a prompt whose last token is visual.
    """
    here = visual.cpu()
    valid = torch.ones_like(here) if mask is None else mask.bool().cpu()
    if not bool(valid[:, -1].all()):
        raise ValueError(
            "the prompts are padded on the right: set processor.tokenizer.padding_side = 'left'"
        )
    if bool(here[:, -1].any()):
        raise ValueError(
            "a prompt ends in a picture: end it in text, whose last token decides what is kept"
        )
    tokens = here.shape[1]
    last = (here * torch.arange(1, tokens + 1)).amax(1).tolist()
    return Prompt(
        tokens=tokens,
        visual=tuple(here.sum(1).tolist()),
        text=tuple((valid & ~here).sum(1).tolist()),
        trailing=max((tokens - end for end in last if end > 0), default=1),
        last_visual=max(last) - 1,
        pictures=_split(_runs(here), list(brought)),
    )


def _runs(here: torch.Tensor) -> tuple[tuple[int, ...], ...]:
    """Lengths of the runs of visual tokens in each row of bool [B, n]."""
    edges = torch.nn.functional.pad(here.int(), (1, 1)).diff(dim=1)
    return tuple(
        tuple(((row == -1).nonzero() - (row == 1).nonzero()).flatten().tolist()) for row in edges
    )


def _split(runs: tuple[tuple[int, ...], ...], brought: list[int]) -> tuple[tuple[int, ...], ...]:
    """Runs in which several pictures lie end to end, taken apart; as they are where that fails."""
    left, found = brought, []
    for row in runs:
        parts: list[int] = []
        for run in row:
            rest = run
            while rest and left and left[0] <= rest:
                parts.append(left[0])
                rest -= left[0]
                left = left[1:]
            if rest:
                return runs
        found.append(tuple(parts))
    return runs if left else tuple(found)
