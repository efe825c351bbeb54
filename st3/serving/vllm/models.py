"""The model's side in vLLM: rows are chosen behind the projector, and keep their positions.

Classes are made on demand from vLLM's own, by the name of an architecture; without settings they
are what they were. Original positions need three things, and no kernel or runner knows of them:

1. Counted positions of a whole prompt are those of the untrimmed one (`get_mrope_input_positions`,
   which vLLM asks for wherever positions are not a mere count). A picture's rows all get the
   position of its first token there, since which ones were chosen is not known yet.
2. Each row carries its place in its picture in a few channels behind the embedding. When rows are
   put into a batch's embeddings, these are cut off, and lie in a buffer beside the batch's tokens.
3. The decoder gets the sum of both.

The buffer stays where it is, so that CUDA graphs may read it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import PlaceholderRange

from st3.serving.vllm.choosing import Picture, choose
from st3.serving.vllm.families import FAMILIES, Family
from st3.serving.vllm.layout import Layout, from_channels, to_channels, untrimmed
from st3.serving.vllm.processor import FIELD, trimming
from st3.serving.vllm.settings import read_settings
from st3.serving.vllm.tower import ClassToken

_SPARE = 1024  # tokens that a batch may be padded by


def __getattr__(name: str) -> Any:
    if name not in FAMILIES:
        raise AttributeError(name)
    family = FAMILIES[name]
    module = importlib.import_module(f"vllm.model_executor.models.{family.module}")
    made = trimmed(getattr(module, family.name), family)
    globals()[name] = made
    return made


def trimmed(base: Any, family: Family) -> Any:
    """A class like `base`, a model of vLLM's, that trims where its configuration says so."""

    class Trimmed(base):  # type: ignore[misc]
        supports_mrope = True

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            config = vllm_config.model_config.hf_config
            self.st3 = settings = read_settings(config)
            if settings is None:
                return
            self._st3_tile = family.tile(config)
            self._st3_width = config.get_text_config().hidden_size
            self._st3_token = ClassToken(self.vision_tower) if settings.needs_tower else None
            self._st3_axes = (3 if family.on_a_grid else 1) if settings.original else 0
            most = getattr(config.get_text_config(), "max_position_embeddings", None)
            self._st3_last = None if family.on_a_grid or most is None else most - 1
            tokens = vllm_config.scheduler_config.max_num_batched_tokens + _SPARE
            self._st3_places = torch.zeros(
                max(1, self._st3_axes), tokens, dtype=torch.long,
                device=vllm_config.device_config.device,
            )  # fmt: skip

        def embed_multimodal(self, **kwargs: Any) -> Any:
            layouts = kwargs.pop(FIELD, None)
            if self.st3 is None:
                return super().embed_multimodal(**kwargs)
            if self._st3_token is not None:
                self._st3_token.take()
            rows = super().embed_multimodal(**kwargs)
            if layouts is None:  # videos: as they are
                return tuple(self._st3_placed(one, None) for one in rows or ())
            looked = None if self._st3_token is None else self._st3_token.take()
            pictures, own = [], []
            for number, (one, embeds) in enumerate(zip(rows, layouts, strict=True)):
                layout = Layout.of(embeds, self._st3_tile, self.st3.method.budget())
                own.append(layout)
                pictures.append(
                    Picture(
                        one, layout.pools, layout.counts, self._st3_grid(kwargs, number),
                        None if looked is None else looked[number], family.lines,
                    )
                )  # fmt: skip
            found = choose(self.st3.method, pictures, _agreed, self._st3_width)
            made = []
            for kept, layout, picture in zip(found, own, pictures, strict=True):
                if picture.grid is None:
                    place = layout.rows.to(kept.numbers.device)[kept.numbers][:, None]
                else:
                    lines, columns = kept.numbers // picture.grid[1], kept.numbers % picture.grid[1]
                    place = torch.stack((torch.zeros_like(lines), lines, columns), 1)
                made.append(self._st3_placed(kept.rows, place))
            return tuple(made)

        def _st3_grid(self, kwargs: Mapping[str, Any], number: int) -> tuple[int, int] | None:
            if not family.on_a_grid:
                return None
            side = self.config.vision_config.spatial_merge_size
            _, lines, columns = (int(x) for x in kwargs["image_grid_thw"][number])
            return lines // side, columns // side

        def _st3_placed(self, rows: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
            """Rows with the channels of their places, zeros where these are counted already."""
            if not self._st3_axes:
                return rows
            if place is None:
                place = torch.zeros(len(rows), self._st3_axes, device=rows.device).long()
            return torch.cat((rows, to_channels(place, rows.dtype)), dim=1)

        def embed_input_ids(
            self,
            input_ids: torch.Tensor,
            multimodal_embeddings: Any = None,
            *,
            is_multimodal: torch.Tensor | None = None,
        ) -> Any:
            if self.st3 is not None and self._st3_axes:
                self._st3_places.zero_()
                if multimodal_embeddings is not None and len(multimodal_embeddings):
                    wide = 2 * self._st3_axes
                    places = [from_channels(one[:, -wide:]) for one in multimodal_embeddings]
                    multimodal_embeddings = [one[:, :-wide] for one in multimodal_embeddings]
                    assert is_multimodal is not None
                    where = is_multimodal.nonzero().flatten().to(input_ids.device)
                    self._st3_places[:, where] = torch.cat(places).T.to(input_ids.device)
            if multimodal_embeddings is None:
                return super().embed_input_ids(input_ids)
            return super().embed_input_ids(
                input_ids, multimodal_embeddings, is_multimodal=is_multimodal
            )

        def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> Any:
            """Int64 [3, n], and what is added to the number of a token behind the prompt."""
            if self.st3 is None:
                return super().get_mrope_input_positions(input_tokens, mm_features)
            features = sorted(mm_features, key=lambda one: one.mm_position.offset)
            budget = self.st3.method.budget()
            stretches = [_stretch(one, self._st3_tile, budget) for one in features]
            shown = [stretch for stretch in stretches if stretch is not None]
            whole = untrimmed(list(input_tokens), shown)
            if family.on_a_grid:
                moved = _moved(features, stretches, whole.starts)
                positions, _ = super().get_mrope_input_positions(whole.tokens, moved)
            else:
                positions = torch.arange(len(whole.tokens)).expand(3, -1)
            delta = int(positions.max()) + 1 - len(input_tokens)
            return positions[:, whole.origin].contiguous(), delta

        def forward(
            self, input_ids: Any, positions: torch.Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            if self.st3 is not None and self._st3_axes:
                positions = positions + self._st3_places[:, : positions.shape[-1]]
                if not family.on_a_grid:  # the axes are alike, and the decoder knows one
                    positions = positions[0]
                    if self._st3_last is not None:
                        positions = positions.clamp_max(self._st3_last)
            return super().forward(input_ids, positions, *args, **kwargs)

    Trimmed.__name__ = Trimmed.__qualname__ = base.__name__
    Trimmed.__module__ = __name__
    factory = base._processor_factory

    def processor(info: Any, dummy_inputs: Any) -> Any:
        made = factory.processor(info, dummy_inputs)
        if read_settings(info.get_hf_config()) is not None:
            kind: Any = type(made)
            made.__class__ = trimming(kind, family)  # factories choose between classes
        return made

    return MULTIMODAL_REGISTRY.register_processor(
        processor, info=factory.info, dummy_inputs=factory.dummy_inputs
    )(Trimmed)


def _agreed(picks: torch.Tensor) -> torch.Tensor:
    """Those of the first rank: rounding may differ, and the KV cache is one."""
    from vllm.distributed import get_tensor_model_parallel_world_size, get_tp_group

    if get_tensor_model_parallel_world_size() == 1:
        return picks
    agreed: torch.Tensor = get_tp_group().broadcast(picks, src=0)
    return agreed


def _stretch(feature: Any, tile: int, budget: Any) -> tuple[int, Layout] | None:
    """Where a picture's first row is in the trimmed prompt, and its layout; None for others."""
    if feature.data is None or FIELD not in feature.data:
        return None
    position = feature.mm_position
    before = 0 if position.is_embed is None else int(position.is_embed.long().argmax())
    return position.offset + before, Layout.of(feature.data[FIELD].data, tile, budget)


def _moved(features: Sequence[Any], stretches: Sequence[Any], starts: Sequence[int]) -> list[Any]:
    """Features as they would stand in the untrimmed prompt."""
    found, shift, left = [], 0, list(starts)
    for feature, stretch in zip(features, stretches, strict=True):
        position = feature.mm_position
        if stretch is None:
            place = replace(position, offset=position.offset + shift)
        else:
            place = PlaceholderRange(offset=left.pop(0), length=len(stretch[1].embeds))
            shift += stretch[1].gone
        found.append(replace(feature, mm_position=place))
    return found
