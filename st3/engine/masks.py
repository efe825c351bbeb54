"""Masks for the tokens alive, in the form that each attention backend reads.

A mask is a rule, not a tensor. transformers makes every mask (window, chunk, bidirectional picture,
prefix) from one function that says which query may see which key, and hands it to the mask function
registered for the attention implementation. Ours returns the rule itself, which is asked about the
tokens alive at their places in the untrimmed sequence: what hiding the dropped ones under the full
mask would leave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function


@dataclass(frozen=True, eq=False)
class MaskRule:
    """Who may see whom, by places in the sequence.

    Attributes:
        function: batch, head, query, key -> bool tensor, as transformers has it.
        shape: of the mask that it stands for; transformers looks.
        plain: whether it is mere causality for the sequence as it is now; later it may not be.
        device: where tensors lie that the function looks at, such as blocks of pictures; None where
            it looks at none.
    """

    function: Callable[[Any, Any, Any, Any], torch.Tensor]
    shape: tuple[int, ...]
    plain: bool = False
    device: torch.device | None = None
    ndim = 4  # transformers lets through what is not 2-D

    def __getitem__(self, index: Any) -> MaskRule:
        """Itself: some models keep the last rows alone; rows are given by their places anyway."""
        return self

    def allowed(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """bool [B, 1, q, k] for places int64 [B, q] and [B, k], on the device of `keys`."""
        asked = keys.device
        if self.device is not None:
            queries, keys = queries.to(self.device), keys.to(self.device)
        batch = torch.arange(len(keys), device=keys.device)[:, None, None, None]
        head = torch.zeros((1, 1, 1, 1), dtype=torch.long, device=keys.device)
        seen = self.function(batch, head, queries[:, None, :, None], keys[:, None, None, :])
        return seen.expand(len(keys), 1, queries.shape[1], keys.shape[1]).to(asked)


CAUSAL = MaskRule(causal_mask_function, (), plain=True)  # type: ignore[arg-type]


def make_rule(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Any = None,
    allow_is_causal_skip: bool = True,
    local_size: int | None = None,
    device: Any = None,
    **rest: Any,
) -> Any:
    """A mask function for transformers' registry: a rule, or None for mere causality.

    Padding is no part of it; the engine knows that. Where a model makes its rule before the text
    model, which asks again, the first one holds.
    """
    if isinstance(attention_mask, MaskRule):
        return attention_mask
    if mask_function is causal_mask_function:
        return None
    plain = allow_is_causal_skip and local_size is not None and kv_length <= local_size
    where = None if device is None else torch.device(device)
    return MaskRule(mask_function, (batch_size, 1, q_length, kv_length), plain, where)


def attention_mask(
    valid: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, backend: str
) -> torch.Tensor | None:
    """The mask that `backend` needs, or None where causality alone will do.

    The last query stands at the last key. A token always sees itself, so that no softmax is empty;
    what padding sees reaches nobody.

    Args:
        valid: bool [B, keys] or None.
        query, key: [B, heads, queries or keys, head size].
        backend: the attention implementation.
    """
    queries, keys = query.shape[2], key.shape[2]
    if backend.startswith("flash"):  # which gets uneven rows `packed`
        return None
    if valid is None and (queries == 1 or (queries == keys and backend == "sdpa")):
        return None
    place = torch.arange(keys, device=key.device)
    own = place[keys - queries :, None]
    allowed = (place <= own)[None]
    if valid is not None:
        allowed = allowed & (valid[:, None] | (place == own))
    return in_form(allowed[:, None], query.dtype, backend)


def rule_mask(
    rule: MaskRule,
    valid: torch.Tensor | None,
    places: torch.Tensor,
    query: torch.Tensor,
    backend: str,
) -> torch.Tensor:
    """The mask of a rule; the queries are the last of the keys.

    Args:
        rule: who may see whom.
        valid: bool [B, keys] or None.
        places: int64 [B, keys], in the untrimmed sequence.
        query: [B, heads, queries, head size].
        backend: `sdpa` or `eager`.
    """
    queries = query.shape[2]
    allowed = rule.allowed(places[:, -queries:], places)
    if valid is not None:
        number = torch.arange(places.shape[1], device=places.device)
        own = number[len(number) - queries :, None] == number
        allowed = (allowed & valid[:, None, None]) | own
    return in_form(allowed, query.dtype, backend)


def in_form(allowed: torch.Tensor, dtype: torch.dtype, backend: str) -> torch.Tensor:
    """bool [B or 1, 1, queries, keys], or what eager attention adds to its logits."""
    if backend == "sdpa":
        return allowed
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return bias.masked_fill(~allowed, torch.finfo(dtype).min)
