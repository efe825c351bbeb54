"""Inside the vision tower, while it encodes pictures: what the blocks that are asked let see.

Towers keep their fast attention. In the blocks that a method names, and in no others, the few rows
that it needs are computed once more: of the class token or, where there is none, of all patches,
some at a time, to see how much each is attended to on average. Or keys are kept as they pass.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface

from st3.engine.attention import BACKENDS, stand_in, stock_attention
from st3.methods.attention_rows import as_one_head, received

_PREFIX = "st3_tower_"
_NOW = threading.local()
Mark = Callable[[], None] | None
"""Whom to tell when looking costs time."""


@dataclass(frozen=True)
class What:
    """What is asked of a module of attention.

    Attributes:
        kind: one of `OF_LAYERS`. `first_only`: whether of the class token alone.
    """

    kind: str
    first_only: bool

    def of(
        self, query: torch.Tensor, key: torch.Tensor, scaling: float, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Float32 [B, n], or of keys [B, n, heads, size]; arguments as for `received`."""
        if self.kind == "keys":
            return key.detach().transpose(1, 2).float()
        if self.kind == "joint":
            heads = query.shape[1]
            query, key = as_one_head(query, heads), as_one_head(key, heads)
            scaling = query.shape[-1] ** -0.5
        return received(query, key, scaling, mask, first_only=self.first_only)


@contextmanager
def looking(asked: list[tuple[Any, What]], mark: Mark) -> Iterator[dict[Any, Any]]:
    """Look on inside, in this thread: at modules of attention, and whatever `keep` hangs on.

    Yields:
        what is seen: (module, `What`) -> what that made, a call each; `keep` -> its block's output.
    """
    seen: dict[Any, Any] = {}
    _NOW.seen, _NOW.rows, _NOW.mark = seen, {}, mark
    for module, what in asked:
        _NOW.rows.setdefault(module, set()).add(what)
    try:
        yield seen
    finally:
        _NOW.seen = None


def is_looking() -> bool:
    """Whether this thread is."""
    return getattr(_NOW, "seen", None) is not None


def watched_config(config: Any) -> Any:
    """A copy of a tower's configuration by which it can be seen; None where it cannot."""
    backend = config._attn_implementation
    if backend not in BACKENDS:
        return None
    found = copy.copy(config)
    found._attn_implementation = {"": _PREFIX + backend}
    return found


def joined(calls: list[torch.Tensor]) -> torch.Tensor:
    """What calls of one module found, [B, n, ...] each: [crops, n, ...], or [1, all of them, ...]
    where they were called one by one.
    """
    if len(calls) == 1:
        return calls[0]
    if calls[0].shape[0] > 1 and len({x.shape[1] for x in calls}) == 1:
        return torch.cat(calls)
    return torch.cat([x.flatten(0, 1) for x in calls])[None]


def _attend(
    backend: str, module: Any, query: Any, key: Any, value: Any,
    attention_mask: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    seen = getattr(_NOW, "seen", None)
    if seen is not None:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        for what in _NOW.rows.get(module, ()):
            tell(_NOW.mark)
            with torch.no_grad():
                pictures = _apart(query, key, kwargs.get("cu_seq_lens_q"))
                found = torch.cat([what.of(*p, scaling, attention_mask) for p in pictures], dim=1)
            seen.setdefault((module, what), []).append(found)
            tell(_NOW.mark)
    named = stand_in(module, backend) if backend.startswith("flash") else module
    return stock_attention(module, backend)(named, query, key, value, attention_mask, **kwargs)


def _apart(
    query: torch.Tensor, key: torch.Tensor, ends: torch.Tensor | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Queries and keys of each picture or frame, which FlashAttention gets end to end.

    Args:
        query, key: [B, heads, n, size].
        ends: int [pictures + 1], where each begins and the last ends; None where rows of the batch
            are pictures, as under other attention, which towers call for one at a time.
    """
    if ends is None:
        return [(query, key)]
    lengths = ends.diff().tolist()
    return [*zip(query.split(lengths, dim=2), key.split(lengths, dim=2), strict=True)]


def tell(mark: Mark) -> None:
    """That looking begins, or ends."""
    if mark is not None:
        mark()


def keep(block: Any, args: Any, output: Any) -> None:
    """Of a block's output, [B, n, c] or [n, c]."""
    seen = getattr(_NOW, "seen", None)
    if seen is not None:
        seen[keep] = (output[0] if isinstance(output, tuple) else output).detach()


for _backend in BACKENDS:
    AttentionInterface.register(_PREFIX + _backend, partial(_attend, _backend))
