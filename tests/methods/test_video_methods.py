"""Methods for videos against slow references, and the parts that they share against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods import video_references as slow

from st3.methods import make_method
from st3.methods.budget import Piece
from st3.methods.by_clip import dealt
from st3.methods.clips import Clip, clips_of, in_pools
from st3.methods.clusters import apportioned, density_peaks, distances, segments, still_windows
from st3.methods.orders import order_of
from st3.methods.selecting import Selecting
from st3.methods.view import View

FRAMES = (8, 5, 1, 2)
"""Of pools of one batch: even, odd, one; and two with a mark behind. A frame has nine tokens."""
SIZE, WIDTH = 9, 12


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def video(frames: int, seed: int) -> torch.Tensor:
    """[frames, SIZE, WIDTH]: some cells stand still for a while, and scenes change."""
    found = draw(frames, SIZE, WIDTH, seed=seed)
    shots = draw(frames, SIZE, WIDTH, seed=seed + 1)
    for f in range(frames):
        calm = torch.arange(SIZE) % 3 != (f // 3) % 3
        found[f, calm] = 0.15 * found[f, calm] + shots[f // 4][calm]
    return found


class Tower:
    """Says the same of every layer."""

    def __init__(self, seen: torch.Tensor) -> None:
        self.seen = seen

    def attention(self, layer: str) -> torch.Tensor:
        """Of a class token, or from all."""
        return self.seen

    received = attention


def view_of(method: Selecting) -> tuple[View, torch.Tensor]:
    """Pools, padded with what is no number; and the tower's attention."""
    sizes = tuple(f * SIZE + (n == 3) for n, f in enumerate(FRAMES))
    widest = max(sizes)
    features = torch.full((len(sizes), widest, WIDTH), float("nan"))
    for pool, many in enumerate(FRAMES):
        features[pool, : many * SIZE] = video(many, 10 * pool).flatten(0, 1)
        features[pool, many * SIZE : sizes[pool]] = 1.0
    valid = torch.arange(widest) < torch.tensor(sizes)[:, None]
    attention = torch.rand(len(sizes), widest, generator=torch.Generator().manual_seed(7))
    attention[3, FRAMES[3] * SIZE :] = float("inf")
    attention = attention.masked_fill(~valid, float("nan"))

    tower: Any = Tower(attention)
    budget = method.budget()
    view = View(
        features=features,
        valid=valid,
        sizes=sizes,
        counts=tuple(budget.of(size) for size in sizes),
        frames=lambda: torch.zeros(len(sizes), widest).long(),
        words=lambda: (features, valid),
        grids=lambda: (None,) * len(sizes),
        look=lambda: tower,
        films=tuple((Clip(0, many, SIZE),) for many in FRAMES),
    )
    return view, attention


def dense(chosen: Any, view: View, pool: int) -> torch.Tensor:
    """The merge of a pool as a matrix; rows that it does not name are those of the identity."""
    size = view.sizes[pool]
    found = torch.zeros(size, size, dtype=torch.float64)
    merge = chosen.merge
    for into, of, weight in zip(merge.into[pool], merge.of[pool], merge.weight[pool], strict=True):
        if weight:
            found[into, of] += weight.double()
    for row in range(size):
        if not found[row].any():
            found[row, row] = 1
    return found


def look(
    tokens: torch.Tensor, seen: torch.Tensor, films: tuple[Clip, ...], count: int
) -> View:  # fmt: skip
    """One pool."""
    return View(
        tokens[None], torch.ones(1, len(tokens)).bool(), (len(tokens),), (count,),
        lambda: torch.zeros(1, len(tokens)).long(), lambda: (tokens[None], seen > 2),
        lambda: (None,), lambda: Tower(seen), [], (films,),
    )  # fmt: skip


@pytest.mark.parametrize("spec", [
    "vidcom2", "vidcom2:keep=60%", "vidcom2:keep=7", "vidcom2:keep=40%,temperature=0.5",
    "vidcom2:keep=95%",
])  # fmt: skip
def test_vidcom2_is_its_formula(spec: str) -> None:
    method: Any = make_method(spec)
    view, _ = view_of(method)
    picks = method.choose(view).picks
    for pool, frames in enumerate(FRAMES):
        count, marks = view.counts[pool], int(pool == 3)
        V = view.features[pool, : frames * SIZE].view(frames, SIZE, WIDTH)
        want = slow.vidcom2(V, method.temperature, count - marks)
        if count - marks < frames:
            continue  # which of the frames, is tested below
        assert {*picks[pool, marks:count].tolist()} == want
        assert picks[pool, :marks].tolist() == [frames * SIZE] * marks


def test_vidcom2_whose_frames_are_alike_gives_each_as_many() -> None:
    method: Any = make_method("vidcom2:keep=24,temperature=1e9")
    picks = method.choose(view_of(method)[0]).picks[0, :24]
    assert torch.bincount(picks // SIZE).tolist() == [3] * 8


def test_vidcom2_of_less_than_a_token_a_frame_takes_those_that_stand_out() -> None:
    method: Any = make_method("vidcom2:keep=3,temperature=0.1")
    view, _ = view_of(method)
    few = method.choose(view).picks[0, :3] // SIZE
    more: Any = make_method("vidcom2:keep=50,temperature=0.1")
    many = torch.bincount(more.choose(view_of(more)[0]).picks[0, :50] // SIZE)
    assert len({*few.tolist()}) == 3
    assert many[few].sum() == many.topk(3).values.sum()


@pytest.mark.parametrize("each", [0, 2, 5, 9])
def test_dycoke_is_its_formula(each: int) -> None:
    for pool, frames in enumerate(FRAMES):
        whole = -(-frames // 4)
        count = whole * SIZE + (frames - whole) * each + int(pool == 3)
        method: Any = make_method(f"dycoke:keep={count}")
        view, _ = view_of(method)
        picks = method.choose(view).picks[pool, :count]
        V = view.features[pool, : frames * SIZE].view(frames, SIZE, WIDTH)
        assert {*picks.tolist()} - {frames * SIZE} == slow.dycoke(V, each) - {frames * SIZE}


def test_dycokes_settings_are_those_of_its_k() -> None:
    """Of eight frames two are whole, and int((1 - k) n) tokens stay of the others."""
    for k, size in ((0.3, 10), (0.5, 8), (0.7, 10)):
        method: Any = make_method(f"dycoke:k={k}")
        assert method.budget().of(8 * size) == 2 * size + 6 * int((1 - k) * size + 1e-9)


@pytest.mark.parametrize("spec", [
    "fastvid", "fastvid:keep=50%,least=1,same=0.3", "fastvid:keep=40%,density=1",
    "fastvid:keep=60%,least=2,step=2,beta=0.1", "fastvid:keep=45%,density=0.5,least=1,same=-1",
    "fastvid:keep=5", "fastvid:keep=70%,density=0,least=3",
])  # fmt: skip
def test_fastvid_is_its_formula(spec: str) -> None:
    method: Any = make_method(spec)
    view, attention = view_of(method)
    chosen = method.choose(view)
    _holds(method, view, attention, chosen, lambda V, seen, count: slow.fastvid(
        V, seen, count, least=method.least, same=method.same, density=method.density,
        step=method.step, beta=method.beta,
    ))  # fmt: skip


@pytest.mark.parametrize("spec", [
    "holitom", "holitom:keep=40%", "holitom:keep=30%,contextual=0.5", "holitom:keep=12,beta=0",
    "holitom:keep=35%,same=0.95", "holitom:keep=30%,contextual=1,beta=1",
])  # fmt: skip
def test_holitom_is_its_formula(spec: str) -> None:
    method: Any = make_method(spec)
    view, attention = view_of(method)
    chosen = method.choose(view)
    _holds(method, view, attention, chosen, lambda V, seen, count: slow.holitom(
        V, seen, count, same=method.same, beta=method.beta, contextual=method.contextual
    ))  # fmt: skip


def _holds(method: Any, view: View, attention: torch.Tensor, chosen: Any, reference: Any) -> None:
    """Which tokens stay, and what they become by a dense matrix product."""
    for pool, frames in enumerate(FRAMES):
        tokens, marks = frames * SIZE, int(pool == 3)
        count = view.counts[pool]
        V = view.features[pool, :tokens].view(frames, SIZE, WIDTH)
        want, W = reference(V, attention[pool, :tokens].tolist(), count - marks)
        got = chosen.picks[pool, :count].tolist()
        assert len({*got}) == count
        assert {*got} - {tokens} == want - {tokens}
        if chosen.merge is None:
            assert torch.equal(W, torch.eye(tokens, dtype=W.dtype))
            continue
        ours = dense(chosen, view, pool)[:tokens, :tokens]
        flat = V.double().flatten(0, 1)
        torch.testing.assert_close(
            (ours @ flat)[[*want]], (W @ flat)[[*want]], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(ours.sum(1), torch.ones(tokens, dtype=ours.dtype))


@pytest.mark.parametrize("spec", ["fastvid", "holitom", "vidcom2", "dycoke"])
def test_a_budget_of_all_changes_nothing(spec: str) -> None:
    method: Any = make_method(f"{spec}:keep=100%")
    view, _ = view_of(method)
    chosen = method.choose(view)
    assert chosen.merge is None
    for pool, size in enumerate(view.sizes):
        assert sorted(chosen.picks[pool, :size].tolist()) == [*range(size)]


def test_what_holitom_has_left_goes_to_what_stands_still() -> None:
    """Beyond all that is seen once; then a token is the mean of fewer, and nothing is lost."""
    still = torch.ones(4, 2, dtype=torch.long).cumsum(1).float()
    method: Any = make_method("holitom:keep=5")
    V = still[:, :, None] * draw(2, WIDTH)[None]
    V = V / V.norm(dim=-1, keepdim=True) + 0.01 * draw(4, 2, WIDTH, seed=3)
    cut = method._cut(V, torch.arange(8.0).view(4, 2) / 9, 5)
    picks = {*cut.picks[:5].tolist()}
    assert picks == {0, 1, 5, 6, 7}
    W = torch.zeros(8, 8)
    W.index_put_((cut.part.into, cut.part.of), cut.part.weight, accumulate=True)
    torch.testing.assert_close(W[0], torch.tensor([1, 0, 1, 0, 1, 0, 0, 0]) / 3)
    torch.testing.assert_close(W[1], torch.tensor([0, 1, 0, 1, 0, 0, 0, 0]) / 2)


def test_several_videos_are_each_chosen_from_by_itself() -> None:
    """Two in one pool, with a picture between and marks: as if each were alone."""
    clips = (Clip(0, 4, SIZE), Clip(37, 1, 6), Clip(43, 5, SIZE))
    whole = torch.cat((video(4, 1).flatten(0, 1), draw(1, WIDTH), draw(6, WIDTH, seed=4),
                       video(5, 2).flatten(0, 1)))  # fmt: skip
    attention = torch.rand(1, 88, generator=torch.Generator().manual_seed(2))
    for name in ("vidcom2", "dycoke", "fastvid", "holitom"):
        method: Any = make_method(f"{name}:keep=50%")

        chosen = method.choose(look(whole, attention, clips, 44))
        got = {*chosen.picks[0, :44].tolist()}
        assert 36 in got
        many = slow.seats([36, 6, 45], [36, 6, 45], 43)
        for clip, count in zip(clips, many, strict=True):
            one = look(
                whole[clip.inside], attention[:, clip.inside],
                (Clip(0, clip.frames, clip.size),), count,
            )  # fmt: skip
            alone = method.choose(one)
            mine = {n for n in got if clip.first <= n < clip.first + clip.tokens}
            assert mine == {n + clip.first for n in alone.picks[0, :count].tolist()}
            if chosen.merge is not None and alone.merge is not None:
                both = dense(chosen, look(whole, attention, clips, 44), 0)[clip.inside, clip.inside]
                torch.testing.assert_close(both, dense(alone, one, 0))


@pytest.mark.parametrize("nearest", [1, 4, 7, 30])
def test_peaks_of_density(nearest: int) -> None:
    """Against loops, where some are no tokens, and some are alike."""
    features = draw(3, 10, 5)
    features[1, 4] = features[1, 7]
    valid = torch.rand(3, 10, generator=torch.Generator().manual_seed(3)) < 0.7
    valid[2] = False
    got = density_peaks(distances(features), valid, nearest)
    for group in range(3):
        these = valid[group].nonzero().flatten().tolist()
        want = slow.peaks({n: features[group, n].double().tolist() for n in these}, nearest)
        for n in range(10):
            assert got[group, n].item() == pytest.approx(want.get(n, -1.0), abs=1e-5)


@pytest.mark.parametrize("least", [1, 3, 8, 99])
def test_segments(least: int) -> None:
    V = video(12, 3)
    for same in (-1.0, 0.5, 0.9):
        first, last = segments(V.mean(1), least, same)
        want = slow.cut_video(V, least, same)
        assert first.tolist() == [part[0] for part in want for _ in part]
        assert last.tolist() == [part[-1] for part in want for _ in part]


def test_windows_are_the_best_of_all_divisions() -> None:
    draws = torch.Generator().manual_seed(5)
    for steps, cells in ((6, 4), (7, 2), (5, 9), (1, 3), (0, 4)):
        for share in (0.3, 0.6, 0.9, 1.0):
            alike = torch.rand(steps, cells, generator=draws) < share
            first, last, still = still_windows(alike)
            for begin, end, these in slow.windows(alike.tolist()):
                assert first[begin : end + 1].tolist() == [begin] * (end - begin + 1)
                assert last[begin : end + 1].tolist() == [end] * (end - begin + 1)
                if steps:
                    want = [n in these for n in range(cells)]
                    assert still[begin : end + 1].tolist() == [want] * (end - begin + 1)


def test_seats() -> None:
    for sizes in ((5, 0, 3, 9), (1, 1, 1), (7,), (2, 9, 9, 4)):
        for total in range(sum(sizes) + 3):
            got = apportioned(torch.tensor(sizes), 9, total)
            assert got.tolist() == slow.seats(sizes, sizes, total)
            turns = dealt(sizes)[:total]
            assert [turns.count(n) for n in range(len(sizes))] == got.tolist()


def test_order_by_several_keys() -> None:
    first, then = torch.tensor([[1, 0], [1, 0]]), torch.tensor([[2.0, 5.0], [1.0, 5.0]])
    assert order_of(first, then).tolist() == [1, 3, 2, 0]


def test_clips_of_pieces() -> None:
    """A video with a mark behind it, a picture with marks at its lines, a video of one frame."""
    pieces = (Piece(13, frame=4), Piece(12, marks=3), Piece(5, frame=5), Piece(6))
    assert clips_of(pieces) == [Clip(0, 3, 4), Clip(13, 1, 12), Clip(25, 1, 5), Clip(30, 1, 6)]


def test_clips_in_pools() -> None:
    clips = [Clip(0, 3, 4), Clip(13, 2, 5)]
    assert in_pools(clips, (13, 10)) == [(Clip(0, 3, 4),), (Clip(0, 2, 5),)]
    assert in_pools(clips, (23,)) == [tuple(clips)]
    assert in_pools(clips, (4, 4, 5, 5, 5)) == [
        (Clip(0, 1, 4),), (Clip(0, 1, 4),), (Clip(0, 1, 4),), (Clip(0, 1, 5),), (Clip(0, 1, 5),),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vidcom2:temperature=0", "temperature must be above 0"),
        ("fastvid:least=0", "least must be at least 1, got 0"),
        ("fastvid:step=0", "step must be at least 1"),
        ("fastvid:density=2", "density must be a share, got 2"),
        ("fastvid:beta=-1", "beta must be a share"),
        ("fastvid:same=3", "same must be a cosine, got 3"),
        ("holitom:contextual=2", "contextual must be a share"),
        ("holitom:same=-2", "same must be a cosine"),
    ],
)
def test_settings_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(spec)


@pytest.mark.parametrize("turned", [False, True])
def test_vidcom2_leaves_no_frame_without_a_token(turned: bool) -> None:
    """Not even where all that can stand out is one of two frames."""
    V = video(2, 0).flip(0) if turned else video(2, 0)
    method: Any = make_method("vidcom2:keep=2,temperature=1e-9")
    films = (Clip(0, 2, SIZE),)
    picks = method.choose(look(V.flatten(0, 1), torch.zeros(1, 2 * SIZE), films, 2)).picks
    assert {*picks[0, :2].tolist()} == slow.vidcom2(V, 1e-9, 2)
    assert sorted((picks[0, :2] // SIZE).tolist()) == [0, 1]
