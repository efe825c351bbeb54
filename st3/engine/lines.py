"""How the visual tokens of a prompt stand in lines: whether a pool of any pictures is a grid.

What lies end to end with lines of one length is a grid of all these lines: frames of a video,
pictures of one width. Whatever else lies in one pool is none, however square its number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt

import torch

from st3.engine.prompt import Prompt
from st3.engine.sight import Sight

Lines = tuple[tuple[int, int], ...]
"""Of a row's visual tokens, in order: so many, in lines of such a length; 0 where unknown."""
Grid = tuple[int, int] | None


def lines_of(
    prompt: Prompt, sights: Mapping[str, Sight], masks: Mapping[str, torch.Tensor]
) -> tuple[Lines, ...]:
    """The lines of each row.

    Where nothing was seen, or not what the prompts hold, what lies together is taken for a picture.

    Args:
        prompt: the layout of the batch.
        sights: by kind, `image` or `video`.
        masks: by kind, bool [B, n], the places of its tokens; read by the host if there are two.
    """
    seen = {kind: iter(_pieces(kind, sight)) for kind, sight in sights.items()}
    rows = tuple(_row(kinds, seen) for kinds in _kinds(prompt, masks)) if sights else ()
    known = [row for row in rows if row is not None]
    if len(known) == len(prompt.visual) and not any(next(rest, None) for rest in seen.values()):
        return tuple(known)
    return tuple(tuple((size, _side(size)) for size in row) for row in prompt.pictures)


def grids(rows: Sequence[Sequence[int]], lines: Sequence[Lines]) -> tuple[Grid, ...]:
    """Of all rows' pools, in order, see `grids_of_pools`."""
    pairs = zip(rows, lines, strict=True)
    return tuple(grid for sizes, row in pairs for grid in grids_of_pools(sizes, row))


def grids_of_pools(sizes: Sequence[int], lines: Lines) -> tuple[Grid, ...]:
    """Lines and columns of a row's pools of these sizes; None where they are not one grid."""
    left, found = [*lines], list[Grid]()
    for size in sizes:
        widths, rest = set[int](), size
        while rest and left:
            tokens, wide = left[0]
            taken = min(rest, tokens)
            widths.add(wide if wide and taken % wide == 0 else 0)
            left[:1] = [(tokens - taken, wide)] if taken < tokens else []
            rest -= taken
        wide = widths.pop() if len(widths) == 1 and not rest else 0
        found.append((size // wide, wide) if wide else None)
    return tuple(found)


def _kinds(prompt: Prompt, masks: Mapping[str, torch.Tensor]) -> list[list[tuple[int, str]]]:
    """The runs of one kind in each row's visual tokens: how many, and which."""
    if len(masks) == 1:
        (kind,) = masks
        return [[(many, kind)] if many else [] for many in prompt.visual]
    film = masks["video"].cpu()
    visual = film | masks["image"].cpu()
    found = []
    for moving, here in zip(film, visual, strict=True):
        kinds, counts = moving[here].unique_consecutive(return_counts=True)
        names = ["video" if kind else "image" for kind in kinds.tolist()]
        found.append([*zip(counts.tolist(), names, strict=True)])
    return found


def _row(
    runs: list[tuple[int, str]], seen: Mapping[str, Iterator[tuple[int, int]]]
) -> Lines | None:
    """A row's lines, from the pieces to come; None if they do not fill it."""
    found: list[tuple[int, int]] = []
    begun: dict[str, tuple[int, int]] = {}  # a piece may lie in several runs
    for many, kind in runs:
        rest = many
        while rest:
            piece = begun.pop(kind, None) or next(seen[kind], None)
            if piece is None:
                return None
            tokens, wide = piece
            taken = min(rest, tokens)
            found.append((taken, wide))
            rest -= taken
            if taken < tokens:
                begun[kind] = tokens - taken, wide
    return None if begun else tuple(found)


def _pieces(kind: str, sight: Sight) -> Lines:
    """Of each picture or video that was seen, its tokens and the length of a line."""
    lengths, grids, frames = sight.lengths, sight.grids, sight.films
    if len(grids) == len(lengths):
        pairs = zip(lengths, grids, strict=True)
        return tuple((n, wide if high * wide == n else 0) for n, (high, wide) in pairs)
    if kind == "video" and len(frames) == len(lengths):
        return tuple((n, _side(frame)) for n, (_, frame) in zip(lengths, frames, strict=True))
    unknown = bool(grids) or (kind == "video" and not frames)
    return tuple((n, 0 if unknown else _side(n)) for n in lengths)


def _side(size: int) -> int:
    """Of a square of so many tokens, 0 if there is none."""
    side = isqrt(size)
    return side if side * side == size else 0
