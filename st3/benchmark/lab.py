"""What every cell needs: the device, one live model at a time, and what the device can do."""

from __future__ import annotations

import gc
from typing import Any

import torch

from st3.engine.recording import first_line
from st3.inference.loading import load
from st3.inference.presets import known_config
from st3.inference.random_weights import random_model
from st3.inference.shrink import shrink
from st3.profiling.ceilings import Ceilings, best_of, measure_ceilings
from st3.profiling.openvino import OpenVino
from st3.profiling.picture import STANDARD, picture_of
from st3.profiling.rows import RowMaker

_DEMO = "demo"
_CONTEXT = 32768
"""At least: so that many pictures fit; random weights care for no length."""


class Lab:
    """A device and the model that is on it.

    Args:
        device, dtype: where and in what.
        tiny: all shapes but the demo become one that a laptop runs in a moment, for a dry run.
        openvino: an interpreter that has optimum-intel, if there is one.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, *, tiny: bool = False,
        openvino: str | None = None,
    ) -> None:  # fmt: skip
        self.device = torch.empty(0, device=device).device  # with its number
        self.dtype, self.tiny = dtype, tiny
        self._name: str | None = None
        self._model: Any = None
        self._python = openvino
        self._peer: OpenVino | None = None
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

    def named(self, name: str) -> str:
        """What rows call it."""
        return f"tiny {name}" if self.tiny and name != _DEMO else name

    def weights(self, name: str) -> str:
        """The demo's are trained, all others random."""
        return "trained" if name == _DEMO else "random"

    def model(self, name: str) -> Any:
        """A live model of this shape, see `weights`; the one before is freed."""
        if name != self._name:
            self.forget()
            device, dtype = str(self.device), self.dtype
            if self.weights(name) == "trained":
                self._model = load(name, device=device, dtype=str(dtype).removeprefix("torch."))[0]
            else:
                self._model = random_model(self._config(name), device=device, dtype=dtype)
            self._name = name
        return self._model

    def gone(self) -> str | None:
        """Why the device does not answer any more; None if it does."""
        try:
            torch.ones(1, device=self.device).add_(1).item()
        except Exception as error:  # drivers fail in many ways
            return first_line(error)
        return None

    def openvino(self, name: str) -> OpenVino | None:
        """OpenVINO's pipeline of that model, if there is an interpreter; gone with the model."""
        self.model(name)
        if self._peer is None and self._python is not None:
            self._peer = OpenVino(self._python, self._config(name), self.dtype)
        return self._peer

    def forget(self) -> None:
        """Free the model, and what an error may have left behind."""
        if self._peer is not None:
            self._peer.close()
        self._name = self._model = self._peer = None
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
        if self.tiny and name != _DEMO:  # which is small enough
            config = shrink(config, image_size=112)
        return config
