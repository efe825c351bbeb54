"""What is asked of a model, and the sizes that its cost depends on: no weights, no device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from st3.families.base import picture_id
from st3.families.meta import size_in
from st3.families.parts import find_parts
from st3.profiling.layers import layers_of
from st3.profiling.picture import STANDARD


@dataclass(frozen=True)
class Workload:
    """Prompts and answers to count or time.

    Attributes:
        visual, text: tokens of either kind in one prompt.
        new: tokens to generate; the first one comes from the prefill, so new - 1 decode steps.
        batch: prompts at a time, all alike.
        picture: width and height in pixels of the pictures that the visual tokens come from.
        together: how many of them the processor gets at once; 1: each by itself.
        frames: of one video in a prompt, whose size `picture` is then; 0 of pictures.

    Raises:
        ValueError: a number that cannot be.
    """

    visual: int
    text: int = 64
    new: int = 64
    batch: int = 1
    picture: tuple[int, int] = STANDARD
    together: int = 1
    frames: int = 0

    def __post_init__(self) -> None:
        for name in ("visual", "text", "new", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} tokens must be at least 1, got {getattr(self, name)}")

    def trailing(self, pictures: int) -> int:
        """Text tokens behind the last picture, see `st3.profiling.runs.random_inputs`.

        Half of them stand before the first one, and one between two, where there are enough.
        """
        behind = self.text - self.text // 2
        return behind - min(pictures - 1, behind - 1)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        layers, hidden, intermediate, heads, kv_heads, head_size, vocabulary: the decoder's, or
            where its layers differ those of the first one; of experts the width of one.
        window: tokens that the narrowest layers see at most; None where all see everything.
        context: longest sequence in tokens.
        decoder_parameters: in the decoder layers, of which one token meets
            `active_decoder_parameters`; `head_parameters` in the LM head and `vision_parameters` in
            tower and projector.
        parameters: of the whole model.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    window: int | None
    context: int
    decoder_parameters: int
    active_decoder_parameters: int
    head_parameters: int
    vision_parameters: int
    parameters: int


def shape_of(model: Any) -> Shape:
    """The sizes of a model.

    Args:
        model: from `st3.families.meta.meta_model`, or a live one.

    Raises:
        ValueError: heads that do not fit together, a decoder that cannot be counted, or a
            placeholder of visual tokens that is not in the vocabulary.
    """
    parts = find_parts(model)
    text = model.config.get_text_config()
    heads = size_in(text, "num_attention_heads")
    kv_heads = size_in(text, "num_key_value_heads") or heads
    head_size = size_in(text, "head_dim") or text.hidden_size // heads
    if heads % kv_heads:
        raise ValueError(f"{heads} attention heads cannot share {kv_heads} key-value heads")
    placeholder = picture_id(model.config, parts.visual_ids)
    if not isinstance(placeholder, int) or not 0 <= placeholder < text.vocab_size:
        raise ValueError(
            f"image_token_id {placeholder!r} is not in the vocabulary of {text.vocab_size}"
        )
    decoder: Any = parts.decoder
    in_layers = _count(decoder.layers)
    weight = model.get_output_embeddings().weight
    head, in_decoder, total = int(weight.numel()), _count(decoder), int(model.num_parameters())
    tied = weight is decoder.get_input_embeddings().weight
    return Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=size_in(text, "intermediate_size") or size_in(text, "moe_intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocabulary=text.vocab_size,
        window=min(parts.windows.values(), default=None),
        context=text.max_position_embeddings,
        decoder_parameters=in_layers,
        active_decoder_parameters=sum(layer.active_parameters for layer in layers_of(model)),
        head_parameters=head,
        vision_parameters=total - in_decoder - (0 if tied else head),
        parameters=total,
    )


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
