"""Numbers of pixels, carried through a model's own vision path to its visual tokens.

Where a token lies on the picture is decided by code all over a model: patches, windows and their
way back, merged neighbours, tiles packed into one picture, lines that end in a token of their own.
None of it is written again here. The model's own code runs, on weights that are all zero and take
no memory, and whatever would mix or weigh numbers is replaced by their mean: linear layers and
convolutions average what goes in, norms and blocks of attention hand it on. So a number painted
onto the pixels arrives at the tokens as its mean over the pixels that each stands for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from st3.families.base import visual_mask
from st3.families.meta import FAILURES, fresh_model
from st3.families.parts import find_parts

_STEP = 1e-3  # numbers ride on ones, which activations and gates bend alike for all of them
_EXACT = 1e-5  # of what arrives: less is rounding
_POOLS: dict[str, Callable[..., torch.Tensor]] = {
    "conv1d": F.avg_pool1d, "conv2d": F.avg_pool2d, "conv3d": F.avg_pool3d,
}  # fmt: skip
_NORMS = {"layer_norm", "rms_norm", "group_norm", "batch_norm"}
_PRODUCTS = {"matmul", "__matmul__", "mm"}
_ACTIVATIONS = {"gelu", "silu", "relu", "sigmoid", "tanh"}


class VisionPath:
    """A model's way from pixels to visual tokens.

    Args:
        config: the model's.
        video: of a video's frames, and not of pictures.

    Raises:
        ValueError: the configuration builds no model that fits.
    """

    def __init__(self, config: Any, *, video: bool = False) -> None:
        model = fresh_model(config)
        parts = find_parts(model)
        self._merger: Any = parts.merger
        self._visual_ids = parts.visual_ids
        taken: Any = self._merger.forward if video else self._merger.get_image_features
        self._taken, self._video = inspect.signature(taken).parameters, video
        decoder = {id(module) for module in parts.decoder.modules()}
        decoder.discard(id(model.get_input_embeddings()))
        for module in model.modules():
            if id(module) not in decoder:
                _empty(module)
        parts.decoder.register_forward_pre_hook(_stop, with_kwargs=True)
        self._blocks = list(_blocks(model.get_encoder(modality="image")))

    def pixels(self, inputs: dict[str, Any]) -> str:
        """Which of a processor's outputs holds the pixels.

        Raises:
            ValueError: none that the model takes.
        """
        found = {
            name: value.numel()
            for name, value in inputs.items()
            if name in self._taken
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }
        if not found:
            raise ValueError("the processor makes no pixels that the model takes")
        return max(found, key=lambda name: found[name])

    def carry(self, inputs: dict[str, Any], numbers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Means over each token's pixels.

        Args:
            inputs: as the processor made them for the pictures.
            numbers: of the shape of the pixels among them each, about between 0 and 1.

        Returns:
            [len(numbers), visual tokens], of all pictures in their order; nan where no pixel
            reaches a token, as at one that ends a line.

        Raises:
            ValueError: the path cannot be walked so.
        """
        name = self.pixels(inputs)
        pixels = inputs[name].float()
        ones = torch.ones_like(pixels)
        if pixels.dim() > 3:  # tiles that are there to fill a batch are told by being zero
            ones = ones * (pixels != 0).flatten(-3).any(-1)[..., None, None, None]
        given = {key: value for key, value in inputs.items() if key in self._taken}
        arrived = [
            self._walk(given | {name: ones * (1 + _STEP * number)})
            for number in (torch.zeros_like(ones), ones, *numbers)
        ]
        ground, whole = arrived[0], arrived[1] - arrived[0]
        whole[whole.abs() < _EXACT * ground.abs().max()] = torch.nan
        return torch.stack([found - ground for found in arrived[2:]]) / whole

    def _walk(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Numbers that arrive, [visual tokens]."""
        failure: Exception | None = None
        for many in (False, True):  # blocks return a tensor, or a tuple that begins with it
            for block in self._blocks:
                block.forward = _hand_on_first if many else _hand_on
            try:
                with torch.no_grad(), _Means():
                    return self._of_video(inputs) if self._video else self._of_pictures(inputs)
            except FAILURES as error:
                failure = failure or error
        reason = " ".join(str(failure).split())[:200]
        raise ValueError(f"where its visual tokens lie cannot be told ({reason})") from failure

    def _of_pictures(self, inputs: dict[str, Any]) -> torch.Tensor:
        features = self._merger.get_image_features(**inputs, return_dict=True).pooler_output
        parts = features if isinstance(features, list | tuple) else [features]
        return torch.cat([_mean(part, 1).flatten() for part in parts])

    def _of_video(self, inputs: dict[str, Any]) -> torch.Tensor:
        """As the decoder gets them: some are put in between on the way, as at a video's end."""
        try:
            self._merger(**inputs)
        except _Arrived as arrived:
            mask = visual_mask(self._visual_ids, inputs["input_ids"])
            return _mean(arrived.states[mask], 1).flatten()
        raise ValueError("its decoder gets no embeddings")


class _Arrived(Exception):
    """The decoder is reached, by these states."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


def _stop(decoder: Any, args: Any, kwargs: Any) -> None:
    raise _Arrived(kwargs["inputs_embeds"])


class _Means(TorchFunctionMode):
    """Functions with weights give the mean of what goes in."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if function is F.linear:
            states, weight = _two(args, kwargs, "input", "weight")
            return _mean(states, weight.shape[0])
        if name in _PRODUCTS and isinstance(args[1], nn.Parameter):
            return _mean(args[0], args[1].shape[-1])
        if name in _POOLS:
            return _pool(name, *args, **kwargs)
        if name in _NORMS:
            return args[0]
        if name in _ACTIVATIONS and args[0].dim() > 1 and args[0].stride(-1) == 0:
            return function(args[0][..., :1], *args[1:], **kwargs).expand(args[0].shape)
        if name == "masked_scatter" and args[0].stride(-1) == 0:
            states, mask, found = args
            here = states[..., :1].masked_scatter(mask[..., :1], _mean(found, 1))
            return here.expand(states.shape)
        if function is F.embedding:
            ids, weight = _two(args, kwargs, "input", "weight")
            return weight.new_zeros(()).expand(*ids.shape, weight.shape[-1])
        return function(*args, **kwargs)


def _two(args: Sequence[Any], kwargs: Any, *names: str) -> Any:
    return (*args, *(kwargs[name] for name in names[len(args) :]))[:2]


def _mean(states: torch.Tensor, width: int) -> torch.Tensor:
    if states.stride(-1) == 0:  # all alike
        states = states[..., :1]
    else:
        states = states.mean(-1, keepdim=True, dtype=torch.float64)
    return states.expand(*states.shape[:-1], width)


def _pool(
    name: str, input: torch.Tensor, weight: torch.Tensor, bias: Any = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> torch.Tensor:  # fmt: skip
    """A convolution as the mean over its window, padding left out."""
    kernel, spatial = tuple(weight.shape[2:]), weight.dim() - 2
    if isinstance(padding, str):
        padding = tuple(side // 2 for side in kernel) if padding == "same" else 0
    channels = -spatial - 1
    states = input.mean(channels, keepdim=True, dtype=torch.float64)
    inside = torch.ones_like(states)
    pool = _POOLS[name]
    # What lies beyond the edge counts in neither, whatever the kind of pool makes of it.
    found = pool(states, kernel, stride, padding) / pool(inside, kernel, stride, padding)
    shape = list(found.shape)
    shape[channels] = weight.shape[0]
    return found.expand(shape)


def _hand_on(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    return hidden_states


def _hand_on_first(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    return hidden_states, None


def _blocks(tower: nn.Module) -> Iterator[Any]:
    """Blocks that hold attention, which would mix all patches."""
    for several in tower.modules():
        if isinstance(several, nn.ModuleList):
            for block in several:
                if any("attention" in type(part).__name__.lower() for part in block.modules()):
                    yield block


def _empty(module: Any) -> None:
    """Zeros without memory for all weights; a norm hands on."""
    for name, weight in module._parameters.items():
        if weight is not None:
            zero = torch.zeros((), dtype=_type(weight)).expand(weight.shape)
            module._parameters[name] = nn.Parameter(zero, requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = torch.zeros(buffer.shape, dtype=_type(buffer))
    if "norm" in type(module).__name__.lower() and not list(module.children()):
        module.forward = _hand_on


def _type(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.is_floating_point() else tensor.dtype
