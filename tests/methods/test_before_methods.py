"""Each method that chooses before the decoder, against the slow reference of its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods import references
from torch.utils._python_dispatch import TorchDispatchMode

from st3.methods import METHODS, make_method
from st3.methods.before import selectors
from st3.methods.budget import Budget, Piece, Pool, joined
from st3.methods.cells import divided
from st3.methods.clips import Clip
from st3.methods.greedy import ranked
from st3.methods.selecting import Selecting
from st3.methods.view import View
from st3.profiling.clocks import LaunchCounter

SIZES = (16, 12, 9, 1)


class FakeTower:
    """Numbers for every layer that is asked for."""

    def __init__(self, valid: torch.Tensor, crop: torch.Tensor | None = None) -> None:
        self.valid, self.crop = valid, crop

    def _drawn(self, name: str) -> torch.Tensor:
        seed = sum(map(ord, name))
        numbers = torch.rand(self.valid.shape, generator=torch.Generator().manual_seed(seed))
        return torch.where(self.valid, numbers, float("nan"))

    def attention(self, layer: str) -> torch.Tensor:
        """Of the class token."""
        return self._drawn(f"attention {layer}")

    def received(self, layer: str) -> torch.Tensor:
        """From all."""
        return self._drawn(f"received {layer}")

    def joint(self, layer: str) -> torch.Tensor:
        """Of the class token, all heads as one."""
        return self._drawn(f"joint {layer}")

    def keys(self, layer: str) -> torch.Tensor:
        """Two heads of three."""
        made = torch.randn(
            *self.valid.shape, 2, 3, generator=torch.Generator().manual_seed(len(layer))
        )
        return torch.where(self.valid[..., None, None], made, float("nan"))

    def crops(self) -> torch.Tensor:
        """All of the first crop, if not told otherwise."""
        return torch.zeros_like(self.valid).long() if self.crop is None else self.crop

    def features(self) -> torch.Tensor:
        """What the projector gets."""
        made = torch.randn(*self.valid.shape, 6, generator=torch.Generator().manual_seed(5))
        return torch.where(self.valid[..., None], made, float("nan"))


def view_of(
    method: Selecting,
    sizes: tuple[int, ...] = SIZES,
    crop: torch.Tensor | None = None,
    pools: tuple[Pool, ...] = (),
) -> tuple[View, Any]:
    """Pools of these sizes, padded with numbers that are none."""
    pools = pools or tuple((Piece(size, frame=min(4, size)),) for size in sizes)
    sizes = tuple(sum(piece.tokens for piece in pool) for pool in pools)
    valid = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(*valid.shape, 24, generator=draw)
    words = torch.randn(len(sizes), 5, 24, generator=draw)
    here = torch.arange(5) < torch.tensor([5, 3, 1, 0])[: len(sizes), None]
    tower = FakeTower(valid, crop)
    budget = method.budget()
    frames = torch.arange(max(sizes)).expand(valid.shape) // 4
    view = View(
        features=features.masked_fill(~valid[..., None], float("nan")),
        valid=valid,
        sizes=sizes,
        counts=tuple(map(budget.of_pool, pools)),
        frames=lambda: frames,
        words=lambda: (words, here),
        grids=lambda: tuple(
            {16: (4, 4), 12: (3, 4), 9: (3, 3)}.get(size, (1, size)) for size in sizes
        ),
        look=lambda: tower,
        films=tuple((Clip(0, size // 4, 4),) if size > 3 else () for size in sizes),
        pools=pools,
    )
    return view, tower


def reference(method: Any, view: View, tower: Any, pool: int) -> list[int] | set[int]:
    """The choice of one pool; a list where the order is part of it."""
    size, count = view.sizes[pool], view.counts[pool]
    V, X = view.features[pool, :size], tower.features()[pool, :size]
    words, here = (x[pool] for x in view.words())

    def drawn(name: str) -> list[float]:
        found: list[float] = tower._drawn(name)[pool, :size].tolist()
        return found

    attention = drawn("attention features")
    low, high = min(attention), max(attention)
    evenly = [(x - low) / (high - low) if high > low else 1.0 for x in attention]
    columns = {16: 4, 12: 4, 9: 3}.get(size, size)
    made: dict[str, Any] = {
        "divprune": lambda: references.farthest(V, count),
        "dpp": lambda: references.by_determinants(V, [1.0] * size, count),
        "cdpruner": lambda: references.by_determinants(
            V, references.relevance(V, words[here], method.theta) if here.any() else [1.0] * size,
            count,
        ),
        "fastervlm": lambda: references.best(attention, count),
        "scope": lambda: references.covering(X, attention, method.alpha, count),
        "mmr": lambda: references.mmr(V, evenly, method.trade, count),
        "vispruner": lambda: references.vispruner(X, attention, method.important, count),
        "hiprune": lambda: references.hiprune(
            drawn(f"received {method.object_layer:g}"), drawn("received features"), columns,
            method.alpha, count,
        ),
        "hired": lambda: references.hired(
            drawn("attention first"), attention, tower.crops()[pool, :size].tolist(),
            method.alpha, count,
        ),
        "evs": lambda: references.evs(V, view.frame[pool, :size].tolist(), count),
        "norm": lambda: references.best(V.double().norm(dim=1).tolist(), count),
        "random-before": lambda: references.best(references.lots(0, size), count),
        "uniform-before": lambda: {n * size // count for n in range(count)},
    }  # fmt: skip
    found: list[int] | set[int] = made[method.name]()
    return found


SPECS = [
    "divprune:keep=50%", "dpp:keep=5", "dpp:keep=40%", "cdpruner:keep=5", "cdpruner:keep=5,theta=1",
    "cdpruner:keep=5,theta=0", "fastervlm:keep=1", "fastervlm:keep=60%", "scope:keep=4",
    "scope:keep=4,alpha=0", "scope:keep=4,alpha=60", "mmr:keep=6", "mmr:keep=6,trade=0",
    "vispruner:keep=3",
    "vispruner:keep=7,important=0.75", "vispruner:keep=50%,important=0",
    "vispruner:keep=3,important=1", "hiprune:keep=75%,alpha=1",
    "hiprune:keep=8,alpha=0.6", "hiprune:keep=3", "hired:keep=40%", "evs:keep=60%",
    "norm:keep=5", "random-before:keep=40%", "uniform-before:keep=5", "uniform-before:keep=60%",
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_the_published_formula(spec: str) -> None:
    """In pools of several sizes at once, one of them of one token."""
    method: Any = make_method(spec)
    view, tower = view_of(method)
    picks = method.choose(view).picks
    assert picks.shape[1] >= view.most
    for pool, count in enumerate(view.counts):
        got, want = picks[pool, :count].tolist(), reference(method, view, tower, pool)
        assert (got if isinstance(want, list) else {*got}) == want
        assert len({*got}) == count


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_hired_with_tiles(alpha: float) -> None:
    """A whole picture of eight tokens and four tiles of four, whose lines lie beside each other."""
    crop = torch.tensor([[0] * 8 + [1, 1, 2, 2] * 2 + [3, 3, 4, 4] * 2])
    for keep in (3, 7, 12, 23):
        method: Any = make_method(f"hired:keep={keep},alpha={alpha}")
        view, tower = view_of(method, (24,), crop + 2)  # numbered through all pictures
        got = {*method.choose(view).picks[0, :keep].tolist()}
        tower.crop = crop
        assert got == reference(method, view, tower, 0)


ORDERS = [name for name, method in selectors().items() if not method.is_set]


@pytest.mark.parametrize("name", ORDERS)
def test_budgets_of_an_order_nest(name: str) -> None:
    picks = [make_method(name, keep=keep) for keep in (3, 6, 9)]
    found = [method.choose(view_of(method)[0]).picks[0] for method in picks]  # type: ignore[attr-defined]
    for less, more, keep in zip(found, found[1:], (3, 6), strict=False):
        assert less[:keep].tolist() == more[:keep].tolist()


@pytest.mark.parametrize("name", selectors())
@pytest.mark.parametrize("keep", [1, 5, 100])
def test_as_many_as_were_asked_for(name: str, keep: int) -> None:
    method: Any = make_method(name, keep=keep)
    view, _ = view_of(method)
    picks = method.choose(view).picks
    for pool, count in enumerate(view.counts):
        assert len({*picks[pool, :count].tolist()}) == count
        assert max(picks[pool, :count].tolist()) < view.sizes[pool]


@pytest.mark.parametrize("spec", ["divprune:keep=5", "dpp:keep=5", "cdpruner:keep=5", "mmr:keep=5"])
def test_the_order_of_tokens_does_not_matter(spec: str) -> None:
    method: Any = make_method(spec)
    view, tower = view_of(method, (16,))
    before = method.choose(view).picks[0, :5]
    turned = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    drawn = tower._drawn("attention features")[:, turned]
    tower._drawn = lambda name: drawn
    moved = View(
        view.features[:, turned], view.valid, view.sizes, view.counts, view.frames, view.words,
        view.grids, view.look, pools=view.pools,
    )  # fmt: skip
    after = method.choose(moved).picks[0, :5]
    if spec.startswith("dpp"):  # whose first is the first of equals
        assert after[0] == 0
        return
    assert turned[after].tolist() == before.tolist()


def test_cdpruner_without_relevance_is_dpp() -> None:
    one, other = make_method("cdpruner:keep=6,theta=0"), make_method("dpp:keep=6")
    found: list[Any] = [x.choose(view_of(x)[0]).picks.tolist() for x in (one, other)]  # type: ignore[attr-defined]
    assert found[0] == found[1]


def test_hired_of_one_crop_is_fastervlm() -> None:
    one, other = make_method("hired:keep=6"), make_method("fastervlm:keep=6")
    found: list[Any] = [x.choose(view_of(x)[0]).picks[:, :1].tolist() for x in (one, other)]  # type: ignore[attr-defined]
    assert found[0] == found[1]


def test_evs_takes_each_video_by_itself_and_still_pictures_whole() -> None:
    """Two videos and a picture in one pool: no frame is compared with one of another video."""
    pool = (Piece(12, frame=4), Piece(5), Piece(9, frame=4))
    method: Any = make_method("evs:keep=60%,per=prompt")
    view, _ = view_of(method, pools=(pool,))
    assert view.counts == (5 + 12,)  # 60 % of 21, rounded down
    got = {*method.choose(view).picks[0, :17].tolist()}
    V = view.features[0]
    change = dict.fromkeys((*range(4), *range(17, 21), 25), 255.0)
    for first, last in ((4, 12), (21, 25)):
        for n in range(first, last):
            change[n] = 1 - references.cosines(V[[n, n - 4]])[0][1]
    moving = sorted(change, key=lambda n: (-change[n], n))[:12]
    assert got == {*range(12, 17), *moving}
    assert view.notes == ["pictures beside a video stay whole: nothing moves in them"]
    small: Any = make_method("evs:keep=1,per=prompt")
    view, _ = view_of(small, pools=(pool,))
    assert view.counts == (5 + 8,)
    first = {*range(4), *range(12, 21)}
    assert {*small.choose(view).picks[0, :13].tolist()} == first


MARKED = (Piece(16, marks=4), Piece(9))
"""A picture of three lines of four patches with a mark at the end of each but the last, and more:
    places 4, 9, 14, 15."""


@pytest.mark.parametrize(
    "spec",
    ["fastervlm:keep=5", "vispruner:keep=6,important=0.5", "hired:keep=50%", "hiprune:keep=5"],
)
@pytest.mark.parametrize("per", ["picture", "prompt"])
def test_marks_stay_on_top_of_the_budget(spec: str, per: str) -> None:
    """And what stays beside them is the reference's choice of the patches alone."""
    method: Any = make_method(f"{spec},per={per}")
    pools = ((MARKED[0],), (MARKED[1],)) if per == "picture" else (MARKED,)
    view, tower = view_of(method, pools=pools)
    places = torch.tensor([4, 9, 14, 15])
    bare = torch.zeros_like(view.valid)
    bare[0, places] = True
    drawn = tower._drawn
    tower._drawn = lambda name: drawn(name).masked_fill(bare, float("inf"))
    tower.crop = torch.zeros_like(view.valid).long().masked_fill(bare, -1)
    if per == "prompt":
        tower.crop[0, 16:] = 1
    picks = method.choose(view).picks
    budget = method.budget()
    for pool, pieces in enumerate(pools):
        size, marks = view.sizes[pool], sum(piece.marks for piece in pieces)
        count = view.counts[pool]
        assert count == budget.of(size - marks) + marks
        got = {*picks[pool, :count].tolist()}
        assert len(got) == count
        patches = [n for n in range(size) if not bare[pool, n]]
        assert got >= {n for n in range(size) if bare[pool, n]}
        attention = drawn("attention features")[pool, patches].tolist()
        if method.name == "fastervlm":
            want = references.best(attention, count - marks)
        elif method.name == "vispruner":
            X = tower.features()[pool, patches]
            want = references.vispruner(X, attention, method.important, count - marks)
        elif method.name == "hired" and per == "picture":
            want = references.best(attention, count - marks)
        else:
            continue
        assert got - {n for n in range(size) if bare[pool, n]} == {patches[n] for n in want}


def test_hired_spends_a_prompt_s_budget_on_each_picture() -> None:
    """Of two pictures with tiles, one of them larger: no picture is taken for another's tile."""
    one = [0] * 8 + [1, 1, 2, 2] * 2
    crop = torch.tensor([[*one, *(n + 3 for n in one), *([6] * 8)]])
    pool = (Piece(16), Piece(16), Piece(8))
    method: Any = make_method("hired:keep=20,per=prompt")
    view, tower = view_of(method, (40,), crop, pools=(pool,))
    got = {*method.choose(view).picks[0, :20].tolist()}
    want: set[int] = set()
    early, late = (tower._drawn(f"attention {x}")[0].tolist() for x in ("first", "features"))
    for first, last, own, budget in ((0, 16, one, 8), (16, 32, one, 8), (32, 40, [0] * 8, 4)):
        inside = _within(early[first:last], late[first:last], own, budget)
        want |= {first + n for n in inside}
    rest = [n for n in references.best(late, 40) if n not in want]
    assert got == {*want, *rest[: 20 - len(want)]}


def _within(early: list[float], late: list[float], crop: list[int], budget: int) -> set[int]:
    """What a picture's tiles take of its budget, which truncation may leave short."""
    whole = references.best([e if c == 0 else -1.0 for e, c in zip(early, crop, strict=True)], 8)
    tiles, spent = max(crop), budget // 2
    marked, found = whole[:4], set()
    for tile in range(tiles + 1):
        marks = sum(n * tiles // 8 + 1 == tile for n in marked)
        many = (spent if tiles else budget) if tile == 0 else marks * (budget - spent) // 4
        inside = [n for n, c in enumerate(crop) if c == tile]
        found |= {*sorted(inside, key=lambda n: -late[n])[:many]}
    return found


def test_evs_of_one_frame_is_the_first() -> None:
    method: Any = make_method("evs:keep=25%")
    view, _ = view_of(method, (16,))
    assert method.choose(view).picks[0, :4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(24, 24, 144), (24, 24, 64), (5, 7, 6), (3, 4, 12), (1, 9, 4)])
def test_cells(shape: tuple[int, int, int]) -> None:
    """Rectangles that fill the grid, each with its middle inside; squares of a square."""
    high, wide, count = shape
    cells = divided(high, wide, count)
    assert len(cells.centre) <= count
    assert sorted({*cells.cell}) == list(range(len(cells.centre)))
    for number, centre in enumerate(cells.centre):
        inside = [n for n, cell in enumerate(cells.cell) if cell == number]
        lines, columns = {n // wide for n in inside}, {n % wide for n in inside}
        assert len(inside) == len(lines) * len(columns)
        assert max(lines) - min(lines) + 1 == len(lines)
        assert max(columns) - min(columns) + 1 == len(columns)
        assert centre in inside
    if high == wide == 24:
        assert {cells.cell.count(n) for n in range(count)} == {576 // count}


def test_downsampling_takes_every_second_token_and_pooling_their_means() -> None:
    found = {}
    for name in ("downsample", "pool"):
        method: Any = make_method(f"{name}:keep=4")
        view, _ = view_of(method, (16,))
        found[name] = method.choose(view)
        assert sorted(found[name].picks[0, :4].tolist()) == [0, 2, 8, 10]
    assert found["downsample"].merge is None
    merge = found["pool"].merge
    want = view.features[0].view(2, 2, 2, 2, 24).mean((1, 3)).view(4, 24)
    for place, mean in zip((0, 2, 8, 10), want, strict=True):
        mine = merge.into[0] == place
        parts = view.features[0, merge.of[0, mine]] * merge.weight[0, mine, None]
        torch.testing.assert_close(parts.sum(0), mean)


@pytest.mark.parametrize("name", selectors())
def test_published_settings_are_settings(name: str) -> None:
    kind: Any = METHODS[name]
    assert kind.needs
    assert kind.source
    for setting, parameters in kind.published.items():
        method = make_method(f"{name}:{setting}")
        assert method == make_method(f"{name}:{parameters}")
        assert method.schedule(32).keeps[0] == 1.0


@pytest.mark.parametrize(
    ("budget", "sizes", "want"),
    [
        (Budget(share=0.098), (576,), (56,)),
        (Budget(tokens=64), (576, 30), (64, 30)),
        (Budget(share=0.25), (10, 10), (2, 2)),
        (Budget(share=0.25, per="prompt"), (10, 10), (5,)),
        (Budget(share=0.001), (10,), (1,)),
        (Budget(share=0.07), (100,), (7,)),
        (Budget(share=0.29, down=True), (100,), (29,)),
        (Budget(share=0.299, down=True), (100,), (29,)),
    ],
)
def test_budgets(budget: Budget, sizes: tuple[int, ...], want: tuple[int, ...]) -> None:
    assert budget.of_pictures(sizes) == want


def test_neighbours_that_may_be_frames_are_a_video() -> None:
    frame, other, still = Piece(4, frame=4), Piece(6, frame=6), Piece(4)
    assert joined((frame, frame, other, frame, still, frame, frame)) == (
        Piece(8, frame=4), other, frame, still, Piece(8, frame=4),
    )  # fmt: skip
    assert not frame.moves
    assert Piece(8, frame=4).moves
    assert joined((Piece(8, frame=4), Piece(8, frame=4))) == (Piece(8, frame=4), Piece(8, frame=4))
    budget = make_method("evs").schedule(2).entering
    assert budget.of_alike(40, 5) == 10
    assert budget.of_alike(8, 2) == 4  # a frame at least
    assert budget.of_alike(40, 5, still) == 40
    assert budget.of_alike(40, 2, Piece(20, frame=2)) == 10
    assert make_method("fastervlm:keep=5").schedule(2).entering.of_alike(40, 2, Piece(20, 3)) == 16


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("divprune:keep=0", "at least 1 token, got 0"),
        ("divprune:keep=-3", "at least 1 token, got -3"),
        ("divprune:keep=0%", "above 0 and up to 1"),
        ("divprune:keep=1.5", "above 0 and up to 1, such as 0.11 or 11%, or a whole number"),
        ("divprune:keep=200%", r"\(1 is one token; 1.0 or 100% is all\); got 200%"),
        ("divprune:keep=nan", "keep must be a share"),
        ("divprune:keep=many", "keep must be a share"),
        ("cdpruner:theta=0.5,64", "a named setting comes first, and alone: got '64' behind"),
        ("cdpruner:64,128", "a named setting comes first, and alone: got '128' behind"),
        ("cdpruner:64,keep=5,keep=6", "keep is given twice"),
        ("fastervlm:90%", r"did you mean drop-90%, which is keep=58,positions=compact\?"),
        ("hired:20%", "did you mean keep-20%"),
        ("dpp:65", "name=value, got '65', or a named setting: 128, 64, 32"),
        ("divprune:keep=none", "keep must be a share"),
        ("dpp:per=tile", "per must be one of picture, prompt, got 'tile'"),
        ("dpp:positions=new", "positions must be one of original, compact"),
        ("cdpruner:theta=2", "theta must lie between 0 and 1, got 2"),
        ("scope:alpha=-1", "alpha must not be negative"),
        ("scope:alpha=nan", "alpha must not be negative, and finite, got nan"),
        ("scope:alpha=inf", "alpha must not be negative, and finite, got inf"),
        ("mmr:trade=7", "trade must lie between 0 and 1"),
        ("vispruner:important=2", "important must be a share"),
        ("hiprune:alpha=2", "alpha must be a share"),
        ("hiprune:object_layer=0", "share of the tower's depth"),
        ("hired:alpha=2", "alpha must be a share"),
        ("fastervlm:80%", "name=value, got '80%'"),
        (
            "pvtp:scorer=divprun",
            r"unknown scorer 'divprun' \(did you mean divprune\?\); known: last-token",
        ),
    ],
)
def test_settings_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(spec).schedule(12)


def test_what_follows_a_named_setting_goes_before_it() -> None:
    made = make_method("cdpruner:64,theta=0.5")
    assert made == make_method("cdpruner:keep=64,theta=0.5,positions=compact")
    made = make_method("cdpruner:64", keep=5)
    assert made == make_method("cdpruner:theta=1,positions=compact", keep=5)


def test_a_share_is_rounded_down_where_the_authors_do() -> None:
    assert make_method("hired:keep-10%").schedule(2).entering.of(576) == 57
    assert make_method("divprune:keep=10%").schedule(2).entering.of(576) == 58


@pytest.mark.parametrize("spec", ["mmr:keep=5,trade=0.9", "scope:keep=5,alpha=200"])
def test_how_large_attention_is_does_not_matter(spec: str) -> None:
    """Many patches make it small: what differs must not fall below what counts."""
    method: Any = make_method(spec)
    view, tower = view_of(method)
    before = method.choose(view).picks
    large = tower.attention
    tower.attention = lambda layer: large(layer) * 1e-7
    assert method.choose(view).picks.tolist() == before.tolist()


@pytest.mark.parametrize("name", ["downsample", "pool"])
@pytest.mark.parametrize("keep", [16, 100])
def test_the_first_of_a_grid_are_not_its_first_lines(name: str, keep: int) -> None:
    """Where others' schedules or annealing take a part of it."""
    method: Any = make_method(f"{name}:keep={keep}")
    picks = method.choose(view_of(method, (100,))[0]).picks[0].tolist()
    assert len({*picks}) == keep
    below = sum(pick >= 50 for pick in picks[: keep // 2])
    assert abs(below - keep // 4) <= keep // 16


def test_keep_reads_what_python_gives() -> None:
    assert make_method("dpp", keep=64).schedule(2).entering == Budget(tokens=64)
    assert make_method("dpp", keep=0.11).schedule(2).entering == Budget(share=0.11)
    assert make_method("dpp:keep=11%").settings(2)["keep"] == 0.11
    assert make_method("hiprune:qwen-1/3").settings(2)["keep"] == 0.334
    assert make_method("dpp:keep=64").settings(2)["keep"] == 64


def test_ranked_in_double_where_the_score_is() -> None:
    score = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert ranked(score, torch.ones(1, 2, dtype=torch.bool), 1).tolist() == [[1]]


class _NoWaiting(TorchDispatchMode):
    """Fails where a number would have to come back to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2].partition(".")[0]
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", selectors())
def test_nothing_waits_for_the_device(name: str) -> None:
    method: Any = make_method(name, keep=0.4)
    view, _ = view_of(method)
    with _NoWaiting():
        method.choose(view)


def test_greedy_choices_cost_a_dozen_operations_a_token() -> None:
    """Launching them is what takes time on a GPU."""
    for spec, most in (("dpp", 14), ("divprune", 6), ("scope", 12), ("mmr", 9)):
        counts = []
        for keep in (6, 14):
            method: Any = make_method(spec, keep=keep)
            view, _ = view_of(method, (16,))
            with LaunchCounter() as counter:
                method.choose(view)
            counts.append(counter.count)
        assert (counts[1] - counts[0]) / 8 <= most, spec
