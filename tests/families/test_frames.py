"""Frames of videos as scorers know them, against how each family's prompt is made."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from families.zoo import ZOO

import st3
from st3.engine.frames import frame_numbers
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.methods.scorers import SCORERS, FramesInTurn, LayerView, Scorer

# Tokens of each frame in the first row of two videos of three and two frames, or of eight.
OF_TIME = {"qwen2_vl": [8] * 3, "qwen2_5_vl": [8] * 3}
OF_RUNS = {"qwen3_vl": [8] * 3, "glm4v": [8] * 3}
END_TO_END = {"llava_next_video": [4] * 3, "llava_onevision": [4, 4, 5], "video_llava": [17] * 8}
FRAMES = OF_TIME | OF_RUNS | END_TO_END


class _Spy(Scorer):
    """Looks at the frames, and scores as `frames-in-turn` does."""

    looks_at_frames = True

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def score(self, view: LayerView) -> torch.Tensor:
        self.seen.append((view.frame, view.visual))
        return FramesInTurn().score(view)


@pytest.mark.parametrize("name", FRAMES)
def test_a_scorer_knows_frames(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(model, ZOO[name].filmed)
    spy = _Spy()
    monkeypatch.setitem(SCORERS, "frames-in-turn", spy)
    with st3.trim(
        model, "pvtp", scorer="frames-in-turn", prune_ratio=0.5, stride=1, ratio=0.1
    ) as session:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    frame, visual = spy.seen[0]
    first = Counter(frame[0][visual[0]].tolist())
    wanted = FRAMES[name]
    assert [first[n] for n in range(len(wanted))] == wanted
    # The video's frames are those of the prompt that lie there, in order.
    assert frame[0][visual[0]].tolist() == sorted(frame[0][visual[0]].tolist())
    if name == "video_llava":
        kept = Counter(frame[0][visual[0]][session.kept(5)].tolist())
        assert len(kept) == 8
        assert max(kept.values()) - min(kept.values()) <= 1


def _frames(row: str, **known: Any) -> list[int]:
    visual = torch.tensor([[letter.isupper() for letter in row]])
    return frame_numbers(visual, **known)[0][visual[0]].tolist()  # type: ignore[no-any-return]


def test_frames_by_hand() -> None:
    assert _frames("ttAAtBBBtt") == [0, 0, 1, 1, 1]
    time = torch.tensor([0, 1, 2, 2, 3, 3, 3, 3, 4]).expand(3, 1, 9)
    row = "ttAABBBBt"
    assert _frames(row, positions=time) == [0, 0, 1, 1, 1, 1]
    text = torch.arange(9).expand(1, 1, 9)
    assert _frames(row, positions=torch.cat((text, time))) == [0, 0, 1, 1, 1, 1]
    assert _frames(row, positions=time[0]) == [0] * 6  # a single axis says nothing
    film = torch.ones(1, 9, dtype=torch.bool)
    assert _frames("tAABBCCDt", film=film, frame_tokens=2) == [0, 0, 1, 1, 2, 2, 2]
    assert _frames("tAAtBBBtt", film=film, frame_tokens=2) == [0, 0, 1, 1, 1]
    no_film = torch.zeros(1, 9, dtype=torch.bool)
    assert _frames("tAABBCCDt", film=no_film, frame_tokens=2) == [0] * 7


class _Given(Scorer):
    def __init__(self, *scores: float) -> None:
        self.scores = torch.tensor([scores])

    def score(self, view: LayerView) -> torch.Tensor:
        return self.scores


def test_frames_take_turns() -> None:
    """The best of each frame first, then the second best, by score where they are equal."""
    visual = torch.tensor([[False, True, True, True, True, True, False]])
    frame = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    states = torch.zeros(1, 1, 7, 2)
    view = LayerView(
        states, states, 1.0, None, visual, frame, total=5, trailing=1, frames=lambda: frame
    )
    within = _Given(9.0, 0.9, 0.8, 0.7, 0.2, 0.1, 9.0)
    order = FramesInTurn(within).score(view).masked_fill(~visual, -99.0)
    assert order[0].argsort(descending=True)[:5].tolist() == [1, 4, 2, 5, 3]


def test_the_mask_of_videos() -> None:
    model = ZOO["llava_onevision"].build()
    inputs = ZOO["llava_onevision"].inputs(model, ("tItVt",))
    parts = find_parts(model)
    visual = visual_mask(parts.visual_ids, inputs["input_ids"])
    film = inputs["input_ids"] == model.config.video_token_id
    tokens = parts.adapter.frame_tokens
    assert tokens is not None
    frame = frame_numbers(visual, None, film, tokens(model.config))
    assert len(set(frame[0][visual[0] & ~film[0]].tolist())) == 1  # tiles are one picture
    assert len(set(frame[0][film[0]].tolist())) == 3
