"""The prompt's side in vLLM: fewer placeholders, and a note of what stood there.

Any of vLLM's processors becomes one that trims: what it puts into a prompt for a picture is
shortened after it has been made, so that families need no code here. Text between a picture's rows
stays. The layout of the whole goes along with the picture's pixels to the model.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem
from vllm.multimodal.processing import PromptUpdateDetails

from st3.serving.vllm.counts import SEEN
from st3.serving.vllm.families import Family
from st3.serving.vllm.layout import Layout
from st3.serving.vllm.settings import read_settings

logger = init_logger("vllm.st3")

FIELD = "st3_layout"
"""What goes along with a picture: bool [n], a `Layout`'s `embeds`."""


@dataclass
class Shortened(PromptUpdateDetails):  # type: ignore[misc]
    """What a picture becomes in a prompt.

    Attributes:
        rows: of the picture. `kept`: how many of them stay.
    """

    rows: int = 0
    kept: int = 0


def embeds_of(details: PromptUpdateDetails) -> torch.Tensor:
    """bool [n], which tokens of a picture's stand for rows."""
    if details.is_embed is None:
        return torch.ones(len(details.full), dtype=torch.bool)
    embeds: torch.Tensor = details.is_embed(details.full)
    return embeds.bool()


def shorten(details: PromptUpdateDetails, layout: Layout) -> Shortened:
    """The same without placeholders for which nothing will stay."""
    embeds = embeds_of(details)
    here = embeds.nonzero().flatten()
    first = int(here[0]) if len(here) else 0
    stays = [first + place for place in layout.stays.tolist()]
    behind = first + len(layout.embeds)
    places = [*range(first), *stays, *range(behind, len(details.full))]
    return Shortened([details.full[n] for n in places], details.is_embed, *layout.total)


@functools.cache
def trimming(base: type, family: Family) -> type:
    """A class of processors, `base` of vLLM's, that trims where its configuration says so."""

    class Trimming(base):  # type: ignore[misc]
        def _get_mm_prompt_updates(
            self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
        ) -> Any:
            found = super()._get_mm_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
            config = self.info.get_hf_config()
            settings = read_settings(config)
            if settings is None or not found.get("image"):  # none, or all in vLLM's cache
                return found
            budget, tile = settings.method.budget(), family.tile(config)
            pictures = []
            for updates, item in zip(found["image"], out_mm_kwargs["image"], strict=True):
                layouts = [Layout.of(embeds_of(x.content), tile, budget) for x in updates]
                embeds = torch.tensor(layouts[0].embeds, dtype=torch.bool)
                field = MultiModalBatchedField(keep_on_cpu=True)
                item[FIELD] = MultiModalFieldElem(data=embeds, field=field)
                pictures.append(_shortened(updates, layouts))
                _say(settings.describe(), len(layouts[0].rows), layouts[0].gone)
            return {**found, "image": pictures}

        def _get_mm_hashes(self, inputs: Any) -> Any:
            found = super()._get_mm_hashes(inputs)
            settings = read_settings(self.info.get_hf_config())
            if settings is None or "image" not in found:
                return found
            # Caches outside of this engine must not mix settings.
            return {**found, "image": [digest + settings.mark for digest in found["image"]]}

        def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
            made = super()._maybe_apply_prompt_updates(mm_items, mm_res)
            config = self.info.get_hf_config()
            settings = read_settings(config)
            if settings is None:
                return made
            shown = [updates[0].content for updates in mm_res.prompt_updates.get("image", ())]
            rows = [(one.rows, one.kept) for one in shown if isinstance(one, Shortened)]
            SEEN.note(sum(one for one, _ in rows), sum(kept for _, kept in rows))
            if settings.original and not family.on_a_grid:
                _check_length(len(made[0]), sum(one - kept for one, kept in rows), config)
            return made

    Trimming.__name__ = Trimming.__qualname__ = f"Trimming{base.__name__}"
    return Trimming


def _shortened(updates: Sequence[Any], layouts: Sequence[Layout]) -> list[Any]:
    return [
        replace(update, content=shorten(update.content, layout))
        for update, layout in zip(updates, layouts, strict=True)
    ]


def _check_length(tokens: int, gone: int, config: Any) -> None:
    """Positions beyond those that a model has would be read from somewhere in memory."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if most is not None and tokens + gone > most:
        raise ValueError(
            f"the prompt has {tokens} tokens, whose positions reach to {tokens + gone}, and the "
            f"model has {most}: give fewer pictures, or serve with positions=compact"
        )


@functools.lru_cache(maxsize=64)
def _say(what: str, rows: int, gone: int) -> None:
    """Once for each size of pictures; the first is vLLM's own at start-up.

    In the process that was started alone: those that it starts say it again.
    """
    if parent_process() is None:
        logger.info("st3: %s: %d tokens become %d", what, rows, rows - gone)
