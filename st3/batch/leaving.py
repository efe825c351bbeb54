"""Decoding a batch whose rows end at different times: those that have ended leave it.

`generate` goes on with a batch until its last row ends, and computes every row in every step. So it
is stopped when half of the rows have ended, and goes on with the others and their part of the KV
cache: a row costs at most about twice its own steps, and `generate` is called again as often as the
batch can be halved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from st3.batch.collating import Inputs, collated, is_word
from st3.engine.session import TrimSession
from st3.inference.decoding import decode
from st3.inference.generation import ends_of, on_model

_SIZES = ("grid", "second_per")  # in names of what positions are made from


@dataclass(frozen=True)
class Decoded:
    """What became of a batch.

    Attributes:
        tokens: new ones of each row, the one that ended it included.
        ended: whether the model ended it.
        kept: visual tokens of each row at the end of prefill, the mean over layers; all where
            nothing was trimmed.
        prefill, decode: seconds.
        steps: rows that were computed in all decode steps, together.
    """

    tokens: list[list[int]]
    ended: list[bool]
    kept: list[float] | None
    prefill: float
    decode: float
    steps: int


def decode_rows(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    pad: int,
    max_new_tokens: int,
    session: TrimSession | None = None,
    on_prefill: Callable[[], None] | None = None,
    *,
    leave: bool = True,
    on_token: Callable[[int, int], bool] | None = None,
) -> Decoded:
    """Answer a batch greedily.

    Args:
        model: from `st3.load`.
        rows: inputs of each alone, of one signature.
        pad: id of the token that fills rows up.
        max_new_tokens: of each answer, at most.
        session: of the `st3.trim` that is open; None leaves everything to stock transformers.
        on_prefill: called once the first token of each row is there.
        leave: whether rows do; not from a cache whose steps are recorded.
        on_token: told of a row and its next token, while the row goes on; returns whether it ends
            there. Only where rows may leave.
    """
    ends = sorted(ends_of(model))
    told: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    alive = list(range(len(rows)))
    inputs = on_device(collated(rows, pad), model)
    words = [key for key, value in rows[0].items() if is_word(value, rows[0]["input_ids"])]
    said = {key: inputs[key] for key in words}
    prompt = said["input_ids"].shape[1]
    began, first, steps, kept = time.perf_counter(), None, 0, None
    while True:
        half = (len(alive) + 1) // 2 if leave and (len(alive) > 1 or on_token) else None
        watch = _Watch(ends, half, alive, on_token)
        output = decode(
            model, inputs, max_new_tokens=max_new_tokens - len(told[alive[0]]),
            return_dict_in_generate=True, stopping_criteria=StoppingCriteriaList([watch]),
        )  # fmt: skip
        length = said["input_ids"].shape[1]
        new = output.sequences[:, length:]
        if first is None:
            first = watch.first
            if on_prefill is not None:
                on_prefill()
            if session is not None:
                kept = [_mean(session.kept_per_layer(row)) for row in range(len(rows))]
        steps += len(alive) * (new.shape[1] - (not told[alive[0]]))
        staying = []
        for place, (row, tokens) in enumerate(zip(alive, new.tolist(), strict=True)):
            end = watch.over.get(place) or _end(tokens, ends)
            told[row] += tokens[:end]
            ended[row] = end is not None and tokens[end - 1] in ends
            if end is None and len(told[row]) < max_new_tokens:
                staying.append(place)
        if not staying:
            break
        cache = output.past_key_values
        if session is not None:
            session.record.keep_rows(staying)
        else:
            cache.reorder_cache(torch.tensor(staying, device=new.device))
        alive = [alive[place] for place in staying]
        said = {
            key: torch.cat((value, _behind(key, new)), 1)[staying] for key, value in said.items()
        }
        sizes = on_device(_sizes([rows[row] for row in alive], pad), model)
        inputs = said | _positions(model, said | sizes, prompt) | {"past_key_values": cache}
    assert first is not None
    done = time.perf_counter()
    return Decoded(told, ended, kept, first - began, done - first, steps)


def on_device(inputs: Inputs, model: Any) -> Inputs:
    """A batch where the model takes it: through pinned memory on a GPU, while the host goes on."""
    if torch.cuda.is_available() and model.device.type == "cuda":
        inputs = {
            key: value.pin_memory() if isinstance(value, torch.Tensor) else value
            for key, value in inputs.items()
        }
    return {key: on_model(value, model) for key, value in inputs.items()}


class _Watch(StoppingCriteria):
    """Notes when the first token came, and stops all rows once `leave` of them have ended.

    Args:
        ends: ids of tokens that end a row.
        leave: None: the rows are not looked at.
        rows: numbers of those in the batch. `on_token`: see `decode_rows`.

    Attributes:
        over: place in the batch -> with how many new tokens the row ended.
    """

    def __init__(
        self, ends: Sequence[int], leave: int | None, rows: Sequence[int],
        on_token: Callable[[int, int], bool] | None,
    ) -> None:  # fmt: skip
        self.ends, self.leave, self.rows, self.on_token = ends, leave, rows, on_token
        self.first: float | None = None
        self.over: dict[int, int] = {}
        self._steps = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        stop = False
        self._steps += 1
        if self.leave is not None and (self.ends or self.on_token):
            for place, token in enumerate(input_ids[:, -1].tolist()):
                if place not in self.over and self._ends(self.rows[place], token):
                    self.over[place] = self._steps
            stop = len(self.over) >= self.leave
        if self.first is None:
            if input_ids.device.type == "cuda":
                torch.cuda.synchronize(input_ids.device)
            self.first = time.perf_counter()
        return torch.full((len(input_ids),), stop, device=input_ids.device)

    def _ends(self, row: int, token: int) -> bool:
        asked = self.on_token is not None and self.on_token(row, token)
        return asked or token in self.ends


def _end(tokens: Sequence[int], ends: Sequence[int]) -> int | None:
    """How many tokens there are up to one that ends the row; None if none does."""
    return next((n for n, token in enumerate(tokens, start=1) if token in ends), None)


def _mean(kept: Sequence[int]) -> float:
    return sum(kept) / len(kept)


def _behind(key: str, new: torch.Tensor) -> torch.Tensor:
    """What a word's array says of the tokens of an answer: they are text, and all there."""
    return new if key == "input_ids" else new.new_full(new.shape, int(key == "attention_mask"))


def _sizes(rows: Sequence[Mapping[str, Any]], pad: int) -> Inputs:
    """What the rows show, as far as positions are made from it."""
    keys = [key for key in rows[0] if any(part in key for part in _SIZES)]
    some = [{key: row[key] for key in ("input_ids", *keys)} for row in rows]
    made = collated(some, pad)
    del made["input_ids"]
    return made


def _positions(model: Any, said: Inputs, prompt: int) -> Inputs:
    """Of all that was said: `generate` would want the pictures for it, and encode them again."""
    prepare = getattr(model, "_prepare_position_ids_for_generation", None)
    if prepare is None:
        return {}
    ids = said["input_ids"].clone()
    ids[:, prompt:] = ids[:, prompt - 1 : prompt]  # no token of an answer stands for a picture
    return {"position_ids": prepare(ids, said | {"input_ids": ids})}
