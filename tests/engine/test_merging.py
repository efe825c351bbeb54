"""The matrix of a merge against a dense product, and how many enter where a selector decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from conftest import greedy, prompts, tiny_llava
from methods.merged_references import outliers, prumerge, visionzip

import st3
from st3.engine import merging
from st3.engine.merging import Merging
from st3.methods import METHODS, make_method
from st3.methods.before import selectors
from st3.methods.budget import Budget
from st3.methods.selecting import Chosen, Merge, Selecting
from st3.methods.view import View
from st3.verification.masked import Hidden, masked_logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 40, 1 << 25])
def test_it_is_a_dense_matrix_product(
    dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pools of two rows, entries named twice and entries of nothing among them."""
    monkeypatch.setattr(merging, "_AT_ONCE", at_once)
    draw = torch.Generator().manual_seed(0)
    row = torch.tensor([0, 0, 1])
    into, of = (torch.randint(0, 9, (3, 20), generator=draw) for _ in range(2))
    weight = torch.randn(3, 20, generator=draw) * (torch.rand(3, 20, generator=draw) > 0.3)
    values = torch.randn(2, 9, 5, generator=draw).to(dtype)
    W = torch.zeros(2, 9, 9, dtype=torch.float64)
    for pool in range(3):
        for i, j, w in zip(into[pool], of[pool], weight[pool], strict=True):
            W[row[pool], i, j] += float(w)
    for b in range(2):
        for i in range(9):
            if not any(
                w and row[pool] == b and into[pool, n] == i
                for pool in range(3) for n, w in enumerate(weight[pool])
            ):  # fmt: skip
                W[b, i, i] = 1.0
    want = W @ values.double()
    got = Merging(row[:, None], into, of, weight)(values)
    assert got.dtype == dtype
    close = {"atol": 3e-2, "rtol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(got, want.to(dtype), **close)


def test_gradients_are_those_of_the_product() -> None:
    values = torch.randn(1, 4, 3, requires_grad=True)
    merge = Merging(
        torch.tensor([[0]]), torch.tensor([[1, 1, 3]]), torch.tensor([[0, 1, 2]]),
        torch.tensor([[0.25, 0.75, 2.0]]),
    )  # fmt: skip
    merge(values).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad[0, :, 0].tolist() == [1.25, 0.75, 3.0, 0.0]


def last_layer(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 [pictures, 1 + patches, width]: queries and keys of CLIP's last layer."""
    tower, seen = model.model.vision_tower, []
    layer = tower.encoder.layers[-1].self_attn if hasattr(tower, "encoder") else None
    layer = layer or tower.vision_model.encoder.layers[-1].self_attn
    handles = [
        part.register_forward_hook(lambda module, args, out: seen.append(out.double()))
        for part in (layer.q_proj, layer.k_proj)
    ]
    with torch.no_grad():
        model.model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
    for handle in handles:
        handle.remove()
    return seen[0], seen[1]


def joint_attention(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """float64 [pictures, patches]: the class token's, heads as one."""
    query, key = last_layer(model, inputs)
    logits = query[:, :1] @ key.transpose(1, 2) / query.shape[2] ** 0.5
    return logits.softmax(-1)[:, 0, 1:]


@pytest.mark.parametrize("spec", ["prumerge:keep=10", "visionzip:keep=20,contextual=0.4"])
def test_from_the_live_tower_to_the_decoder(spec: str) -> None:
    """Queries and keys as the tower's projections make them, and the reference's matrix."""
    model, inputs = tiny_llava(), prompts("ttIttItttt")
    with st3.trim(model, spec) as session:
        greedy(model, inputs, 1)
        kept, merged = session.kept(1), session.record.turns[0].merged
    assert merged is not None
    query, key = last_layer(model, inputs)
    by_head = [x.unflatten(2, (2, 16)).transpose(1, 2) for x in (query, key)]
    logits = by_head[0][:, :, :1] @ by_head[1].transpose(2, 3) / 4
    mean = logits.softmax(-1).mean(1)[:, 0, 1:]
    states = model.model.get_image_features(
        pixel_values=inputs["pixel_values"], return_dict=True
    ).pooler_output
    want = []
    for picture, values in enumerate(states):
        if spec.startswith("visionzip"):
            keys = by_head[1][picture].mean(0)[1:]
            stays, W = visionzip(keys, mean[picture].tolist(), 0.4, 20)
        else:
            joint = joint_attention(model, inputs)[picture].tolist()
            stays, W = prumerge(key[picture, 1:], joint, 32, 10)
        want += [64 * picture + n for n in sorted(stays)]
        place = int((inputs["input_ids"][0] == 99).nonzero()[64 * picture])
        product = torch.tensor(W) @ values.detach()
        got = merged[0, place : place + 64]
        torch.testing.assert_close(got[stays], product[stays], atol=1e-5, rtol=1e-5)
    assert kept == want


@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_an_adaptive_count_is_the_rule_s_in_every_row_and_cached_as_such(name: str) -> None:
    model, inputs = tiny_llava(), prompts("ttIttItttt", "tItt")
    for part in model.model.vision_tower.modules():  # else nothing stands out
        if part.__class__.__name__ == "CLIPAttention":
            part.q_proj.weight.data.mul_(20)
    standing = [outliers(row.tolist()) for row in joint_attention(model, inputs)]
    assert max(standing) > 1
    with st3.trim(model, name, tau=9) as session:
        both = greedy(model, inputs, 6)
        record = session.record
        kept = [session.kept(1, row) for row in (0, 1)]
        assert session.cache.live_bytes == session.kv_bytes[-1]  # type: ignore[union-attr]
    many = [sum(n // 64 == picture for n in kept[0]) for picture in (0, 1)] + [len(kept[1])]
    if name == "prumerge":
        assert many == [n + 1 for n in standing]
    else:
        for row, n, got in zip(joint_attention(model, inputs), standing, many, strict=True):
            best = {*row.argsort(descending=True)[:n].tolist()}
            assert got == min(64, 1 + len(best | {*range(0, 64, max(1, int(64 / n) // 3))}))
    assert len(kept[0]) != len(kept[1])
    # What comes after is what the masked oracle says, and a row alone is the same.
    visual = inputs["input_ids"] == model.config.image_token_id
    places = [row.nonzero().flatten().tolist() for row in visual]
    entered = [[places[n][x] for x in record.turns[0].entered(n)] for n in (0, 1)]
    said = Hidden(
        record.plan.schedule, record.plan.groups, visual, {}, entered=entered,
        embeddings=record.turns[0].merged,
    )  # fmt: skip
    answer = both.sequences[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        want = masked_logits(model, model.model.language_model, inputs, answer, said)
    torch.testing.assert_close(torch.stack(both.logits, 1), want, atol=1e-4, rtol=1e-5)
    here = inputs["attention_mask"][1].bool()
    alone = {
        "input_ids": inputs["input_ids"][1:, here], "pixel_values": inputs["pixel_values"][2:],
        "attention_mask": inputs["attention_mask"][1:, here],
    }  # fmt: skip
    with st3.trim(model, name, tau=9) as session:
        one = greedy(model, alone, 6)
        assert session.kept(1) == kept[1]
        assert session.kept_per_layer(0, 3) == record.kept_per_layer(1, 3)
    for mine, theirs in zip(one.logits, both.logits, strict=True):
        torch.testing.assert_close(mine[0], theirs[1], atol=1e-5, rtol=1e-5)


def test_an_adaptive_choice_with_compact_positions_in_a_later_turn() -> None:
    """Counts of each turn are its own, and so is how far what follows moves up."""
    model = tiny_llava()
    first, then = prompts("ttIttt"), prompts("tItt", seed=1)
    with st3.trim(model, "prumerge:positions=compact") as session:
        said = greedy(model, first, 4)
        ids = torch.cat((said.sequences, then["input_ids"]), dim=1)
        inputs = {
            "input_ids": ids, "attention_mask": torch.ones_like(ids),
            "pixel_values": then["pixel_values"], "past_key_values": said.past_key_values,
        }  # fmt: skip
        greedy(model, inputs, 3)
        record = session.record
        entering = [turn.entering[0] for turn in record.turns]
        assert record.shift == [128 - sum(entering)]
        assert session.kept_per_layer(0, session.generated) == [sum(entering)] * 10


@dataclass(frozen=True)
class Wild(Selecting):
    """Merges, or counts, in one way or another."""

    name: ClassVar[str] = "wild"
    source: ClassVar[str] = "a test"
    adapts: ClassVar[bool] = True
    keep: float | int | str = "adaptive"
    how: str = "well"

    def choose(self, view: View) -> Chosen:
        picks = torch.arange(view.valid.shape[1]).expand(view.valid.shape)
        into, weight = picks[:, :3].clone(), torch.ones(len(picks), 3)
        counts: Any = tuple(3 for _ in view.sizes)
        if self.how == "shape":
            weight = weight[:, :2]
        elif self.how == "nan":
            weight[0, 0] = float("nan")
        elif self.how == "outside":
            into[0, 0] = 1000
        elif self.how == "uncounted":
            counts = None
        elif self.how == "none":
            counts = (0, *counts[1:])
        return Chosen(picks, Merge(into, picks[:, :3], weight), counts)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shape", r"'wild' merges by \[2, 3\], \[2, 3\], \[2, 2\]: into, of and weight must be"),
        ("nan", "'wild' chose a token twice, .* or it merges such"),
        ("outside", "'wild' chose a token twice, .* or it merges such"),
        ("uncounted", r"'wild' was to decide how many of \[64, 64\] tokens stay, and said nothing"),
        ("none", r"'wild' was to decide how many of \[64, 64\] tokens stay, and said \[0, 3\]"),
    ],
)
def test_a_merge_that_cannot_be_is_named(
    how: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "wild", Wild)
    monkeypatch.setitem(selectors(), "wild", Wild)
    model, inputs = tiny_llava(), prompts("ttIttItttt")
    with st3.trim(model, f"wild:how={how}"), pytest.raises(ValueError, match=message):
        greedy(model, inputs, 2)
    with st3.trim(model, "wild") as session:
        greedy(model, inputs, 2)
        assert session.kept(1) == [0, 1, 2, 64, 65, 66]


def test_a_budget_is_one_of_three() -> None:
    for wrong in ({}, {"share": 0.5, "tokens": 3}, {"share": 0.5, "adaptive": True}):
        with pytest.raises(ValueError, match="a share, a number of tokens or adaptive, one of"):
            Budget(**wrong)  # type: ignore[arg-type]
    assert Budget(adaptive=True).of_pictures((64, 3)) == (64, 3)
    assert make_method("prumerge").schedule(2).count(1, 64) == 64
