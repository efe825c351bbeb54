"""AdamW with warm-up, a cosine and fp32 master weights, for the demo's bf16 training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class MasterAdamW:
    """Steps fp32 copies of the parameters and writes them back in the parameters' own dtype.

    The learning rate rises linearly over `warmup` steps and then follows half a cosine down to a
    fiftieth of `lr` at `steps`. `wd` is decoupled weight decay, on matrices only.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        steps: int,
        warmup: int = 60,
        wd: float = 0.01,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.masters = [p.detach().float().clone() for p in self.parameters]
        matrices = [m for m in self.masters if m.dim() > 1]
        vectors = [m for m in self.masters if m.dim() <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": wd}, {"params": vectors, "weight_decay": 0.0}],
            lr=lr,
            betas=(0.9, 0.98),
            foreach=True,
        )
        self.lr, self.steps, self.warmup, self.step_number = lr, steps, warmup, 0

    def step(self) -> None:
        """Clip the gradients to norm 1, step, and clear them."""
        self.step_number += 1
        done = min(1.0, self.step_number / self.steps)
        rate = self.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        rate *= min(1.0, self.step_number / self.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter.grad is not None:
                master.grad = parameter.grad.float()
                parameter.grad = None
        self.optimiser.step()
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                parameter.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs."""
        return {
            "masters": self.masters,
            "optimiser": self.optimiser.state_dict(),
            "step_number": self.step_number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was made."""
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.data.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step_number = state["step_number"]
