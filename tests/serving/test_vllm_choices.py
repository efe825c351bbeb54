"""What the vLLM plug-in chooses from is what `st3.trim` chooses from: without vLLM.

A family's own code makes the embeddings; what it puts into a prompt is the layout.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from families.zoo import ZOO

import st3
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.methods import make_method
from st3.methods.budget import Budget
from st3.methods.selecting import Selecting
from st3.serving.vllm.choosing import Picture, choose
from st3.serving.vllm.layout import Layout, from_channels, to_channels, untrimmed

FAMILIES = {
    "llava": 0, "llava_next": 0, "llava_onevision": 0, "qwen2_vl": 0, "qwen2_5_vl": 0,
    "qwen3_vl": 0, "internvl, qwen3": 4, "gemma3": 0, "mistral3": 0,
}  # fmt: skip
"""With the rows of a tile, where tiles count as pictures."""
LINES = {"mistral3"}
"""Those whose pictures have text between their lines."""


@lru_cache(maxsize=1)
def _model(name: str) -> Any:
    return ZOO[name].build()


def _seen(model: Any, inputs: dict[str, Any], spec: str) -> tuple[Any, torch.Tensor]:
    """A session that has answered, and what stock hands to its decoder."""
    found: list[torch.Tensor] = []
    decoder = find_parts(model).decoder
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    settings: Any = {"max_new_tokens": 1, "do_sample": False}
    try:
        model.generate(**inputs, **settings)
        with st3.trim(model, spec) as session:
            model.generate(**inputs, **settings)
    finally:
        handle.remove()
    return session, found[0].detach()


@pytest.mark.parametrize("name", FAMILIES)
def test_pools_and_rows_are_those_of_trim(name: str) -> None:
    """One picture: which rows stay of it, in how many pools."""
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    model = _model(name)
    inputs = ZOO[name].inputs(model, ("ttItttt",))
    for spec in ("divprune:keep=0.3", "pool:keep=0.5", "norm:keep=0.2", "uniform-before:keep=0.4"):
        method = make_method(spec)
        assert isinstance(method, Selecting)
        session, states = _seen(model, inputs, spec)
        visual = visual_mask(find_parts(model).visual_ids, inputs["input_ids"])[0]
        layout = Layout.of(visual, FAMILIES[name], method.budget())
        assert layout.pools == session.record.prompt.pictures[0], spec
        grid = None
        if "image_grid_thw" in inputs:
            _, high, wide = inputs["image_grid_thw"][0].tolist()
            side = model.config.vision_config.spatial_merge_size
            grid = (high // side, wide // side)
        picture = Picture(states[0, visual], layout.pools, layout.counts, grid, lines=name in LINES)
        (kept,) = choose(method, [picture])
        assert kept.numbers.tolist() == session.kept(1), spec
        merged = session.record.turns[0].merged
        now = states if merged is None else merged
        torch.testing.assert_close(kept.rows, now[0, visual][kept.numbers])
        stays = layout.stays.tolist()
        assert len(stays) == len(layout.embeds) - layout.gone
        assert sum(layout.embeds[place] for place in stays) == len(kept.numbers)


def test_pictures_beside_each_other_do_not_matter() -> None:
    """Whatever sizes, and however many at a time memory holds."""
    draw = torch.Generator().manual_seed(3)
    sizes = (40, 7, 64, 40, 1)
    pictures = []
    for size in sizes:
        counts = (max(1, round(size * 0.25)),)
        pictures.append(Picture(torch.randn(size, 16, generator=draw), (size,), counts))
    for name in ("divprune", "dpp", "pool", "random-before", "norm"):
        method: Any = make_method(name, keep=0.25)
        together = choose(method, pictures)
        for one, kept in zip(pictures, together, strict=True):
            (alone,) = choose(method, [one])
            assert alone.numbers.tolist() == kept.numbers.tolist()
            torch.testing.assert_close(alone.rows, kept.rows)
            assert len({*kept.numbers.tolist()}) == one.counts[0]


def test_only_embeddings_decide_and_what_follows_them_comes_along() -> None:
    """As early features of DeepStack do, behind the embedding in the same row."""
    draw = torch.Generator().manual_seed(4)
    rows = torch.randn(30, 8, generator=draw)
    more = torch.cat((rows, 9 * torch.randn(30, 16, generator=draw)), 1)
    method: Any = make_method("divprune", keep=0.3)
    (plain,) = choose(method, [Picture(rows, (30,), (9,))])
    (long,) = choose(method, [Picture(more, (30,), (9,))], width=8)
    assert plain.numbers.tolist() == long.numbers.tolist()
    assert torch.equal(long.rows, more[plain.numbers])


def test_attention_of_a_class_token() -> None:
    method: Any = make_method("fastervlm", keep=0.5)
    rows, looked = torch.randn(6, 4), torch.tensor([0.1, 0.5, 0.2, 0.9, 0.3, 0.0])
    (kept,) = choose(method, [Picture(rows, (6,), (3,), attention=looked)])
    assert kept.numbers.tolist() == [1, 3, 4]
    with pytest.raises(ValueError, match="nobody looked at the vision tower"):
        choose(method, [Picture(rows, (6,), (3,))])


def _layout(text: str, tile: int = 0, share: float = 0.5) -> Layout:
    return Layout.of(torch.tensor([x == "I" for x in text]), tile, Budget(share=share))


def test_layouts() -> None:
    plain = _layout("..IIII..")
    assert (plain.embeds, plain.pools, plain.counts) == ((True,) * 4, (4,), (2,))
    assert plain.stays.tolist() == [0, 1]
    lines = _layout("IIIInIIIIe")  # lines with a mark in between, and one behind
    assert (lines.pools, lines.counts, lines.gone) == ((4, 4), (2, 2), 4)
    assert lines.stays.tolist() == [0, 1, 4, 5, 6]
    tiles = _layout("sIIIIIIIIIe", tile=4)
    assert tiles.pools == (4, 4, 1)
    assert tiles.stays.tolist() == [0, 1, 4, 5, 8]
    assert _layout("....").pools == ()
    assert _layout("IIII", share=1.0).gone == 0


def test_a_prompt_is_untrimmed() -> None:
    """Against the untrimmed prompt itself, by its tokens."""
    one, other = _layout("IIII"), _layout("IIIInIIII")
    full = "ab" + "IIII" + "c" + "IIIInIIII" + "de"
    trimmed = "ab" + "II" + "c" + "IInII" + "de"
    ids = [ord(x) for x in trimmed]
    found = untrimmed(ids, [(2, one), (5, other)])
    assert [chr(x) for x in found.tokens] == list(full)
    assert found.starts == [2, 7]
    assert found.origin.tolist() == [0, 1, 2, 2, 6, 7, 7, 11, 7, 7, 16, 17]
    for place, token in zip(found.origin.tolist(), trimmed, strict=True):
        assert full[place] == token
    nothing = untrimmed(ids, [])
    assert nothing.tokens == ids
    assert nothing.origin.tolist() == list(range(len(ids)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_places_are_exact_as_channels(dtype: torch.dtype) -> None:
    places = torch.tensor([[0, 1, 2], [255, 256, 257], [65535, 4097, 12345]])
    assert torch.equal(from_channels(to_channels(places, dtype)), places)
