"""What a scorer may ask for besides queries and keys, made for those that name it in `needs`."""

from __future__ import annotations

from typing import Protocol

import torch

NEEDS = ("states", "embeddings", "unrotated", "cells")
"""What a scorer can name: methods of `Look`; `states` stands for `normed` as well."""


class Look(Protocol):
    """One layer at prefill; B prompts, n tokens alive in it, their numbers as in `LayerView`."""

    def states(self) -> torch.Tensor:
        """Float [B, n, d]: what the layer returned. Who needs them is asked once the layer is done.

        Its keys and values are in the cache by then, so nothing anneals under such a scorer.
        """

    def normed(self) -> torch.Tensor:
        """The same behind the decoder's last norm; as they are, where it has none."""

    def embeddings(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Float [B, m, d] and bool [B, m]: what layer 1 got, and which of it was visual.

        Of the whole prompt, before anything was dropped. Text stands at the same places from the
        end as it does among the tokens alive.
        """

    def unrotated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [B, heads, n, head size] and keys [B, key heads, n, head size] without positions.

        The layer's projections are computed once more, with rotary phases of nought.
        """

    def cells(self) -> torch.Tensor:
        """int64 [B, n, 2]: the line and the column of a visual token in its picture.

        Where nobody knows a picture's shape, in lines of about its square root.
        """
