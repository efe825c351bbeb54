"""What is asked of a model, and the sizes that its cost depends on: no weights, no device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from st3.families.parts import Parts, find_parts
from st3.profiling.picture import STANDARD

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Workload:
    """Prompts and answers to count or time.

    Attributes:
        visual, text: tokens of either kind in one prompt.
        new: tokens to generate; the first one comes from the prefill, so new - 1 decode steps.
        batch: prompts at a time, all alike.
        picture: width and height in pixels of the pictures that the visual tokens come from.

    Raises:
        ValueError: a number that cannot be.
    """

    visual: int
    text: int = 64
    new: int = 64
    batch: int = 1
    picture: tuple[int, int] = STANDARD

    def __post_init__(self) -> None:
        for name in ("visual", "text", "new", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} tokens must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        layers, hidden, intermediate, heads, kv_heads, head_size, vocabulary: the decoder's.
        window: tokens that the narrowest layers see at most; None where all see everything.
        context: longest sequence in tokens.
        decoder_parameters: in the decoder layers; `head_parameters` in the LM head and
            `vision_parameters` in tower and projector.
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
    head_parameters: int
    vision_parameters: int
    parameters: int


def shape_of(model: Any) -> Shape:
    """The sizes of a model.

    Args:
        model: from `st3.families.meta.meta_model`, or a live one.

    Raises:
        ValueError: heads that do not fit together, layers that cost different amounts, or a
            placeholder of visual tokens that is not in the vocabulary.
    """
    parts = find_parts(model)
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    if heads % kv_heads:
        raise ValueError(f"{heads} attention heads cannot share {kv_heads} key-value heads")
    placeholder = parts.visual_ids[0]
    if not isinstance(placeholder, int) or not 0 <= placeholder < text.vocab_size:
        raise ValueError(
            f"image_token_id {placeholder!r} is not in the vocabulary of {text.vocab_size}"
        )
    decoder: Any = parts.decoder
    _check_countable(parts, text)
    in_layers = _count(decoder.layers)
    head = int(model.lm_head.weight.numel())
    in_decoder = _count(decoder)
    total = int(model.num_parameters())
    tied = model.lm_head.weight is decoder.embed_tokens.weight
    return Shape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocabulary=text.vocab_size,
        window=min(parts.windows.values(), default=None),
        context=text.max_position_embeddings,
        decoder_parameters=in_layers,
        head_parameters=head,
        vision_parameters=total - in_decoder - (0 if tied else head),
        parameters=total,
    )


def _check_countable(parts: Parts, text: Any) -> None:
    """See that all layers cost what the first one does, as the counts take for granted.

    Raises:
        ValueError: they do not.
    """
    why = None
    if parts.recurrent:
        why = "recurrent layers"
    elif parts.lenders:
        why = "layers that borrow the keys of others"
    elif any((getattr(text, name, None) or 0) > 1 for name in _EXPERTS):
        why = "experts, of which a token meets a few"
    elif getattr(text, "kv_lora_rank", None):
        why = "latent attention"
    if why:
        raise ValueError(f"st3 does not count a decoder yet that has {why}")


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
