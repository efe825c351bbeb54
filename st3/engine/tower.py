"""The vision tower watched, where a method asks for it, and nowhere else.

The modules that encode pictures run before the decoder does, in the same thread: what was seen lies
there until the prompt comes.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch

from st3.engine.sight import OF_ITS_OWN, Sight, Wish
from st3.engine.tower_rows import (
    Mark,
    What,
    is_looking,
    joined,
    keep,
    looking,
    tell,
    watched_config,
)
from st3.families.patches import (
    attention_of,
    blocks_of,
    feature_block,
    films_of,
    grids_of,
    has_class_token,
    lengths_of,
    marks_of,
    named_block,
    to_tokens,
    tower_of,
    whole_block,
)

_ENCODERS = {"image": "get_image_features", "video": "get_video_features"}


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
            config = None if module in self._configs else watched_config(module.config)
            if config is not None:
                self._configs[module], module.config = module.config, config
        if wish.features and not self._handles:
            block = self.blocks[feature_block(self.merger, len(self.blocks))]
            self._handles.append(block.register_forward_hook(keep))

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
        """The number from 0 of the block that a wish ends in, see `named_block`.

        In a tower with windows, the next one that sees a whole picture.
        """
        return whole_block(self.tower, self._named(layer))

    def _named(self, layer: str) -> int:
        """The same, with windows or without."""
        return named_block(self.merger, len(self.blocks), layer.rpartition(" ")[2])

    def _rows(self, asked: str) -> tuple[Any, What]:
        """The module that is asked, and for what."""
        module = attention_of(self.blocks[self.block(asked)])
        what = asked.partition(" ")[0]
        return module, What(what, self.class_token and what in ("attention", "joint"))

    def _watched(self, kind: str, encode: Callable[..., Any]) -> Callable[..., Any]:
        names = list(signature(encode).parameters)

        @functools.wraps(encode)
        def call(*args: Any, **kwargs: Any) -> Any:
            wish, mark = self.asked()
            if not wish.any or is_looking():
                return encode(*args, **kwargs)
            asked = [self._rows(layer) for layer in wish.layers if self.blocks]
            with looking(asked, mark) as seen:
                made = encode(*args, **kwargs)
            given = dict(zip(names, args, strict=False)) | kwargs
            tell(mark)
            sight = self._sight(kind, wish, seen, given, made)
            tell(mark)
            if isinstance(made, dict):
                sight.made = weakref.ref(made)
            self._seen.sights = getattr(self._seen, "sights", {}) | {kind: sight}
            return made

        return call

    def _sight(self, kind: str, wish: Wish, seen: dict[Any, Any], given: Any, made: Any) -> Sight:
        features = getattr(made, "pooler_output", made)
        if features is None:
            return Sight(trouble=OF_ITS_OWN)
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
                    keys = joined([x.flatten(2) for x in rows])
                    found = self._tokens(given, keys, sight.lengths, own)
                    sight.keys[layer] = found.unflatten(1, rows[0].shape[2:])
                    continue
                scores = joined(rows)[..., None]
                sight.attention[layer] = self._tokens(given, scores, sight.lengths, own)[:, 0]
                if sight.crops is None:
                    number = torch.arange(len(scores), device=scores.device).float()
                    number = number[:, None, None].expand(scores.shape)
                    crop = self._tokens(given, number, sight.lengths, own)[:, 0]
                    sight.crops = torch.where(crop.isinf(), -1, crop).round().long()
            if wish.layers and kind == "image":
                sight.marks = marks_of(self.merger, given, sight.lengths)
            if wish.features and keep in seen:
                sight.features = self._tokens(given, seen[keep].float(), sight.lengths, own)
        except ValueError as error:
            sight.trouble = str(error)
        return sight

    def _tokens(
        self, given: Any, values: torch.Tensor, lengths: list[int], own: bool
    ) -> torch.Tensor:
        values = values[None] if values.dim() == 2 else values
        return to_tokens(self.merger, given, values[:, 1:] if own else values, lengths)
