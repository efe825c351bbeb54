"""What every cell needs: the device, one live model at a time, and what the device can do."""

from __future__ import annotations

import gc
from typing import Any

import torch

from st3.inference.loading import random_model
from st3.inference.presets import known_config
from st3.profiling.ceilings import Ceilings, best_of, measure_ceilings
from st3.profiling.picture import STANDARD, picture_of
from st3.profiling.rows import RowMaker

_CONTEXT = 32768
"""At least: so that many pictures fit; random weights care for no length."""
_TINY_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
_TINY_SECTIONS = [2, 1, 1]  # of half a head
_TINY_TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "depth": 2, "num_heads": 4, "out_hidden_size": 32,
    "fullatt_block_indexes": [1], "deepstack_visual_indexes": [0],
}  # fmt: skip


def shrink(config: Any, **tower: Any) -> None:
    """Make a shape so small that a laptop runs it in a moment; `tower` goes to the vision tower."""
    text, vision = config.get_text_config(), config.vision_config
    text.update(_TINY_TEXT)
    sizes = _TINY_TOWER | tower
    vision.update({key: value for key, value in sizes.items() if hasattr(vision, key)})
    if "mrope_section" in (text.rope_parameters or {}):
        text.rope_parameters["mrope_section"] = _TINY_SECTIONS
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]


class Lab:
    """A device and the model that is on it.

    Args:
        device, dtype: where and in what.
        tiny: all shapes become one that a laptop runs in a moment, for a dry run.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> None:
        self.device = torch.empty(0, device=device).device  # with its number
        self.dtype, self.tiny = dtype, tiny
        self._name: str | None = None
        self._model: Any = None
        self._makers: dict[str, RowMaker] = {}
        self._ceilings: list[Ceilings] = []

    @property
    def on_cuda(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device.type == "cuda"

    def ceilings(self) -> Ceilings:
        """The best seen so far, after measuring once more; a dry run measures once."""
        if not (self.tiny and self._ceilings):
            self._ceilings.append(measure_ceilings(self.device, self.dtype))
        return best_of(self._ceilings)

    def maker(self, name: str) -> RowMaker:
        """Counts and rows of a shape."""
        if name not in self._makers:
            self._makers[name] = RowMaker(self._config(name), self.dtype)
        return self._makers[name]

    def model(self, name: str) -> Any:
        """A live model of this shape with random weights; the one before is freed."""
        if name != self._name:
            self.forget()
            self._model = random_model(
                self._config(name), device=str(self.device), dtype=self.dtype
            )
            self._name = name
        return self._model

    def forget(self) -> None:
        """Free the model, and what an error may have left behind."""
        self._name = self._model = None
        torch.compiler.reset()  # compiled code holds the model that it was made of
        self.sweep()

    def sweep(self) -> None:
        """Give memory back that nobody holds."""
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()

    def pictures(self, name: str, count: int, size: tuple[int, int] = STANDARD) -> int:
        """Visual tokens of so many pictures of a size."""
        return count * picture_of(self._config(name), size).tokens

    def _config(self, name: str) -> Any:
        config = known_config(name)
        text = config.get_text_config()
        text.max_position_embeddings = max(text.max_position_embeddings, _CONTEXT)
        if self.tiny:
            shrink(config, image_size=112)
        return config
