"""What a trimmed prefill returns, put back to the positions of its input.

Losses, likelihoods and probes index hidden states and logits by the input's tokens. Where a token
was dropped there is nothing to return: zeros stand in its place.
"""

from __future__ import annotations

from typing import Any

import torch

from st3.engine.alive import Alive
from st3.engine.prefill import Prefill


def spread(states: torch.Tensor, alive: Alive) -> torch.Tensor:
    """States [B, m, d] of the tokens alive, at their places: [B, n, d], zeros elsewhere."""
    if alive.whole:
        return states
    place = alive.place.to(states.device)
    if alive.valid is not None:  # what stands for no token goes behind the end, and away
        place = place.masked_fill(~alive.valid.to(states.device), alive.tokens)
    rows = torch.arange(len(states), device=states.device)[:, None]
    full = states.new_zeros(len(states), alive.tokens + 1, states.shape[2])
    full[rows, place] = states
    return full[:, : alive.tokens]


def spread_output(output: Any, prefill: Prefill) -> Any:
    """The decoder's output: its hidden states at the input's positions, all else as it is."""
    last = prefill.alive()
    if isinstance(output, tuple):
        return (spread(output[0], last), *output[1:])
    states = getattr(output, "hidden_states", None)
    if states is not None:  # entry 0 is what layer 1 got, entry l what layer l returned
        output.hidden_states = tuple(
            None if each is None else spread(each, prefill.alive(max(number, 1)))
            for number, each in enumerate(states)
        )
    output.last_hidden_state = spread(output.last_hidden_state, last)
    return output
