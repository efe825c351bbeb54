"""Multiply-accumulates of a decoder, from the sizes of its layers and the tokens in them.

Here a multiply-accumulate is called a MAC, and a FLOP is half of one. Matrix products,
convolutions, attention and the states of recurrent layers count; norms, rotary embeddings,
activations and softmax do not, as in every paper of the field. Attention counts the whole n x n
square, causal or not, as the papers do; of layers with a window n times the window.
"""

from __future__ import annotations

from typing import Any

from st3.profiling.course import Course
from st3.profiling.layers import count_macs, layers_of


class MacCounter:
    """MACs of a model's decoder, for one prompt; a batch costs so many times more.

    Args:
        model: from `st3.families.meta.meta_model`.

    Attributes:
        layers: sizes of the decoder's.

    Raises:
        ValueError: a decoder that cannot be counted.
    """

    def __init__(self, model: Any) -> None:
        self.layers = layers_of(model)
        self._head: Any = model.get_output_embeddings()

    def head(self) -> int:
        """The LM head, for one token."""
        weight = self._head.weight
        return count_macs(self._head, weight.new_empty(1, 1, weight.shape[1]))

    def prefill(self, course: Course) -> int:
        """The decoder layers over one prompt, each at the tokens that it has."""
        return sum(self.prefill_layers(course))

    def prefill_layers(self, course: Course) -> list[int]:
        """The same, layer by layer."""
        each = zip(self.layers, course.tokens, course.keys, strict=True)
        return [layer.prefill_macs(tokens, keys) for layer, tokens, keys in each]

    def decode(self, course: Course) -> int:
        """The decoder layers over all decode steps of one answer."""
        return sum(sum(self.step_layers(held)) for held in course.held[1:])

    def step_layers(self, held: tuple[int, ...]) -> list[int]:
        """A decode step layer by layer, at so many keys."""
        return [layer.step_macs(keys) for layer, keys in zip(self.layers, held, strict=True)]
