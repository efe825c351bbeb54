"""Methods for videos in families that take them: which frames they see, what stays."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families.test_before import embeddings, greedy
from families.zoo import ZOO
from methods import video_references as slow

import st3
from st3.engine.pieces import with_pieces
from st3.engine.prompt import Prompt
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.families.patches import to_tokens
from st3.methods import METHODS, make_method
from st3.methods.budget import Piece
from st3.methods.clips import Clip
from st3.methods.view import View
from st3.verification.masked import Hidden, masked_logits

# Of two rows: a video and a picture, and a video.
CLIPS: dict[str, list[tuple[Clip, ...]]] = {
    "qwen2_5_vl": [(Clip(0, 3, 8), Clip(24, 1, 16)), (Clip(0, 2, 4),)],
    "qwen3_vl": [(Clip(0, 3, 8), Clip(24, 1, 16)), (Clip(0, 2, 4),)],
    "llava_onevision": [(Clip(0, 3, 4), Clip(13, 1, 52)), (Clip(0, 3, 4),)],
    "llava_next_video": [(Clip(0, 3, 4), Clip(12, 1, 52)), (Clip(0, 3, 4),)],
}
SPECS = (
    "vidcom2:keep=50%,tau=9", "dycoke:keep=60%,tau=9", "fastvid:keep=60%,least=1,same=-1,tau=9",
    "holitom:keep=40%,same=0.1,tau=9",
)  # fmt: skip


@lru_cache(maxsize=4)
def _model(name: str) -> Any:
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    return ZOO[name].build()


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> list[View]:
    """What the methods for videos get to see."""
    seen: list[View] = []
    for name in ("vidcom2", "dycoke", "fastvid", "holitom"):
        kind: Any = METHODS[name]

        def choose(self: Any, view: View, stock: Any = kind.choose) -> Any:
            seen.append(view)
            return stock(self, view)

        monkeypatch.setattr(kind, "choose", choose)
    return seen


def _reference(
    method: Any, V: torch.Tensor, seen: list[float], count: int
) -> tuple[set[int], torch.Tensor]:
    """Of one clip: which tokens stay, and the matrix of the merge."""
    frames, size, _ = V.shape
    none = torch.eye(frames * size, dtype=torch.float64)
    if method.name == "vidcom2":
        return slow.vidcom2(V, method.temperature, count), none
    if method.name == "dycoke":
        whole = -(-frames // 4)
        each = (count - whole * size) // max(1, frames - whole)
        assert count == whole * size + (frames - whole) * each or frames == 1
        return (slow.dycoke(V, each) if frames > 1 else {*range(size)}), none
    if method.name == "fastvid":
        return slow.fastvid(
            V, seen, count, least=method.least, same=method.same, density=method.density,
            step=method.step, beta=method.beta,
        )  # fmt: skip
    return slow.holitom(
        V, seen, count, same=method.same, beta=method.beta, contextual=method.contextual
    )


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", CLIPS)
def test_a_video_is_chosen_from_and_the_rest_is_the_oracle(
    name: str, spec: str, views: list[View]
) -> None:
    """In a padded batch: a video with a picture behind it, and another video."""
    model, method = _model(name), make_method(spec)
    inputs = ZOO[name].inputs(model, ("ttVtItt", "tVtt"))
    mask, parts = inputs["attention_mask"], find_parts(model)
    visual = visual_mask(parts.visual_ids, inputs["input_ids"]) & mask.bool()
    stock = embeddings(model, inputs)
    with st3.trim(model, spec) as session:
        ours = greedy(model, inputs)
        record = session.record
    (view,) = views
    assert [*view.clips()] == CLIPS[name]
    numbers = [row.nonzero().flatten().tolist() for row in visual]
    merged, entered = record.turns[0].merged, []
    for row, clips in enumerate(CLIPS[name]):
        inside = record.turns[0].entered(row)
        assert len({*inside}) == len(inside) == view.counts[row]
        entered.append([numbers[row][n] for n in inside])
        tokens = [clip.tokens for clip in clips]
        marks = view.sizes[row] - sum(tokens)
        budgets = slow.seats(tokens, tokens, view.counts[row] - marks)
        for clip, count in zip(clips, budgets, strict=True):
            mine = {n - clip.first for n in inside} & {*range(clip.tokens)}
            assert len(mine) == count
            if method.name == "dycoke" and (clip.frames == 1 or _uneven(clip, count)):
                continue  # below the whole frame's, which is ours: in pieces of it
            places = numbers[row][clip.inside]
            V = stock[row, places].view(clip.frames, clip.size, -1)
            seen = torch.zeros(clip.tokens)
            if method.name in ("fastvid", "holitom"):
                looked = view.tower.received("last") if method.name == "holitom" else (
                    view.tower.attention("features"))  # fmt: skip
                seen = looked[row, clip.inside].clamp_max(1)
            want, W = _reference(method, V, seen.tolist(), count)
            assert mine == want
            if merged is not None:
                stay = [*want]
                theirs = (W @ V.double().flatten(0, 1))[stay]
                got = merged[row, places][stay].double()
                torch.testing.assert_close(got, theirs, atol=1e-5, rtol=1e-5)
    said = Hidden(
        record.plan.schedule, record.plan.groups, visual, parts.lenders, entered=entered,
        embeddings=merged, features=record.turns[0].features,
    )  # fmt: skip
    answer = ours.sequences[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        want_logits = masked_logits(model, parts.decoder, inputs, answer, said)
    got = torch.stack(ours.logits, 1)
    torch.testing.assert_close(got, want_logits.to(got.dtype), atol=1e-4, rtol=1e-5)


def _uneven(clip: Clip, count: int) -> bool:
    """Whether DyCoke's formula has no such count."""
    whole = -(-clip.frames // 4)
    rest = count - whole * clip.size
    return rest < 0 or rest % (clip.frames - whole) > 0


@pytest.mark.parametrize("name", ["qwen3_vl", "llava_onevision"])
def test_a_batch_of_videos_is_its_rows(name: str) -> None:
    model, rows = _model(name), ("ttVtttt", "tVtt")
    both = ZOO[name].inputs(model, rows)
    for spec in SPECS:
        with st3.trim(model, spec) as session:
            together = greedy(model, both, 4)
            kept = [session.kept(1, row) for row in (0, 1)]
        for number in (0, 1):
            here = both["attention_mask"][number].bool()
            alone = {
                key: value[number : number + 1, here]
                for key, value in both.items()
                if key in ("input_ids", "attention_mask", "mm_token_type_ids")
            }
            pixels, video = both["pixel_values_videos"], slice(number, number + 1)
            if "video_grid_thw" in both:
                ends = [0, *both["video_grid_thw"].prod(1).cumsum(0).tolist()]
                alone["video_grid_thw"] = both["video_grid_thw"][video]
                video = slice(ends[number], ends[number + 1])
            alone["pixel_values_videos"] = pixels[video]
            with st3.trim(model, spec) as session:
                one = greedy(model, alone, 4)
                assert session.kept(1) == kept[number]
            for mine, theirs in zip(one.logits, together.logits, strict=True):
                torch.testing.assert_close(mine[0], theirs[number], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "clips"),
    [
        ("llava_onevision", (Clip(0, 3, 4), Clip(13, 3, 4))),
        ("qwen3_vl", (Clip(0, 3, 8), Clip(24, 2, 4))),
        ("qwen2_5_vl", (Clip(0, 3, 8), Clip(24, 2, 4))),
        ("exaone4_5", (Clip(0, 3, 8), Clip(24, 2, 4))),  # whose positions count no time
        ("video_llava", (Clip(0, 8, 17), Clip(136, 8, 17))),
    ],
)
def test_videos_side_by_side_are_told_apart(
    name: str, clips: tuple[Clip, ...], views: list[View]
) -> None:
    model = _model(name)
    with st3.trim(model, "dycoke"):
        greedy(model, ZOO[name].inputs(model, ("tVVtt",)), 1)
    assert views[-1].clips() == (clips,)


def test_a_family_without_videos_shows_them_as_pictures_and_the_report_says_so(
    views: list[View],
) -> None:
    stills = ("llava", "ttItItItt", Clip(0, 3, 16)), ("llava", "ttItt", Clip(0, 1, 16))
    for name, row, clip in (*stills, ("smolvlm", "tIt", Clip(0, 3, 4))):
        model, said = _model(name), clip.frames > 1
        with st3.trim(model, "vidcom2") as session:
            greedy(model, ZOO[name].inputs(model, (row,)), 1)
        assert views[-1].clips() == ((clip,),)
        assert any("taken for frames" in note for note in session.record.notes) is said


def test_pooled_frames_have_the_numbers_of_their_patches() -> None:
    """LLaVA-OneVision halves the sides of a frame, and puts a mark behind a video: two of them."""
    model = _model("llava_onevision")
    numbers = torch.rand(6, 16, 2, generator=torch.Generator().manual_seed(0))
    given = {"pixel_values_videos": torch.zeros(2, 3, 3, 32, 32)}
    got = to_tokens(model.model, given, numbers, [13, 13]).view(2, 13, 2)
    assert bool(got[:, 12].isinf().all())
    for video in (0, 1):
        for frame in range(3):
            grid = numbers[3 * video + frame].view(4, 4, 2)
            for place in range(4):
                line, column = 2 * (place // 2), 2 * (place % 2)
                mean = grid[line : line + 2, column : column + 2].mean((0, 1))
                torch.testing.assert_close(got[video, 4 * frame + place], mean)


@pytest.mark.parametrize("spec", ["dycoke:keep=60%", "evs:keep=60%"])
@pytest.mark.parametrize("name", ["llava_onevision", "qwen3_vl"])
def test_beams_see_the_videos_that_came_once(name: str, spec: str) -> None:
    model = _model(name)
    inputs = ZOO[name].inputs(model, ("ttVtItt", "tVttttt"))
    with st3.trim(model, spec) as session:
        greedy(model, inputs, 1)
        alone = [session.kept(1, row) for row in (0, 1)]
        model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
        assert [session.kept(1, row) for row in range(4)] == [alone[n] for n in (0, 0, 1, 1)]


def test_features_in_place_of_a_video_are_refused_and_of_pictures_are_not() -> None:
    """Nothing was seen of them: whether they move is for the ids to say."""
    config = SimpleNamespace(video_token_id=9)
    merger = SimpleNamespace(config=config, get_video_features=None)
    for number in (8, 9):
        ids = torch.tensor([[1, number, number, 1]])
        prompt = Prompt(4, (2,), (2,), 1, 2, pictures=((2,),))
        known = (prompt, merger, ids > 1, ids, {})
        if number == 8:
            assert with_pieces(*known, films=True, moves=False).films == ((Piece(2),),)
            continue
        with pytest.raises(ValueError, match="not features of them"):
            with_pieces(*known, films=True, moves=False)
