"""What the visual tokens of a prompt came as: pictures with their marks, videos with their frames.

How many tokens each has was seen while it was encoded; where it stands, and whether it is a video,
the ids tell. All on the host and before any layer: how many tokens enter follows from it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from st3.engine.prompt import Prompt
from st3.engine.sight import Sight
from st3.methods.budget import Piece, joined

_JOINED = (
    "this family shows a video as pictures: neighbours of one size were taken for frames of one"
)
_BOTH = ("image", "video")
_VIDEO_IDS = ("video_token_id", "video_token_index")
Sights = Mapping[str, Sight]
"""What was seen of pictures and of videos, by kind."""


def video_id(config: Any) -> int | None:
    """The placeholder of a video's tokens, if it has one of its own or shares a picture's."""
    return next((getattr(config, name) for name in _VIDEO_IDS if getattr(config, name, None)), None)


def by_kind(
    config: Any, visual: torch.Tensor, ids: torch.Tensor | None, sights: Collection[str]
) -> dict[str, torch.Tensor]:
    """bool [B, n]: visual tokens [B, n] of what was seen, by kind."""
    if len(sights) < 2 or ids is None:
        return dict.fromkeys(sights, visual)
    number = video_id(config)
    film = torch.zeros_like(visual) if number is None else ids == number
    first, last = (getattr(config, f"video_{end}_token_id", None) for end in ("start", "end"))
    if isinstance(first, int) and isinstance(last, int):  # one placeholder for both, between marks
        film = film | (torch.eq(ids, first).cumsum(1) > torch.eq(ids, last).cumsum(1))
    return {"image": visual & ~film, "video": visual & film}


def as_pictures(merger: Any) -> bool:
    """Whether the module that merges pictures into text knows no videos, only their frames."""
    return not hasattr(merger, "get_video_features")


def with_pieces(
    prompt: Prompt, merger: Any, visual: torch.Tensor, ids: torch.Tensor | None, sights: Sights,
    *, films: bool, moves: bool,
) -> Prompt:  # fmt: skip
    """The layout of a prompt with what is known of its pictures and videos.

    Args:
        visual: bool [B, n]. `ids`: int64 [B, n], if they are known.
        sights: what was seen of them when they were encoded.
        films: whether videos are to be told from each other. `moves`: whether budgets are spent on
            each video, wherever its frames stand; otherwise on what lies together.

    Raises:
        ValueError: videos are to be told from each other, and cannot be.
    """
    marked = any(any(sight.marks) for sight in sights.values())
    if not any(prompt.visual) or not (marked or films):
        return prompt
    placed = None
    if sights:
        film = by_kind(merger.config, visual, ids, sights).get("video")
        kinds = visual.int() if film is None else visual.int() + (visual & film).int()
        placed = _placed([*_runs(kinds.cpu())], _seen(sights))
    found = placed or ()
    if tuple(tuple(piece.tokens for piece in row) for row in found) == prompt.pictures:
        prompt = replace(prompt, pieces=found)
    if not films:
        return prompt
    if as_pictures(merger):
        rows = [[replace(x, frame=x.tokens) for x in row] for row in _pieces(prompt)]
        placed = tuple(joined(row) for row in rows)
    elif placed is None:
        film = None if ids is None else by_kind(merger.config, visual, ids, _BOTH)["video"]
        if film is None or bool(film.any()):
            raise ValueError(
                "which video a frame is of cannot be told: give videos as the processor makes "
                "them, not features of them"
            )
        placed = _pieces(prompt)
    return replace(prompt, films=placed, pieces=placed if moves else prompt.pieces)


def note_joined(notes: list[str], merger: Any, prompt: Prompt) -> None:
    """Say for the report that pictures were taken for frames, if any were."""
    moves = any(piece.moves for row in prompt.films for piece in row)
    if moves and as_pictures(merger) and _JOINED not in notes:
        notes.append(_JOINED)


def check_moves(prompt: Prompt, method: str) -> None:
    """Refuse prompts without a video to a method that goes by what moves.

    Row by row, so that no answer depends on what else is in a batch.

    Raises:
        ValueError: a row has visual tokens, and none of a video.
    """
    for visual, pieces in zip(prompt.visual, prompt.pieces, strict=False):
        if visual and not any(piece.moves for piece in pieces):
            raise ValueError(
                f"the method {method!r} goes by what changes from frame to frame, and nothing "
                "moves in a still picture: give a video, or take another method"
            )


def _seen(sights: Sights) -> dict[bool, list[Piece]]:
    """Pieces by whether they are of videos."""
    pictures, videos = sights.get("image", Sight()), sights.get("video", Sight())
    marks = pictures.marks or [0] * len(pictures.lengths)
    return {
        False: [Piece(n, many) for n, many in zip(pictures.lengths, marks, strict=True)],
        True: [Piece(n, frame=frame) for n, frame in videos.films],
    }


def _pieces(prompt: Prompt) -> tuple[tuple[Piece, ...], ...]:
    return prompt.pieces or tuple(tuple(map(Piece, row)) for row in prompt.pictures)


def _runs(kinds: torch.Tensor) -> Iterator[list[tuple[int, bool]]]:
    """Of each row of int [B, n], 0 of text, 1 of a picture and 2 of a video, the runs of visual
    tokens of one kind: how many, and whether of a video.
    """
    for row in kinds:
        found, counts = torch.unique_consecutive(row, return_counts=True)
        pairs = zip(counts.tolist(), found.tolist(), strict=True)
        yield [(count, kind == 2) for count, kind in pairs if kind]


def _placed(
    rows: Sequence[list[tuple[int, bool]]], seen: Mapping[bool, Sequence[Piece]]
) -> tuple[tuple[Piece, ...], ...] | None:
    """The pieces in each row, in order; None if they do not fill its runs.

    Beams, and several answers to a prompt, are rows side by side whose pictures came once.
    """
    brought = sum(piece.tokens for pieces in seen.values() for piece in pieces)
    times = max(1, sum(count for row in rows for count, _ in row) // max(1, brought))
    if any(row != rows[number - number % times] for number, row in enumerate(rows)):
        return None
    left = {kind: iter(pieces) for kind, pieces in seen.items()}
    found: list[tuple[Piece, ...]] = []
    for row in rows[::times]:
        pieces: list[Piece] = []
        to_come = {True: 0, False: 0}  # of a piece that lies in several runs
        for run, kind in row:
            while run:
                if not to_come[kind]:
                    piece = next(left[kind], None)
                    if piece is None or not piece.tokens:
                        return None
                    pieces.append(piece)
                    to_come[kind] = piece.tokens
                taken = min(run, to_come[kind])
                to_come[kind] -= taken
                run -= taken
        if any(to_come.values()):
            return None
        found += [tuple(pieces)] * min(times, len(rows) - len(found))
    return None if any(next(more, None) is not None for more in left.values()) else tuple(found)
