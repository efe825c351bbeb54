"""How the demo's decoder starts: words and visual tokens share a code, and some heads compare it.

From random weights, look-ups by content ("what colour is the star?") are learned very late: the
model must find out at once what the word means, what the patch shows, and that a query should be
made from the one and a key from the other. Here the word "star" starts as the code that the tower
gives to patches of stars, and two heads of every layer start with equal query and key matrices that
read that code. Training is free to leave all of it. docs/demo-model.md has the measurement.
"""

from __future__ import annotations

from typing import Any

import torch

from st3.demo.language import plural, vocabulary
from st3.demo.scenes import COLOURS, SHAPES
from st3.demo.training.architecture import HEADS, WIDTH
from st3.demo.training.codes import Codes

_SIZE = WIDTH // HEADS
_NOISE = 0.05
_GAIN = 0.25


@torch.no_grad()
def start_language(model: Any, codes: Codes) -> None:
    """Overwrite the embeddings, and the queries and keys of heads 0 (what) and 1 (where)."""
    decoder = model.model.language_model
    embeddings = decoder.embed_tokens.weight
    embeddings.normal_(0, 0.35)
    for word, meaning in _meanings(codes).items():
        row = embeddings[vocabulary()[word]]
        row.normal_(0, _NOISE).add_(meaning)
    model.lm_head.weight.copy_(embeddings * 0.1)
    what = torch.cat((codes.colours, codes.shapes))
    where = torch.cat((codes.rows, codes.columns))
    # Meanings go to the dimensions that RoPE turns least: the last of either half.
    free = _slow_dimensions()
    for layer in decoder.layers:
        attention = layer.self_attn
        for head, read in enumerate((what, where)):
            rows = torch.zeros(_SIZE, WIDTH)
            rows[free[: len(read)]] = _GAIN * read
            for projection in (attention.q_proj, attention.k_proj):
                part = projection.weight[head * _SIZE : (head + 1) * _SIZE]
                part.normal_(0, 0.02).add_(rows)


def _slow_dimensions() -> torch.Tensor:
    """A head's dimensions, those that RoPE turns least first; i and i + half turn together."""
    half = torch.arange(_SIZE // 2).flip(0)
    return torch.stack((half, half + _SIZE // 2), dim=1).flatten()


def _meanings(codes: Codes) -> dict[str, torch.Tensor]:
    """Word -> code [WIDTH]."""
    found = dict(zip(COLOURS, codes.colours, strict=True))
    for shape, code in zip(SHAPES, codes.shapes, strict=True):
        found |= {shape: code, plural(shape): code}
    names = ("top", "centre", "bottom"), ("left", "centre", "right")
    for name, code in (
        *zip(names[0], codes.rows, strict=True),
        *zip(names[1], codes.columns, strict=True),
    ):
        found[name] = found.get(name, torch.zeros(WIDTH)) + code
    found["center"] = found["centre"]
    return found
