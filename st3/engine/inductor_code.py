"""A traced call as torch's own compiler makes it: code that modules with other weights share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from st3.engine.linears import products

Tensors = list[torch.Tensor]


class Inductor:
    """Compiles by inductor, for a CPU. torch keeps the code on disk for the next process."""

    name = "inductor"
    by_sums = True  # attention of one query, written as sums, joins other loops

    def ways(self) -> dict[Any, Callable[..., Any]]:
        """What a trace is to make of operators, as functions of tensors."""
        return products()

    def make(
        self, graph: fx.GraphModule, stand_ins: Sequence[Any], weights: int
    ) -> Callable[[nn.Module, Tensors], Callable[..., Any]]:
        """What makes a module's call of its weights, which are the last `weights` inputs."""
        run = torch._inductor.standalone_compile(
            graph,
            list(stand_ins),
            dynamic_shapes="from_graph",
            options={
                "config_patches": {
                    "cpp.threads": torch.get_num_threads(),  # is part of the code
                    "compile_threads": 1,  # a pool of processes is of no use for so little
                    "size_asserts": False,  # whoever calls has seen the sizes
                }
            },
        )
        return lambda module, own: lambda *tensors: run(*tensors, *own)
