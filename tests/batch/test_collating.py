"""A batch of rows that were processed alone is the batch that the processor makes of them."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import slow
from families import media
from families.checkpoints import CHECKPOINTS, save_checkpoint
from families.zoo import ZOO
from PIL import Image

import st3
from st3.batch.collating import Pool, collated, signature
from st3.batch.leaving import decode_rows
from st3.batch.preparing import Prepared
from st3.batch.row import Row
from st3.inference.checkpoints import find
from st3.inference.configs import find_config
from st3.inference.processors import load_processor
from st3.inference.visuals import processed


@lru_cache(maxsize=1)
def noise(width: int = 300, height: int = 200) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def arrays(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: x.numpy() if isinstance(x, torch.Tensor) else x for k, x in inputs.items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_collated_is_what_the_processor_makes(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(name, tmp_path / name)
    processor = load_processor(find(str(folder)), find_config(str(folder)))
    shown = [noise(), [noise(), noise()], noise()] if name == "gemma3" else [noise()] * 3
    prompts = ["what do you see", "red", "where is the green corner"]
    want = processed(processor, shown, prompts)
    sent = pickle.loads(pickle.dumps(processor))  # as to a worker
    rows = [arrays(processed(sent, [v], [p])) for v, p in zip(shown, prompts, strict=True)]
    assert len({signature(row) for row in rows}) == 1
    made = collated(rows, processor.tokenizer.pad_token_id)
    assert made.keys() == want.keys()
    for key, value in want.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(made[key], value, msg=key)
        else:
            assert made[key] == value


def test_the_demo_too() -> None:
    _, processor = st3.load("demo", device="cpu")
    pictures, prompts = [noise(), noise(120, 400)], ["how many?", "describe this picture"]
    want = processed(processor, pictures, prompts)
    rows = [arrays(processed(processor, [v], [p])) for v, p in zip(pictures, prompts, strict=True)]
    made = collated(rows, processor.tokenizer.pad_token_id)
    for key, value in want.items():
        torch.testing.assert_close(made[key], value, msg=key)


def waiting(*tokens: int, wide: tuple[int, ...] = ()) -> Pool:
    pool = Pool()
    for number, count in enumerate(tokens):
        pixels = np.zeros((1, 3, 4, 8 if number in wide else 4), np.float32)
        inputs = {"input_ids": np.ones((1, count), np.int64), "pixel_values": pixels}
        pool.add(Prepared(Row(number, "q", number=number), inputs, count))
    return pool


def numbers(rows: list[Prepared]) -> list[int]:
    return sorted(row.row.number for row in rows)


def test_batches_are_of_like_length_and_nobody_waits_forever() -> None:
    pool = waiting(50, 10, 11, 52, 12, 90, 51)
    assert numbers(pool.take(3, lambda rows, tokens: True)) == [0, 3, 6]
    assert numbers(pool.take(3, lambda rows, tokens: True)) == [1, 2, 4]
    assert numbers(pool.take(3, lambda rows, tokens: True)) == [5]
    assert pool.rows == pool.bytes == 0


def test_a_batch_keeps_to_what_fits() -> None:
    pool = waiting(50, 10, 51, 52)
    assert numbers(pool.take(4, lambda rows, tokens: rows * tokens <= 102)) == [0, 2]
    assert numbers(pool.take(4, lambda rows, tokens: False)) == [1]  # one always is a batch


def test_other_shapes_do_not_meet() -> None:
    pool = waiting(10, 10, 10, 10, wide=(1, 3))
    assert numbers(pool.take(4, lambda rows, tokens: True)) == [0, 2]
    assert numbers(pool.take(4, lambda rows, tokens: True)) == [1, 3]


FAMILIES = ["llava", "qwen2_5_vl", "gemma3", *slow("qwen3_vl", "qwen3_5")]
ROWS = (("ttIItttt",), ("tItt",), ("tIIttt",), ("ttIttttt",), ("tItttttttt",))


@lru_cache(maxsize=1)
def _model(name: str) -> Any:
    return ZOO[name].build()


@pytest.mark.parametrize("compile", ["off", "inductor"])
@pytest.mark.parametrize("method", [None, "none", "st3", "divprune"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_leave_and_the_others_go_on(
    traced: None, name: str, method: str | None, compile: str
) -> None:
    """Every answer is what the row gets alone, whenever the others end."""
    tiny = ZOO[name]
    if not tiny.known:
        pytest.skip(f"this transformers has no {tiny.config}")
    if name == "qwen3_5":
        tiny = replace(tiny, media=media.grids())  # pictures, as its processor makes them
    if compile != "off" and (method is None or name not in FAMILIES[:2]):
        pytest.skip("nothing is compiled")
    model = _model(name)
    model.generation_config.eos_token_id = None
    rows = [arrays(tiny.inputs(model, row)) for row in ROWS]
    kind = signature(rows[0])
    rows = [row for row in rows if signature(row) == kind]
    assert len(rows) > 2
    parameters: dict[str, Any] = {
        "st3": {"stride": 1, "ratio": 0.15, "tau": 9},
        "divprune": {"keep": "50%", **({"positions": "compact"} if name == "llava" else {})},
    }.get(str(method), {})

    def ask(some: list[Any]) -> Any:
        if method is None:
            return decode_rows(model, some, 0, 24)
        with st3.trim(model, method, max_new_tokens=24, compile=compile, **parameters) as session:
            return decode_rows(model, some, 0, 24, session)

    endless = ask(rows).tokens
    ends = {tokens[3 * n + 1] for n, tokens in enumerate(endless)}
    model.generation_config.eos_token_id = sorted(ends)
    together, alone = ask(rows), [ask([row]) for row in rows]
    assert together.tokens == [one.tokens[0] for one in alone]
    assert together.ended == [one.ended[0] for one in alone]
    if method is not None:
        assert together.kept == [one.kept[0] for one in alone]
    lengths = [len(tokens) - 1 for tokens in together.tokens]
    assert len(set(lengths)) > 1  # they do end at different times
    assert sum(lengths) <= together.steps < len(rows) * max(lengths)
