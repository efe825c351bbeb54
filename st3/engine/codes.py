"""Keys and values in fewer bits: how one token of one head is written into a slot of the cache.

A slot holds bytes: the codes of a token's numbers, then what turns them back. Tokens are coded each
by itself, so that slots can be dropped, moved and laid out anew as if they held the numbers.
Attention reads them decoded, one layer at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_GROUPS = {"int8": 128, "int4": 32}
"""Numbers that share a scale, at most (ours); int4 needs more scales to be of use."""


@dataclass(frozen=True)
class Plain:
    """Keys or values as the model makes them.

    Attributes:
        dtype, size: what they are, and how many numbers make a token of one head.
    """

    dtype: torch.dtype
    size: int

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        """What slots hold [..., size] for `states` [..., numbers]."""
        return states

    def decode(self, slots: torch.Tensor) -> torch.Tensor:
        """The states that slots hold."""
        return slots


@dataclass(frozen=True)
class Codes:
    """Unsigned codes of a few bits: a number is low + code x scale.

    `scale` and `low` span `group` numbers next to each other, are of the states' dtype, and cover
    what these reach from, and to.

    Attributes:
        bits: of a code, 8 or 4.
        numbers: of a token of one head.
        group: a divisor of it.
        states: dtype of what is coded.
    """

    bits: int
    numbers: int
    group: int
    states: torch.dtype
    dtype = torch.uint8

    @property
    def size(self) -> int:
        """Bytes of a slot."""
        return _size(self.bits, self.numbers, self.group, self.states.itemsize)

    @property
    def _coded(self) -> int:
        return self.numbers * self.bits // 8

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        """uint8 [..., size] for `states` [..., numbers]."""
        wide = torch.promote_types(self.states, torch.float32)
        grouped = states.to(wide).unflatten(-1, (-1, self.group))
        lowest, highest = grouped.aminmax(dim=-1, keepdim=True)
        top, least = 2**self.bits - 1, torch.finfo(self.states).tiny
        low = lowest.to(self.states)
        scale = ((highest - lowest) / top).to(self.states).clamp_min(least)
        exact = (grouped - low.to(wide)) / scale.to(wide)
        codes = exact.round().clamp(0, top).to(torch.uint8).flatten(-2)
        if self.bits == 4:
            first, second = codes.chunk(2, dim=-1)
            codes = first | second << 4
        back = torch.cat((scale, low), dim=-1).flatten(-2)
        return torch.cat((codes, back.view(torch.uint8)), dim=-1)

    def decode(self, slots: torch.Tensor) -> torch.Tensor:
        """States [..., numbers] of slots uint8 [..., size]."""
        codes, back = slots[..., : self._coded], slots[..., self._coded :].contiguous()
        if self.bits == 4:
            codes = torch.cat((codes & 15, codes >> 4), dim=-1)
        codes = codes.to(self.states).unflatten(-1, (-1, self.group))
        scale, low = back.view(self.states).unflatten(-1, (-1, 2)).split(1, dim=-1)
        return torch.addcmul(low, codes, scale).flatten(-2)


def codec(kind: str, states: torch.Tensor) -> Plain | Codes:
    """How states [..., numbers] are held; `kind` is one of `KV_CACHE_DTYPES`.

    Raises:
        ValueError: they cannot be.
    """
    numbers = states.shape[-1]
    if kind == "auto":
        return Plain(states.dtype, numbers)
    return Codes(*_shape(kind, numbers), states.dtype)


def slot_bytes(kind: str, numbers: int, element: int) -> int:
    """Bytes of one token of one head, of so many numbers that take so many bytes each in `auto`."""
    return numbers * element if kind == "auto" else _size(*_shape(kind, numbers), element)


def _shape(kind: str, numbers: int) -> tuple[int, int, int]:
    """Bits, numbers and how many of them share a scale."""
    if numbers % 2:
        raise ValueError(f"keys or values of {numbers} numbers cannot be held as {kind}: use auto")
    group = next(n for n in range(min(_GROUPS[kind], numbers), 0, -1) if numbers % n == 0)
    return int(kind.removeprefix("int")), numbers, group


def _size(bits: int, numbers: int, group: int, element: int) -> int:
    return numbers * bits // 8 + 2 * numbers // group * element
