"""One answer: the stream is the answer, and the pipeline of transformers works under `trim`."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import KEPT
from transformers import pipeline

import st3
from st3 import demo
from st3.inference.generation import answer
from st3.inference.pictures import open_picture
from st3.methods import make_method


@pytest.fixture(scope="module")
def packaged() -> Any:
    return st3.load("demo", device="cpu")


def test_streams_what_it_answers(packaged: Any) -> None:
    picture, pieces = open_picture(demo.PICTURE), []
    result = answer(
        *packaged, picture, "Describe this picture.", make_method("st3"), on_text=pieces.append
    )
    assert len(pieces) > 10
    assert "".join(pieces).strip() == result.text
    assert result.new_tokens == result.session.generated + 1
    timing = result.timing
    assert timing.ttft_ms + timing.tpot_ms * (result.new_tokens - 1) == pytest.approx(
        timing.total_ms
    )
    assert result.tokens_per_second == pytest.approx(1000 * result.new_tokens / timing.total_ms)


def test_one_token_has_no_tpot(packaged: Any) -> None:
    result = answer(*packaged, open_picture(demo.PICTURE), "count the objects", max_new_tokens=1)
    assert result.timing.tpot_ms is None
    assert result.session is None


def test_sampling_follows_the_seed(packaged: Any) -> None:
    picture = open_picture(demo.PICTURE)

    def sample(seed: int) -> str:
        return answer(
            *packaged, picture, "describe", make_method("st3"), temperature=3.0, seed=seed,
            max_new_tokens=12,
        ).text  # fmt: skip

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_a_temperature_next_to_nought_is_greedy(packaged: Any) -> None:
    """Logits over 1e-40 are infinite."""
    picture = open_picture(demo.PICTURE)
    texts = {
        answer(*packaged, picture, "describe", temperature=cold, seed=3, max_new_tokens=12).text
        for cold in (0.0, 1e-40, 1e-6)
    }
    assert len(texts) == 1
    with pytest.raises(ValueError, match="temperature"):
        answer(*packaged, picture, "describe", temperature=-1.0)


def test_answers_end_where_the_context_ends(packaged: Any) -> None:
    prompt = "the " * 1460
    result = answer(*packaged, open_picture(demo.PICTURE), prompt, temperature=50.0)
    assert result.prompt_tokens + result.new_tokens <= 2048


def test_pipeline(packaged: Any) -> None:
    model, processor = packaged
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": open_picture(demo.PICTURE)},
                {"type": "text", "text": "how many objects are there?"},
            ],
        }
    ]
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    with st3.trim(model, "st3") as session:
        result = ask(text=chat, max_new_tokens=5, return_full_text=False)
    assert result[0]["generated_text"].strip() == "four"
    assert session.kept_per_layer() == KEPT
