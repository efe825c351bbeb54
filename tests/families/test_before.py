"""Choices before the decoder, in every kind of family: what comes after is what an oracle says.

The oracle gets the tokens that the reference of the published formula chooses from the embeddings
that stock hands to its decoder, and hides all others from layer 1 on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from conftest import greedy as any_greedy
from families.zoo import ZOO
from methods.references import by_determinants, farthest, relevance

import st3
from st3.families.base import visual_mask
from st3.families.parts import find_parts
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
    with st3.trim(model, method, keep=0.3, tau=9) as session:
        ours = greedy(model, inputs)
        record = session.record
        assert session.cache.live_bytes == session.kv_bytes[-1]  # type: ignore[union-attr]
    numbers = [row.nonzero().flatten().tolist() for row in visual]
    budget = make_method(method, keep=0.3).schedule(6).entering
    entered = []
    for row, places in enumerate(numbers):
        inside = record.turns[0].entered(row)
        assert len({*inside}) == len(inside) == sum(budget.of_pictures(record.prompt.pictures[row]))
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


def test_features_in_place_of_pictures_show_no_tower() -> None:
    model = _model("qwen3_5")
    inputs = ZOO["qwen3_5"].inputs(model, ("ttItt",))
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


def test_a_family_whose_patches_cannot_be_told() -> None:
    model = _model("llama4")
    inputs = ZOO["llama4"].inputs(model, ("ttItt",))
    with (
        st3.trim(model, "scope"),
        pytest.raises(ValueError, match="'scope' does not fit this model: its vision tower"),
    ):
        greedy(model, inputs, 1)
