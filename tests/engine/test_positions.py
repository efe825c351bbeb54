"""A trimmed forward answers at the positions of its input: likelihoods, losses, probes ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import IMAGE, prompts, tiny_llava
from oracle import oracle_states
from test_oracle import CASES, ROWS

import st3


def _oracle(model: Any, inputs: dict[str, Any], name: str) -> tuple[Any, Any]:
    rows, prompt = inputs["input_ids"].shape
    with torch.no_grad():
        answer = torch.zeros(rows, 1, dtype=torch.long)
        logits, states, _ = oracle_states(model, inputs, answer, CASES[name][1])
    return logits[:, :prompt].float(), [each[:, :prompt].float() for each in states]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CASES)
def test_text_is_right_and_dropped_tokens_are_finite(name: str, rows: str, use_cache: bool) -> None:
    model, inputs = tiny_llava(), prompts(*ROWS[rows])
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), st3.trim(model, name, **CASES[name][0]):
        got = model(
            **inputs, position_ids=positions, use_cache=use_cache, output_hidden_states=True
        )
    logits, states = _oracle(model, inputs, name)
    text = inputs["attention_mask"].bool() & (inputs["input_ids"] != IMAGE)
    assert got.logits.shape == logits.shape
    assert got.logits.isfinite().all()
    torch.testing.assert_close(got.logits[text], logits[text], atol=1e-4, rtol=1e-4)
    assert len(got.hidden_states) == len(states) == 11
    for mine, theirs in zip(got.hidden_states, states, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine[text], theirs[text], atol=1e-4, rtol=1e-4)
    # Some of them have indeed been dropped.
    dropped = (got.hidden_states[-1] == 0).all(-1) & inputs["attention_mask"].bool()
    assert bool(dropped.any()) == (name != "vta")


def test_visual_tokens_that_are_kept_lie_where_they_were() -> None:
    model, inputs = tiny_llava(), prompts(*ROWS["ragged"])
    with torch.no_grad(), st3.trim(model, "pvtp", **CASES["pvtp"][0]) as session:
        got = model(**inputs, output_hidden_states=True)
    for row in range(3):
        places = (inputs["input_ids"][row] == IMAGE).nonzero().flatten()
        for layer in range(1, 11):
            state = got.hidden_states[layer][row][places]
            assert (state != 0).any(-1).nonzero().flatten().tolist() == session.kept(layer, row)


@pytest.mark.parametrize("name", ["pvtp", "st3"])
def test_the_loss_of_text_labels(name: str) -> None:
    """What padding or a picture's last token would predict is no label."""
    model, inputs = tiny_llava(), prompts("tttItttttt", "tIttt")
    ids = inputs["input_ids"]
    text = (ids != IMAGE) & inputs["attention_mask"].bool()
    labels = torch.full_like(ids, -100)
    labels[:, 1:] = ids[:, 1:].masked_fill(~(text[:, 1:] & text[:, :-1]), -100)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), st3.trim(model, name, **CASES[name][0]):
        loss = model(**inputs, position_ids=positions, labels=labels).loss
    logits, _ = _oracle(model, inputs, name)
    want = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(loss, want, atol=1e-4, rtol=1e-4)


def test_the_likelihood_of_each_choice() -> None:
    """As evaluation harnesses score choices: one forward over prompt and choice, a slice of it."""
    model, inputs = tiny_llava(), prompts("tttItttt")
    for choice in (3, 4, 5):
        given = inputs | {"input_ids": inputs["input_ids"].clone()}
        given["input_ids"][0, -1] = choice
        with torch.no_grad(), st3.trim(model, "pvtp", **CASES["pvtp"][0]):
            logits = model(**given).logits
        want, _ = _oracle(model, given, "pvtp")
        place = given["input_ids"].shape[1] - 2
        got = logits[0, place : place + 1].log_softmax(-1)[0, choice]
        torch.testing.assert_close(got, want[0, place].log_softmax(-1)[choice], atol=1e-4, rtol=0)


def test_a_tuple_and_attention_weights() -> None:
    """`return_dict=False` is spread as well; attention weights are those of the tokens alive."""
    model, inputs = tiny_llava(backend="eager"), prompts("tttItttt")
    with torch.no_grad(), st3.trim(model, "pvtp", **CASES["pvtp"][0]):
        plain = model(**inputs, output_attentions=True)
        found = model(**inputs, return_dict=False)
    assert torch.equal(found[0], plain.logits)
    assert plain.attentions[0].shape[-1] == inputs["input_ids"].shape[1]
    assert plain.attentions[-1].shape[-1] < inputs["input_ids"].shape[1]
