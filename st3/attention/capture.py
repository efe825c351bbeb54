"""Capture attention while a model answers: the row of each token that is computed, and no more.

Per forward one row a layer and head is made from that layer's queries and keys, in fp32: never an
n x n matrix. It works with any attention backend, trimmed or not, for one prompt at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from st3.attention.measures import KINDS, VISUAL, shares
from st3.engine.session import TrimSession
from st3.engine.trim import trim
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.inference.decoding import decode
from st3.methods import Method
from st3.methods.attention_rows import attention_rows

OnRow = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True)
class Capture:
    """Attention of one answer.

    Attributes:
        prompt: float32 [layers, heads, n], the last prompt token's attention to every token of the
            prompt; 0 where padding is, or a token was dropped.
        kinds: int64 [n], indices into `KINDS`, -1 for padding.
        shares: float32 [tokens, layers, heads, 4], the attention to each kind of token while each
            new token was computed; the first row is the last prompt token's.
        answer: ids of the new tokens.
        session: what the method kept.
    """

    prompt: torch.Tensor
    kinds: torch.Tensor
    shares: torch.Tensor
    answer: list[int]
    session: TrimSession


def token_kinds(visual: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """int64 [n] of one prompt: system, visual, prompt, or -1 for padding.

    Args:
        visual: bool [n].
        mask: [n], or None for no padding.
    """
    first = int(visual.int().argmax()) if bool(visual.any()) else len(visual)
    kinds = torch.full((len(visual),), KINDS.index("prompt"))
    kinds[:first] = KINDS.index("system")
    kinds[visual.cpu()] = VISUAL
    if mask is not None:
        kinds[~mask.bool().cpu()] = -1
    return kinds


@torch.inference_mode()
def capture(
    model: Any,
    inputs: dict[str, Any],
    method: Method,
    *,
    new_tokens: int = 1,
    on_row: OnRow = lambda step, row: None,
) -> Capture:
    """Generate greedily, and look.

    Args:
        model, inputs: as for `generate`; a batch of one.
        method: how to trim; `none` to look at the whole picture.
        new_tokens: at most so many.
        on_row: gets, for each new token t from 0, the attention of the token before it to the whole
            sequence so far, float32 [layers, heads, n + t] on the CPU.

    Raises:
        ValueError: more than one prompt, or a prompt without a picture.
    """
    ids = inputs["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"attention is captured for one prompt at a time, got {len(ids)}")
    visual = visual_mask(find_parts(model).visual_ids, ids)[0]
    if not bool(visual.any()):
        raise ValueError("the prompt has no picture: there is no visual attention to look at")
    mask = inputs.get("attention_mask")
    kinds = token_kinds(visual, None if mask is None else mask[0])
    length, layers = ids.shape[1], model.config.get_text_config().num_hidden_layers
    rows: list[torch.Tensor] = []
    found: list[torch.Tensor] = []
    first: list[torch.Tensor] = []

    def observe(
        layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float, valid: Any
    ) -> None:
        row = attention_rows(query, key, scaling, valid)[0, :, 0]
        step = session.generated
        full = row.new_zeros(row.shape[0], length + step)
        full[:, session.key_places(layer).to(row.device)] = row
        rows.append(full.cpu())
        if layer == layers:
            whole = torch.stack(rows)
            rows.clear()
            answered = torch.full((step,), KINDS.index("generated"))
            found.append(shares(whole, torch.cat((kinds, answered))))
            if step == 0:
                first.append(whole)
            on_row(step, whole)

    with trim(model, method) as session:
        session.observer = observe
        output = decode(model, inputs, max_new_tokens=new_tokens)
    return Capture(first[0], kinds, torch.stack(found), output[0, length:].tolist(), session)
