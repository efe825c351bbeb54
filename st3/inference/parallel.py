"""Tensor parallelism: one model over several processes, each with some heads of every layer.

transformers splits the weights as it reads them, by the plan that the family has; torchrun starts
the processes. A decoder whose layers have no plan gets the usual one, by the names of its matrices.
"""

from __future__ import annotations

import atexit
import os
from typing import Any

from torch import distributed, nn
from transformers.distributed.configuration_utils import DistributedConfig

from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.machine import gpu_count

_COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_ROWS = ("o_proj", "down_proj")
START = "torchrun --nproc-per-node 2 -m st3_cli run ... --tensor-parallel"


def tensor_parallel(config: Any) -> DistributedConfig:
    """What `from_pretrained` takes as `distributed_config` to spread a model over all processes.

    Args:
        config: of the model.

    Raises:
        ValueError: torchrun has not started several processes, or more than there are GPUs; heads
            cannot be shared out evenly, or nothing says how to split the family's layers.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if "RANK" not in os.environ or world < 2:
        raise ValueError(f"tensor parallelism needs several processes: start it by {START}")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), gpu_count()
    if gpus and here > gpus:
        raise ValueError(f"{here} processes want a GPU each, and torch sees {gpus}: start fewer")
    text = config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, name, None)
        if heads is not None and heads % world:
            raise ValueError(
                f"{heads} {name.removeprefix('num_').replace('_', ' ')} cannot be shared out to "
                f"{world} processes: start as many as divide them"
            )
    atexit.register(_leave)
    return DistributedConfig(tp_plan=plan_of(meta_model(config), world))


def plan_of(model: Any, world: int) -> dict[str, str]:
    """Pattern of names -> how a module is split; transformers' own, where that knows the layers.

    Raises:
        ValueError: nobody knows.
    """
    parts, plan = find_parts(model), dict(model.tp_plan)
    name = next(name for name, module in model.named_modules() if module is parts.decoder)
    if not any(".self_attn." in pattern for pattern in plan):
        linear = {
            part
            for part, module in parts.layers[0].named_modules()
            if isinstance(module, nn.Linear)
        }
        ends = {part.rpartition(".")[2]: part for part in linear}
        if not {*_COLUMNS, *_ROWS} >= ends.keys() or len(ends) < len(linear):
            raise ValueError(
                f"transformers has no tensor-parallel plan for {model.config.model_type!r}: "
                "spread it with a device map"
            )
        plan |= {
            f"{name}.layers.*.{part}": "colwise" if end in _COLUMNS else "rowwise"
            for end, part in ends.items()
        }
    # Older versions lack the head of some families, and split none that does not divide.
    if model.get_output_embeddings().weight.shape[0] % world:
        plan.pop("lm_head", None)
        return plan
    return {"lm_head": "colwise_gather_output"} | plan


def _leave() -> None:
    """Take leave of the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
