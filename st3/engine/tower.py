"""What the vision tower does with pictures, seen where a method asks for it, and nowhere else.

Towers keep their fast attention. In the blocks that a method names, and in no others, the few rows
that it needs are computed once more: of the class token or, where there is none, of all patches,
some at a time, to see how much each is attended to on average. Or keys are kept as they pass.

The modules that encode pictures run before the decoder does, in the same thread: what was seen lies
there until the prompt comes.
"""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch
from transformers import AttentionInterface

from st3.engine.attention import BACKENDS, stand_in, stock_attention
from st3.families.patches import (
    attention_of,
    blocks_of,
    feature_block,
    films_of,
    grids_of,
    has_class_token,
    lengths_of,
    marks_of,
    to_tokens,
    tower_of,
    whole_block,
)
from st3.methods.attention_rows import as_one_head, received

_PREFIX = "st3_tower_"
_OF_LAYERS = ("attention", "joint", "received", "keys")
Mark = Callable[[], None] | None
_ENCODERS = {"image": "get_image_features", "video": "get_video_features"}
_NOW = threading.local()


@dataclass
class Sight:
    """What was seen of the pictures, or videos, of one call.

    Attributes:
        lengths: visual tokens of each. `grids`: lines and columns of these, where known.
        marks: of each picture, tokens that stand for no patch. `films`: of each video, its tokens
            and those of a frame; nothing where that is not known.
        tiled: whether any picture is of several crops.
        attention: what a method asked for -> float32 [tokens].
        crops: int64 [tokens], the number of the crop that each is of, counted through; -1 where it
            is of none, such as marks at the ends of lines.
        keys: the same -> float32 [tokens, heads, size].
        features: float32 [tokens, c], what the projector gets; None if nobody asked.
        class_token: whether attention is that of a class token.
        moved: whether another block was looked at than asked for, because that one has windows.
        trouble: why nothing else was seen.
        made: what the call returned, while somebody holds it.
    """

    lengths: list[int] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    films: list[tuple[int, int]] = field(default_factory=list)
    tiled: bool = False
    attention: dict[str, torch.Tensor] = field(default_factory=dict)
    keys: dict[str, torch.Tensor] = field(default_factory=dict)
    features: torch.Tensor | None = None
    crops: torch.Tensor | None = None
    class_token: bool = False
    moved: bool = False
    trouble: str = ""
    made: weakref.ref[Any] | None = None


@dataclass(frozen=True)
class Wish:
    """What a method wants to see.

    Attributes:
        layers: `attention LAYER` or `joint LAYER`, from the class token if there is one, `received
            LAYER`, from all patches, or `keys LAYER`; see `TowerWatch.block`.
        features: what the projector gets. `grids`: shapes of pictures.
    """

    layers: tuple[str, ...] = ()
    features: bool = False
    grids: bool = False

    @classmethod
    def of(cls, needs: Sequence[str]) -> Wish:
        """From what a selector needs, such as `patches` and `grid`."""
        layers = tuple(x for x in needs if x.partition(" ")[0] in _OF_LAYERS)
        return cls(layers, "patches" in needs, "grid" in needs or bool(layers))

    @property
    def any(self) -> bool:
        """Whether the tower must be watched at all."""
        return bool(self.layers) or self.features or self.grids


@dataclass(frozen=True)
class _What:
    """What is asked of a module of attention.

    Attributes:
        kind: one of `_OF_LAYERS`. `first_only`: whether of the class token alone.
    """

    kind: str
    first_only: bool

    def of(
        self, query: torch.Tensor, key: torch.Tensor, scaling: float, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Float32 [B, n], or of keys [B, n, heads, size]; arguments as for `received`."""
        if self.kind == "keys":
            return key.detach().transpose(1, 2).float()
        if self.kind == "joint":
            heads = query.shape[1]
            query, key = as_one_head(query, heads), as_one_head(key, heads)
            scaling = query.shape[-1] ** -0.5
        return received(query, key, scaling, mask, first_only=self.first_only)


class TowerWatch:
    """Watches one model's tower while it is installed.

    Args:
        merger: the module that merges pictures into text, and encodes them.
        asked: what the calling thread's method wants to see, and whom to tell when that costs time;
            nothing for calls that are not ours.
    """

    def __init__(self, merger: Any, asked: Callable[[], tuple[Wish, Mark]]) -> None:
        self.merger, self.asked = merger, asked
        self.tower = tower_of(merger)
        self.blocks = [] if self.tower is None else blocks_of(self.tower)
        self.class_token = self.tower is not None and has_class_token(self.tower)
        self._seen = threading.local()
        self._before: dict[str, Any] = {}
        self._configs: dict[Any, Any] = {}
        self._handles: list[Any] = []

    def install(self, wish: Wish) -> None:
        """Look on at whatever encodes pictures, and at what this wish asks for besides."""
        if not wish.any:
            return
        if not self._before:
            for kind, name in _ENCODERS.items():
                encode = getattr(self.merger, name, None)
                if encode is not None:
                    self._before[name] = vars(self.merger).get(name)
                    setattr(self.merger, name, self._watched(kind, encode))
        if not self.blocks:
            return
        for layer in wish.layers:
            module, _ = self._rows(layer)
            backend = module.config._attn_implementation
            if backend in BACKENDS and module not in self._configs:
                self._configs[module] = module.config
                module.config = copy.copy(module.config)
                module.config._attn_implementation = {"": _PREFIX + backend}
        if wish.features and not self._handles:
            block = self.blocks[feature_block(self.merger, len(self.blocks))]
            self._handles.append(block.register_forward_hook(_keep))

    def remove(self) -> None:
        """Leave the model as it was."""
        for module, config in self._configs.items():
            module.config = config
        for handle in self._handles:
            handle.remove()
        self._configs.clear()
        self._handles.clear()
        for name, before in self._before.items():
            if before is None:
                delattr(self.merger, name)
            else:
                setattr(self.merger, name, before)
        self._before.clear()

    def of(self, encoded: Any) -> dict[str, Sight]:
        """What this thread has seen of the pictures and videos of a prompt: by kind.

        `encoded`: what they were encoded to beforehand, by kind, as `generate` hands it on; None
        where the prompt's own forward did so.
        """
        found: dict[str, Sight] = getattr(self._seen, "sights", {})
        if encoded:
            known = {kind: found[kind] for kind in encoded if kind in found}
            return {
                kind: sight
                for kind, sight in known.items()
                if sight.made is not None and sight.made() is encoded[kind]
            }
        self._seen.sights = {}
        return found

    def block(self, layer: str) -> int:
        """The number from 0 of the block that a wish ends in: `features`, `first`, `last` or a
        share of the depth, such as 0.375, which is the 9th of 24.

        That of `features` makes what the projector gets.

        In a tower with windows, the next one that sees a whole picture.
        """
        return whole_block(self.tower, self._named(layer))

    def _named(self, layer: str) -> int:
        """The same, with windows or without."""
        count, layer = len(self.blocks), layer.rpartition(" ")[2]
        if layer == "features":
            return feature_block(self.merger, count)
        if layer in ("first", "last"):
            return 0 if layer == "first" else count - 1
        return min(count, max(1, round(float(layer) * count))) - 1

    def _rows(self, asked: str) -> tuple[Any, _What]:
        """The module that is asked, and for what."""
        module = attention_of(self.blocks[self.block(asked)])
        what = asked.partition(" ")[0]
        return module, _What(what, self.class_token and what in ("attention", "joint"))

    def _watched(self, kind: str, encode: Callable[..., Any]) -> Callable[..., Any]:
        names = list(signature(encode).parameters)

        @functools.wraps(encode)
        def call(*args: Any, **kwargs: Any) -> Any:
            wish, mark = self.asked()
            if not wish.any or getattr(_NOW, "seen", None) is not None:
                return encode(*args, **kwargs)
            _NOW.seen, _NOW.rows, _NOW.mark = {}, {}, mark
            for asked in wish.layers if self.blocks else ():
                module, what = self._rows(asked)
                _NOW.rows.setdefault(module, set()).add(what)
            try:
                made = encode(*args, **kwargs)
                seen = _NOW.seen
            finally:
                _NOW.seen = None
            given = dict(zip(names, args, strict=False)) | kwargs
            _tell()
            sight = self._sight(kind, wish, seen, given, made)
            _tell()
            if isinstance(made, dict):
                sight.made = weakref.ref(made)
            self._seen.sights = getattr(self._seen, "sights", {}) | {kind: sight}
            return made

        return call

    def _sight(self, kind: str, wish: Wish, seen: dict[Any, Any], given: Any, made: Any) -> Sight:
        features = getattr(made, "pooler_output", made)
        if features is None:
            return Sight(trouble="its vision tower hands features on in a form of its own")
        sight = Sight(lengths_of(features), grids_of(self.merger, given))
        if kind == "video":
            sight.films = films_of(given, sight.lengths)
        sight.class_token = own = self.class_token
        try:
            for layer in wish.layers:
                if not self.blocks:
                    raise ValueError("its vision tower has no blocks of attention to look into")
                sight.moved |= self.block(layer) != self._named(layer)
                rows = seen.get(self._rows(layer))
                if not rows:
                    raise ValueError("its vision tower did not call attention where st3 sees it")
                if layer.startswith("keys "):
                    keys = _joined([x.flatten(2) for x in rows])
                    found = self._tokens(given, keys, sight.lengths, own)
                    sight.keys[layer] = found.unflatten(1, rows[0].shape[2:])
                    continue
                scores = _joined(rows)[..., None]
                sight.tiled = len(scores) > len(sight.lengths)
                sight.attention[layer] = self._tokens(given, scores, sight.lengths, own)[:, 0]
                if sight.crops is None:
                    number = torch.arange(len(scores), device=scores.device).float()
                    number = number[:, None, None].expand(scores.shape)
                    crop = self._tokens(given, number, sight.lengths, own)[:, 0]
                    sight.crops = torch.where(crop.isinf(), -1, crop).round().long()
            if wish.layers and kind == "image":
                sight.marks = marks_of(self.merger, given, sight.lengths)
            if wish.features and _keep in seen:
                sight.features = self._tokens(given, seen[_keep].float(), sight.lengths, own)
        except ValueError as error:
            sight.trouble = str(error)
        return sight

    def _tokens(
        self, given: Any, values: torch.Tensor, lengths: list[int], own: bool
    ) -> torch.Tensor:
        values = values[None] if values.dim() == 2 else values
        return to_tokens(self.merger, given, values[:, 1:] if own else values, lengths)


def _joined(calls: list[torch.Tensor]) -> torch.Tensor:
    """What calls of one module found, [B, n, ...] each: [crops, n, ...], or [1, all of them, ...]
    where they were called one by one.
    """
    if len(calls) == 1:
        return calls[0]
    if calls[0].shape[0] > 1 and len({x.shape[1] for x in calls}) == 1:
        return torch.cat(calls)
    return torch.cat([x.flatten(0, 1) for x in calls])[None]


def _attend(
    backend: str, module: Any, query: Any, key: Any, value: Any,
    attention_mask: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    seen = getattr(_NOW, "seen", None)
    if seen is not None:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        for what in _NOW.rows.get(module, ()):
            _tell()
            with torch.no_grad():
                found = what.of(query, key, scaling, attention_mask)
            seen.setdefault((module, what), []).append(found)
            _tell()
    named = stand_in(module, backend) if backend.startswith("flash") else module
    return stock_attention(module, backend)(named, query, key, value, attention_mask, **kwargs)


def _tell() -> None:
    if _NOW.mark is not None:
        _NOW.mark()


def _keep(block: Any, args: Any, output: Any) -> None:
    """Of a block's output, [B, n, c] or [n, c]."""
    seen = getattr(_NOW, "seen", None)
    if seen is not None:
        seen[_keep] = (output[0] if isinstance(output, tuple) else output).detach()


for _backend in BACKENDS:
    AttentionInterface.register(_PREFIX + _backend, partial(_attend, _backend))
