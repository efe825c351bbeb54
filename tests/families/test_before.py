"""Choices before the decoder, in every kind of family: what comes after is what an oracle says.

The oracle gets the tokens that the reference of the published formula chooses from the embeddings
that stock hands to its decoder, and hides all others from layer 1 on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import greedy as any_greedy
from families.media import IMAGE, assemble, noise
from families.talk import Talk
from families.zoo import ZOO
from methods.references import by_determinants, evs, farthest, relevance
from transformers import AutoModelForImageTextToText

import st3
from st3.engine.pieces import by_kind
from st3.engine.sight import Sight
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.inference.report import selection_of
from st3.inference.suits import suits
from st3.methods import make_method
from st3.methods.before import selectors
from st3.verification.compacted import compacted_logits
from st3.verification.masked import Hidden, masked_logits

FAMILIES = [
    "llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "internvl, qwen3",
    "gemma4, shared keys", "qwen3_5", "mistral3",
]  # fmt: skip
"""A class token or none, tiles, windows, DeepStack, borrowed keys, recurrent states, three axes."""
ROWS = {"one": ("ttItItttt",), "padded": ("ttItIttttt", "tItt")}
Reference = Callable[[torch.Tensor, torch.Tensor, int], list[int]]
SPECS: dict[str, Reference] = {
    "divprune:keep=40%": lambda V, words, count: farthest(V, count),
    "dpp:keep=3,tau=9": lambda V, words, count: by_determinants(V, [1.0] * len(V), count),
    "cdpruner:keep=4,per=prompt,tau=9": lambda V, words, count: by_determinants(
        V, relevance(V, words, 0.5), count
    ),
    "st3:scorer=divprune,stride=1,ratio=0.15,tau=9": lambda V, words, count: farthest(V, count),
    "divprune:keep=60%,scorer=last-token,tau=9": lambda V, words, count: farthest(V, count),
}


def greedy(model: Any, inputs: dict[str, Any], new: int = 8) -> Any:
    """Answers without placeholders, which some models would look for pictures for."""
    return any_greedy(model, inputs, new, suppress_tokens=list(range(93, 100)))


@lru_cache(maxsize=2)
def _model(name: str) -> Any:
    return ZOO[name].build()


def embeddings(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What stock hands to its decoder for a prompt, [B, n, d]."""
    found: list[torch.Tensor] = []
    decoder = find_parts(model).decoder
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        greedy(model, inputs, 1)
    finally:
        handle.remove()
    return found[0].detach()


def runs(places: list[int]) -> list[list[int]]:
    """Places that lie together."""
    found: list[list[int]] = []
    for place in places:
        if found and found[-1][-1] == place - 1:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def expected(
    states: torch.Tensor, visual: torch.Tensor, mask: torch.Tensor, spec: str
) -> list[list[int]]:
    """Of each row, places of what enters, the most important first, by the reference."""
    budget = make_method(spec).schedule(6).entering
    rows = []
    for row, here in enumerate(visual):
        places = here.nonzero().flatten().tolist()
        words = states[row][mask[row].bool() & ~here]
        pools = runs(places) if budget.per == "picture" else [places]
        standing = []
        for pool in pools if places else []:
            count = budget.of(len(pool))
            chosen = SPECS[spec](states[row, pool], words, count)
            standing += [((n + 0.5) / count, pool[number]) for n, number in enumerate(chosen)]
        rows.append([place for _, place in sorted(standing)])
    return rows


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_enters_is_the_reference_and_the_rest_the_oracle(
    name: str, kind: str, spec: str
) -> None:
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    model = _model(name)
    inputs = ZOO[name].inputs(model, ROWS[kind])
    mask = inputs["attention_mask"]
    visual = visual_mask(find_parts(model).visual_ids, inputs["input_ids"]) & mask.bool()
    entered = expected(embeddings(model, inputs), visual, mask, spec)
    with st3.trim(model, spec) as session:
        ours = greedy(model, inputs)
        record = session.record
        assert session.cache.live_bytes == session.kv_bytes[-1]  # type: ignore[union-attr]
    numbers = [row.nonzero().flatten().tolist() for row in visual]
    for row, places in enumerate(entered):
        assert session.kept(1, row) == [numbers[row].index(place) for place in sorted(places)]
    answer = ours.sequences[:, inputs["input_ids"].shape[1] :]
    parts, plan = find_parts(model), record.plan
    with torch.no_grad():
        if parts.recurrent:
            if kind != "one":
                pytest.skip("the compaction oracle takes one row")
            want, said = compacted_logits(
                model, parts.decoder, inputs, answer, plan, visual, entered=entered[0]
            )
        else:
            said = Hidden(plan.schedule, plan.groups, visual, parts.lenders, entered=entered)
            want = masked_logits(model, parts.decoder, inputs, answer, said)
    got = torch.stack(ours.logits, 1)
    torch.testing.assert_close(got, want.to(got.dtype), atol=1e-4, rtol=1e-5)
    for layer in range(1, 7):
        for row in range(len(answer)):
            for step in (0, 4):
                alive = sorted(numbers[row].index(place) for place in said.alive(layer, row, step))
                assert session.kept(layer, row, step) == alive


@pytest.mark.parametrize("method", selectors())
@pytest.mark.parametrize(
    ("name", "kind"),
    [("llava", "padded"), ("llava_next", "one"), ("qwen2_5_vl", "filmed"), ("gemma3", "padded")],
)
def test_every_method_in_several_families(name: str, kind: str, method: str) -> None:
    """Whatever a method lets in: nothing else is seen, and it leaves in the method's order."""
    model = _model(name)
    inputs = ZOO[name].inputs(model, getattr(ZOO[name], kind))
    mask = inputs["attention_mask"]
    parts = find_parts(model)
    visual = visual_mask(parts.visual_ids, inputs["input_ids"]) & mask.bool()
    if method == "evs" and name != "qwen2_5_vl":  # a row of no two pictures of one size
        with st3.trim(model, method), pytest.raises(ValueError, match="nothing moves in a still"):
            greedy(model, inputs, 1)
        return
    with st3.trim(model, method, keep=0.3, tau=9) as session:
        ours = greedy(model, inputs)
        record = session.record
        assert session.cache.live_bytes == session.kv_bytes[-1]  # type: ignore[union-attr]
    numbers = [row.nonzero().flatten().tolist() for row in visual]
    budget = make_method(method, keep=0.3).schedule(6).entering
    entered = []
    for row, places in enumerate(numbers):
        inside = record.turns[0].entered(row)
        assert len({*inside}) == len(inside) == sum(budget.of_pictures(record.prompt.parts[row]))
        entered.append([places[n] for n in inside])
    answer = ours.sequences[:, inputs["input_ids"].shape[1] :]
    said = Hidden(
        record.plan.schedule, record.plan.groups, visual, parts.lenders, entered=entered,
        embeddings=record.turns[0].merged,
    )  # fmt: skip
    with torch.no_grad():
        want = masked_logits(model, parts.decoder, inputs, answer, said)
    got = torch.stack(ours.logits, 1)
    torch.testing.assert_close(got, want.to(got.dtype), atol=1e-4, rtol=1e-5)
    for layer in (1, 6):
        for row in range(len(answer)):
            for step in (0, 4):
                alive = sorted(numbers[row].index(place) for place in said.alive(layer, row, step))
                assert session.kept(layer, row, step) == alive


def test_pictures_that_lie_end_to_end_are_told_apart() -> None:
    """By what they were encoded to: tiles of one are as many tokens, of the other more."""
    model = _model("llava_next")
    inputs = ZOO["llava_next"].inputs(model, ("ttIItttt", "tItt"))
    with st3.trim(model, "divprune", keep=20) as session:
        greedy(model, inputs, 1)
        assert session.record.prompt.pictures == ((52, 72), (88,))
        kept = session.kept(1)
    assert [sum(n < 52 for n in kept), sum(n >= 52 for n in kept)] == [20, 20]


def test_pooled_tokens_are_means_of_their_cells() -> None:
    """Of stock's embeddings, by hand: two pictures of 4 x 4 tokens, quartered."""
    model = _model("llava")
    inputs = ZOO["llava"].inputs(model, ("ttItItt",))
    stock = embeddings(model, inputs)[0]
    with st3.trim(model, "pool:keep=25%") as session:
        greedy(model, inputs, 1)
    merged = session.record.turns[0].merged
    assert merged is not None
    for first, ordinal in ((2, 0), (19, 16)):
        means = stock[first : first + 16].view(2, 2, 2, 2, -1).mean((1, 3)).flatten(0, 1)
        places = [first + n for n in (0, 2, 8, 10)]
        torch.testing.assert_close(merged[0, places], means)
        assert {*session.kept(1)} >= {ordinal + n for n in (0, 2, 8, 10)}
    assert torch.equal(merged[0, [0, 1, 18, -1]], stock[[0, 1, 18, -1]])


@pytest.mark.parametrize(
    "method",
    ["divprune", "fastervlm", "vispruner", "pool", "visionzip:contextual=0.5", "prumerge_plus"],
)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_batch_is_its_rows(name: str, method: str) -> None:
    """Whatever stands beside it: the same tokens, and the same answer."""
    model, rows = _model(name), ("ttIItttt", "tItt")
    both = ZOO[name].inputs(model, rows)
    with st3.trim(model, method, keep=5, tau=9) as session:
        together = greedy(model, both)
        kept = [session.kept(1, row) for row in (0, 1)]
    first = 0
    for number, row in enumerate(rows):
        here = both["attention_mask"][number].bool()
        alone = {key: value[number : number + 1, here] for key, value in both.items()
                 if key in ("input_ids", "attention_mask", "mm_token_type_ids")}  # fmt: skip
        pictures = slice(first, first + row.count("I"))
        if "image_grid_thw" in both:
            sizes = both["image_grid_thw"].prod(1).cumsum(0).tolist()
            begin = sizes[pictures.start - 1] if pictures.start else 0
            alone["pixel_values"] = both["pixel_values"][begin : sizes[pictures.stop - 1]]
            alone["image_grid_thw"] = both["image_grid_thw"][pictures]
        else:
            alone["pixel_values"] = both["pixel_values"][pictures]
        first = pictures.stop
        with st3.trim(model, method, keep=5, tau=9) as session:
            one = greedy(model, alone)
            assert session.kept(1) == kept[number]
        assert torch.equal(one.sequences[0, -8:], together.sequences[number, -8:])
        for mine, theirs in zip(one.logits, together.logits, strict=True):
            torch.testing.assert_close(mine[0], theirs[number], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, tiny in ZOO.items() if tiny.encoded])
def test_features_in_place_of_pictures_show_no_tower(name: str) -> None:
    model = _model(name)
    inputs = ZOO[name].inputs(model, ("ttItt",))
    with (
        st3.trim(model, "fastervlm"),
        pytest.raises(ValueError, match="'fastervlm' needs to see the vision tower at work"),
    ):
        greedy(model, inputs, 1)


def test_a_block_with_windows_is_passed_over_and_the_report_says_so() -> None:
    model = _model("qwen2_5_vl")
    inputs = ZOO["qwen2_5_vl"].inputs(model, ("ttItt",))
    for method, said in (("hired", True), ("fastervlm", False)):  # the first block, and the last
        with st3.trim(model, method) as session:
            greedy(model, inputs, 1)
        assert any("windows" in note for note in session.record.notes) is said


def _resampling() -> tuple[Any, dict[str, Any]]:
    """Idefics2 of four latents and sixteen patches, as many as if a token stood for a square."""
    config = ZOO["idefics2"].configuration()
    config.perceiver_config.resampler_n_latents = 4
    inputs = assemble(("ttItt",), [[IMAGE] * 4])
    model = AutoModelForImageTextToText.from_config(config).eval()
    return model, inputs | {"pixel_values": noise(1, 1, 3, 32, 32)}


@pytest.mark.parametrize(
    ("name", "why"),
    [("llama4", "its vision tower hands features on"), ("idefics2", "by learned queries of all")],
)
def test_a_family_whose_patches_cannot_be_told(name: str, why: str) -> None:
    """What a run is refused for is known from a configuration."""
    model = _model(name)
    inputs = ZOO[name].inputs(model, ("ttItt",))
    if name == "idefics2":
        model, inputs = _resampling()
    for method in ("scope", "hiprune"):
        with (
            st3.trim(model, method),
            pytest.raises(ValueError, match=f"'{method}' does not fit this model: .*{why}"),
        ):
            greedy(model, inputs, 1)
        fits, instead = suits(partial(make_method, method), model.config)
        assert not fits
        assert why in instead
    assert suits(partial(make_method, "dpp"), model.config)[0]


# Tokens of each video in a prompt, and of a frame.
VIDEOS = {
    "qwen2_5_vl": [(24, 8), (8, 4)], "qwen3_vl": [(24, 8), (8, 4)], "glm4v": [(24, 8), (8, 4)],
    "llava_next_video": [(12, 4)] * 2, "llava_onevision": [(13, 4)] * 2,
    "video_llava": [(136, 17)] * 2,
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEOS)
def test_evs_takes_a_video_at_a_time(name: str) -> None:
    """Also where text stands between frames, or nothing between two videos."""
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    model = _model(name)
    inputs = ZOO[name].inputs(model, ("ttVVtt",))
    visual = visual_mask(find_parts(model).visual_ids, inputs["input_ids"])[0]
    states = embeddings(model, inputs)[0][visual]
    for keep, many in ((0.5, 0.5), (1, 0)):
        with st3.trim(model, "evs", keep=keep) as session:
            greedy(model, inputs, 2)
            assert session.cache.live_bytes == session.kv_bytes[-1]  # type: ignore[union-attr]
        want, first = [], 0
        for tokens, frame in VIDEOS[name]:
            count, whole = max(frame, int(many * tokens)), tokens // frame * frame
            numbers = [n // frame if n < whole else -9 for n in range(tokens)]
            chosen = evs(states[first : first + tokens], numbers, count)
            want += sorted(first + n for n in chosen)
            first += tokens
        assert session.kept(1) == want
        assert not session.record.notes


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_a_picture_beside_a_video_stays_whole(name: str) -> None:
    """Frames together or apart; alone it is refused."""
    model = _model(name)
    inputs = ZOO[name].inputs(model, ("ttItVtt",))
    with st3.trim(model, "evs:keep=10%") as session:
        greedy(model, inputs, 1)
    assert session.kept(1) == [*range(16 + 8)]
    assert session.record.notes == ["pictures beside a video stay whole: nothing moves in them"]
    for asked in ("evs", "pvtp:scorer=evs,stride=1"):
        with st3.trim(model, asked), pytest.raises(ValueError, match="'evs' goes by what changes"):
            greedy(model, ZOO[name].inputs(model, ("ttItt",)), 1)


def test_a_picture_in_a_turn_after_a_video_stays_whole() -> None:
    talk = Talk(_model("qwen2_5_vl"), ZOO["qwen2_5_vl"].inputs)
    with st3.trim(talk.model, "evs:keep=10%") as session:
        talk.say(("tVttt",))
        talk.say(("tItt",))
        turns = session.record.turns
    assert [turn.prompt.visual for turn in turns] == [(24,), (turns[1].entering[0],)]
    assert turns[0].entering == (8,)
    assert "pictures beside a video" in session.record.notes[0]


def test_kinds_by_marks_where_they_share_a_placeholder() -> None:
    """As GLM's: what stands between a video's marks is of a video."""
    config = SimpleNamespace(video_token_id=9, video_start_token_id=5, video_end_token_id=6)
    ids = torch.tensor([[1, 8, 8, 5, 1, 8, 8, 1, 8, 6, 8, 1]])
    found = by_kind(config, ids == 8, ids, {"image": Sight(), "video": Sight()})
    assert found["image"].nonzero()[:, 1].tolist() == [1, 2, 10]
    assert found["video"].nonzero()[:, 1].tolist() == [5, 6, 8]


def test_pictures_of_one_size_are_frames_where_videos_come_so() -> None:
    model = _model("llava")
    with st3.trim(model, "evs:keep=30%") as session:
        greedy(model, ZOO["llava"].inputs(model, ("tItItItt",)), 1)
    assert session.kept(1)[:16] == [*range(16)]
    assert len(session.kept(1)) == 16  # a frame at least; 30 % of 48 are fewer
    assert "shows a video as pictures" in session.record.notes[0]
    with st3.trim(model, "evs"), pytest.raises(ValueError, match="nothing moves"):
        greedy(model, ZOO["llava"].inputs(model, ("tItt",)), 1)
    both = ZOO["llava"].inputs(model, ("tItItItt", "tItt"))
    with st3.trim(model, "evs"), pytest.raises(ValueError, match="nothing moves"):
        greedy(model, both, 1)  # no row is answered for the company that it is in


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm4v", "llava", "gemma3", "llama4"])
def test_compact_positions_are_refused_by_a_configuration_where_the_engine_does(name: str) -> None:
    model = _model(name)
    method = make_method("dpp:keep=3,positions=compact")
    fits, why = suits(lambda: method, model.config)
    said = ""
    try:
        with st3.trim(model, method):
            greedy(model, ZOO[name].inputs(model, ("ttItt",)), 1)
    except ValueError as error:
        said = str(error)
    assert (fits, why) == (not said, said)


@pytest.mark.parametrize("method", ["fastervlm", "vispruner", "hiprune", "hired"])
@pytest.mark.parametrize("per", ["picture", "prompt"])
def test_marks_of_tiled_pictures_stay_on_top(method: str, per: str) -> None:
    """As many patches as the budget says, and all ends of lines, found where stock packs zeros."""
    model = _model("llava_next")
    inputs = ZOO["llava_next"].inputs(model, ("ttIItttt",))
    newline = model.model.image_newline.detach()
    with torch.no_grad():
        packed = embeddings(model, inputs)[0]
    visual = visual_mask(find_parts(model).visual_ids, inputs["input_ids"])[0]
    marks = (packed[visual] == newline).all(1).nonzero().flatten().tolist()
    assert marks
    with st3.trim(model, method, keep=10, per=per) as session:
        greedy(model, inputs, 3)
        kept = session.kept(1)
        assert session.cache.live_bytes == session.kv_bytes[-1]  # type: ignore[union-attr]
    assert {*marks} <= {*kept}
    assert len(kept) == len(marks) + (20 if per == "picture" else 10)


def test_tiles_without_a_whole_picture_before_them_are_noted() -> None:
    for name, row, noted in (("llava_next", "ttItt", False), ("internvl, qwen3", "ttItt", True)):
        model = _model(name)
        with st3.trim(model, "hired") as session:
            greedy(model, ZOO[name].inputs(model, (row,)), 1)
        said = "no picture of several tiles behind a whole one: attention alone, as fastervlm"
        assert (said in session.record.notes) is noted


@pytest.mark.parametrize(
    ("name", "spec"), [("llava", "divprune:keep=5"), ("qwen2_5_vl", "fastervlm:keep=3,tau=9")]
)
def test_the_report_names_what_the_cache_holds(name: str, spec: str) -> None:
    """Keys of layer 1 are the same with and without what was dropped: they tell tokens apart."""
    model = _model(name)
    inputs = ZOO[name].inputs(model, ("ttItItt",))
    visual = visual_mask(find_parts(model).visual_ids, inputs["input_ids"])[0]
    with torch.no_grad():
        stock = model(**inputs).past_key_values.layers[0].keys[0]
        with st3.trim(model, spec) as session:
            model(**inputs)
            layer = session.cache.layers[0]  # type: ignore[union-attr]
            keys = layer.keys[0, :, layer.start : layer.end]
            told = selection_of(session)
    places = [int((stock - key[:, None]).abs().sum((0, 2)).argmin()) for key in keys.unbind(1)]
    numbers = visual.long().cumsum(0) - 1
    held = sorted(int(numbers[place]) for place in places if visual[place])
    assert told is not None
    first, said = 0, []
    for size, many, which in zip(
        told["pictures"], told["entered_per_picture"], told["entered_tokens"], strict=True
    ):
        assert many == len(which) == session.method.budget().of(size)  # type: ignore[attr-defined]
        said += [first + number for number in which]
        first += size
    assert said == held
    assert told["entered"] == len(held)


@pytest.mark.parametrize(
    ("name", "alone"),
    [("smolvlm", True), ("idefics3", True), ("llava", True), ("llava_next", False)],
)
def test_hired_says_where_no_picture_has_tiles_of_its_own(name: str, alone: bool) -> None:
    """Each tile by itself, as where tiles are pictures to the decoder, or there are none."""
    model = _model(name)
    with st3.trim(model, "hired:keep=50%") as session:
        greedy(model, ZOO[name].inputs(model, ("ttItt",)), 1)
    assert any("as fastervlm" in note for note in session.record.notes) == alone
