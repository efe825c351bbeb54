"""How to make a tiny random model of a family: six layers, 64 wide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from families.media import Media
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from st3.families.parts import find_parts


@dataclass(frozen=True)
class Tiny:
    """How to make one.

    Attributes:
        config: the name of its class, and what it gets; `text` is the text model's part.
        media: makes prompts.
        encoded: whether pictures come encoded, and its vision tower does not run.
        video: whether it is proven with videos, too.
        one, padded: prompts of one row, and of two.
        backend, dtype: what it is built with; double where the model itself amplifies rounding.
        embedding: spread of the token embeddings.
        sharper: what is added to the norms of queries, so that attention is far from uniform.
    """

    config: str
    fields: dict[str, Any]
    text: dict[str, Any]
    media: Media
    encoded: bool = False
    video: bool = False
    one: tuple[str, ...] = ("ttIItttt",)
    padded: tuple[str, ...] = ("ttIIttttt", "tItt")
    filmed: tuple[str, ...] = ("ttVtItt", "tVtt")
    backend: str = "sdpa"
    dtype: torch.dtype = torch.float32
    embedding: float = 1.0
    sharper: float = 0.8

    @property
    def known(self) -> bool:
        """Whether the installed transformers has the family."""
        return hasattr(transformers, self.config)

    def configuration(self) -> Any:
        """A fresh one."""
        made: Callable[..., Any] = getattr(transformers, self.config)
        if self.config == "Phi4MultimodalConfig":  # flat
            return made(**self.text, **self.fields)
        return made(text_config=dict(self.text), **self.fields)

    def build(self, seed: int = 0) -> Any:
        """The model, with attention far from uniform."""
        torch.manual_seed(seed)
        config = self.configuration()
        flat = self.config == "Phi4MultimodalConfig"
        kind: Any = AutoModelForCausalLM if flat else AutoModelForImageTextToText
        model = kind.from_config(config, dtype=torch.float32).eval()
        decoder = find_parts(model).decoder
        with torch.no_grad():
            for name, weight in model.named_parameters():
                loud = any(x in name for x in ("mm_input_projection", "newline", "seperator"))
                if loud or (weight.dim() > 1 and not bool(weight.abs().sum())):
                    weight.normal_(std=0.3 if loud else 0.1)
            model.get_input_embeddings().weight.normal_(std=self.embedding)
            for name, weight in decoder.named_parameters():
                if name.rpartition(".")[0].endswith(("q_proj", "qkv_proj", "q_b_proj")):
                    weight.mul_(2)
                elif name.endswith("q_norm.weight"):
                    weight.add_(self.sharper)
        decoder.set_attn_implementation(self.backend)
        model.generation_config.pad_token_id = 0
        model.generation_config.eos_token_id = None
        if self.dtype == torch.float32:  # a cast to what it is would touch complex buffers
            return model
        model.set_experts_implementation("eager")  # others know no doubles
        return model.to(self.dtype)

    def inputs(self, model: Any, rows: tuple[str, ...]) -> dict[str, Any]:
        """A prompt in the model's type."""
        return {name: self._cast(value) for name, value in self.media(model, rows).items()}

    def _cast(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self.dtype) if value.is_floating_point() else value
        if isinstance(value, tuple):
            return tuple(self._cast(part) for part in value)
        for name in value if isinstance(value, dict) else ():
            value[name] = self._cast(value[name])
        return value
