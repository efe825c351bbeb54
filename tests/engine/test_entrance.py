"""The stage before layer 1: positions, later turns, replays, and selectors that go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from conftest import greedy, prompts, tiny_llava

import st3
from st3.methods import METHODS, make_method
from st3.methods.before import selectors
from st3.methods.selecting import Chosen, Merge, Selecting
from st3.methods.view import View


def shorter(model: Any, inputs: dict[str, Any], kept: list[int], answer: torch.Tensor) -> Any:
    """Logits [T, vocabulary] of an answer [T], by stock, of a prompt of the kept tokens alone.

    `kept`: numbers of the visual tokens that stay, in the one row of the inputs.
    """
    whole = model.get_input_embeddings()(torch.cat((inputs["input_ids"][0], answer[:-1])))
    visual = inputs["input_ids"][0] == model.config.image_token_id
    features = model.model.get_image_features(
        pixel_values=inputs["pixel_values"], return_dict=True
    ).pooler_output
    whole[: len(visual)][visual] = torch.cat(list(features))
    number = visual.long().cumsum(0) - 1
    stays = [not v or int(n) in kept for v, n in zip(visual, number, strict=True)]
    stays += [True] * (len(whole) - len(visual))
    states = model.model.language_model(inputs_embeds=whole[stays][None]).last_hidden_state
    return model.lm_head(states)[0, -len(answer) :]


@pytest.mark.parametrize("spec", ["divprune:keep=9", "fastervlm:keep=9", "dpp:keep=20,per=prompt"])
@pytest.mark.parametrize("cached", [True, False])
def test_compact_positions_are_those_of_a_shorter_prompt(spec: str, cached: bool) -> None:
    model, inputs = tiny_llava(), prompts("tttIttItttt")
    with st3.trim(model, f"{spec},positions=compact") as session:
        result = greedy(model, inputs, use_cache=cached)
        kept = session.kept(1)
    answer = result.sequences[0, inputs["input_ids"].shape[1] :]
    if not cached:  # each token is a prompt of its own, the first like any other
        answer, result.logits = answer[:1], result.logits[:1]
        with st3.trim(model, f"{spec},positions=compact") as session:
            result.logits = (model(**inputs, use_cache=False).logits[:, -1],)
            kept = session.kept(1)
    with torch.no_grad():
        want = shorter(model, inputs, kept, answer)
    torch.testing.assert_close(torch.cat(result.logits), want, atol=1e-5, rtol=1e-5)


def test_compact_positions_in_a_batch_are_those_of_its_rows() -> None:
    model, rows = tiny_llava(), ("tttIttItttt", "tItt")
    inputs = prompts(*rows)
    with st3.trim(model, "divprune:keep=9,positions=compact,tau=9"):
        both = greedy(model, inputs)
    pictures = (slice(0, 2), slice(2, 3))
    for row, which in enumerate(pictures):
        here = inputs["attention_mask"][row].bool()
        alone = {
            "input_ids": inputs["input_ids"][row : row + 1, here],
            "attention_mask": inputs["attention_mask"][row : row + 1, here],
            "pixel_values": inputs["pixel_values"][which],
        }
        with st3.trim(model, "divprune:keep=9,positions=compact,tau=9"):
            one = greedy(model, alone)
        for mine, theirs in zip(one.logits, both.logits, strict=True):
            torch.testing.assert_close(mine[0], theirs[row], atol=1e-5, rtol=1e-5)


def test_a_later_turn_chooses_for_itself() -> None:
    """Fed in two turns with compact positions: what a prompt of the kept tokens alone would say."""
    model = tiny_llava()
    first, then = prompts("ttIttt"), prompts("tItt", seed=1)
    with st3.trim(model, "divprune:keep=9,positions=compact") as session:
        said = greedy(model, first, 4)
        ids = torch.cat((said.sequences, then["input_ids"]), dim=1)
        inputs = {
            "input_ids": ids, "attention_mask": torch.ones_like(ids),
            "pixel_values": then["pixel_values"], "past_key_values": said.past_key_values,
        }  # fmt: skip
        result = greedy(model, inputs, 5)
        assert session.visual_tokens == (128,)
        kept = session.kept(1, generated=session.generated)
        assert [sum(n < 64 for n in kept), sum(n >= 64 for n in kept)] == [9, 9]
    whole = inputs | {"pixel_values": torch.cat((first["pixel_values"], then["pixel_values"]))}
    answer = result.sequences[0, ids.shape[1] :]
    with torch.no_grad():
        want = shorter(model, whole, kept, answer)
    torch.testing.assert_close(torch.cat(result.logits), want, atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_what_stays_and_not_through_the_choice() -> None:
    model, inputs = tiny_llava(), prompts("ttItttt")
    for method in ("dpp", "pool", "vispruner"):
        model.zero_grad()
        with st3.trim(model, method, keep=0.25):
            model(**inputs, use_cache=False).logits[:, -1].sum().backward()
        grad = model.model.multi_modal_projector.linear_2.weight.grad
        assert grad is not None
        assert bool(grad.abs().sum() > 0)


def test_positions_on_a_grid_are_not_made_compact() -> None:
    from families.zoo import ZOO

    model = ZOO["qwen2_vl"].build()
    with (
        st3.trim(model, "dpp:positions=compact"),
        pytest.raises(ValueError, match="positions=compact is for models whose positions have one"),
    ):
        greedy(model, ZOO["qwen2_vl"].inputs(model, ("ttItt",)), 1)


@pytest.mark.parametrize("method", ["none", "pvtp", "st3", "random"])
def test_today_s_methods_look_at_no_tower_and_choose_nothing(method: str) -> None:
    model, inputs = tiny_llava(), prompts("ttItttt")
    with st3.trim(model, method) as session:
        assert not {"get_image_features", "get_video_features"} & vars(model.model).keys()
        tower = model.model.vision_tower
        assert {m.config._attn_implementation for m in tower.modules() if hasattr(m, "config")} == {
            tower.config._attn_implementation
        }
        greedy(model, inputs, 2)
        assert not session.record.notes
        assert not session.record.doubts


@dataclass(frozen=True)
class Broken(Selecting):
    """Goes wrong in one way or another."""

    name: ClassVar[str] = "broken"
    source: ClassVar[str] = "a test"
    how: str = "few"

    def choose(self, view: View) -> Chosen:
        picks = torch.arange(view.valid.shape[1]).expand(view.valid.shape).clone()
        if self.how == "few":
            return Chosen(picks[:, : view.most - 1])
        if self.how == "double":
            picks[0, 1] = picks[0, 0]
        elif self.how == "outside":
            picks[0, 0] = view.valid.shape[1]
        elif self.how == "nothing":
            return None  # type: ignore[return-value]
        elif self.how == "tensor":
            return picks  # type: ignore[return-value]
        elif self.how in ("merge", "weights"):
            into = torch.zeros(len(picks), 1, dtype=torch.long)
            weight = torch.full(into.shape, 0.5)
            if self.how == "merge":
                into[0] = 9999
            else:
                weight[0] = float("nan")
            return Chosen(picks, Merge(into, torch.ones_like(into), weight))
        elif self.how == "float":
            return Chosen(picks.float())
        elif self.how == "nan":
            from st3.methods.greedy import ranked

            score = torch.rand(view.valid.shape)
            score[0, 2] = float("nan")
            return Chosen(ranked(score, view.valid, view.most))
        return Chosen(picks)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the registry, where scorers are looked up, too."""
    monkeypatch.setitem(METHODS, "broken", Broken)
    monkeypatch.setitem(selectors(), "broken", Broken)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("few", r"'broken' returned \[2, 15\] of torch.int64: it must order at least 16 tokens"),
        ("float", r"returned \[2, 64\] of torch.float32"),
        ("double", "'broken' chose a token twice, one that is none, or by numbers that are none"),
        ("outside", "'broken' chose a token twice, one that is none"),
        ("nothing", "'broken' returned a NoneType: it must return Chosen"),
        ("tensor", "'broken' returned a Tensor: it must return Chosen"),
        ("merge", "'broken' chose .* or it merges such"),
        ("weights", "'broken' chose .* or it merges such"),
        ("nan", r"'broken' chose .* by numbers that are none \(NaN\)"),
    ],
)
def test_a_selector_that_goes_wrong_is_named(how: str, message: str) -> None:
    model, inputs = tiny_llava(), prompts("ttIttItttt")
    with st3.trim(model, f"broken:how={how}"), pytest.raises(ValueError, match=message):
        greedy(model, inputs, 2)
    with st3.trim(model, "broken:how=well") as session:
        greedy(model, inputs, 2)
        assert session.kept(1) == [*range(16), *range(64, 80)]


def test_a_prompt_without_pictures_enters_as_it_is() -> None:
    model, inputs = tiny_llava(), prompts("tttt")
    stock = greedy(model, inputs)
    with st3.trim(model, "fastervlm") as session:
        ours = greedy(model, inputs)
        assert session.kept_per_layer() == [0] * 10
    assert torch.equal(ours.sequences, stock.sequences)


def test_several_sequences_of_one_picture_are_refused_where_the_tower_is_looked_at() -> None:
    model, inputs = tiny_llava(), prompts("ttItttt")
    asked = {"do_sample": True, "num_return_sequences": 2}
    with (
        st3.trim(model, "fastervlm"),
        pytest.raises(ValueError, match=r"places for 128: give each|needs to see the vision tower"),
    ):
        greedy(model, inputs, 2, **asked)
    with st3.trim(model, "divprune") as session:
        greedy(model, inputs, 2, **asked)
        assert session.kept(1, 0) == session.kept(1, 1)


def test_all_that_a_budget_leaves_is_stock() -> None:
    model, inputs = tiny_llava(), prompts("ttIttItttt", "tItt")
    stock = greedy(model, inputs)
    for method in ("divprune", "fastervlm", "vispruner"):
        with st3.trim(model, method, keep=1.0):
            ours = greedy(model, inputs)
        for mine, theirs in zip(ours.logits, stock.logits, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_a_budget_of_tokens_is_one_for_each_picture_or_all() -> None:
    model, inputs = tiny_llava(), prompts("ttIIttItttt", "tItt")
    for per, want in (("picture", [60, 20]), ("prompt", [20, 20])):
        with st3.trim(model, "divprune", keep=20, per=per) as session:
            greedy(model, inputs, 1)
            assert [session.kept_per_layer(row)[0] for row in (0, 1)] == want
            kept = session.kept(1)
        if per == "picture":
            assert [sum(n // 64 == picture for n in kept) for picture in range(3)] == [20] * 3
    assert make_method("divprune:keep=20,per=prompt").schedule(10).count(1, 192, pictures=3) == 20
