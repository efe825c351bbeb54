"""Stages `language` and `counting` of the demo's training, and the loss of those after them.

All questions about a picture are packed behind its visual tokens in one row: a question attends to
the picture and to itself, and its positions start anew behind the picture. A `Dropping` thins the
visual tokens out from layer to layer; by attention means that of one question's last token, as at
inference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

from st3.demo.language import vocabulary
from st3.demo.scenes import GRID, SHAPES, Scene, render
from st3.demo.training.architecture import WIDTH
from st3.demo.training.attention_loss import AttentionLoss
from st3.demo.training.codes import Codes, labels
from st3.demo.training.dropping import Dropping
from st3.demo.training.packing import (
    MOSTLY_COUNTS,
    PREFIX,
    QUESTIONS,
    RELATIONS,
    TASK_IDS,
    Packed,
    pack,
    questions,
)

_IMPLEMENTATION = "st3_demo_training"
_BLOCK = 72  # rows of the causal part at a time: nothing is computed far above the diagonal


def _attention(
    module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any
) -> Any:
    """Attention of a packed batch: the text has a `mask`, what is before it is plainly causal."""
    observer: AttentionLoss = kwargs.pop("observer")
    scaling: float = module.scaling  # type: ignore[assignment]
    observer.observe(module.layer_idx, query, key, mask, scaling)  # type: ignore[arg-type]
    end = observer.first + observer.visual
    query = query * scaling
    parts = []
    for start in range(0, end, _BLOCK):
        stop = min(start + _BLOCK, end)
        causal = _additive(torch.ones(stop - start, stop, device=query.device).tril(start), query)
        parts.append(
            _weighted(query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], causal)
        )
    parts.append(_weighted(query[:, :, end:], key, value, mask))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _additive(allowed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """0 where `allowed`, very negative elsewhere."""
    return torch.zeros_like(allowed, dtype=like.dtype).masked_fill(allowed == 0, -1e4)


def _weighted(query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
    """Attention as books have it, with an additive mask. On CPUs it takes half of SDPA's time."""
    result: torch.Tensor = (query @ key.transpose(2, 3) + mask).softmax(-1) @ value
    return result


AttentionInterface.register(_IMPLEMENTATION, _attention)


def words_batch(scenes: list[Scene], rng: np.random.Generator) -> tuple[Any, ...]:
    """Inputs of `LanguageStage` with no visual tokens: what follows from two places said.

    That a star at the top left is left of a circle in the centre needs no picture, and without one
    it costs little to learn. Only the verdicts count.
    """
    asked = [found for scene in scenes if (found := questions(scene, rng, RELATIONS))]
    nothing = torch.zeros(len(asked), 0)
    visual = torch.zeros(len(asked), 0, WIDTH, dtype=torch.bfloat16)
    packed = pack(asked, rng)
    packed.weight *= packed.weight > 0.5
    return visual, nothing.long(), nothing.long(), nothing, packed


def codes_batch(
    codes: Codes, scenes: list[Scene], rng: np.random.Generator, *, complete: bool = False
) -> tuple[Any, ...]:
    """Inputs of `LanguageStage` with no picture: noisy codes of some patches of each scene.

    64 to 256 patches at random; or, if `complete`, all patches with an object and 64 others or
    more, so that nothing has to be guessed. One patch in 25 tells a random shape, as the
    tower's sometimes do.
    """
    drawn = [render(scene, rng) for scene in scenes]
    shown = [rendered.coverage.reshape(-1) > 0 for rendered in drawn]
    tokens = max(int(x.sum()) for x in shown) + 64 if complete else round(64 * 4 ** rng.random())
    visual, places, owners, coverages = [], [], [], []
    noise = torch.Generator().manual_seed(int(rng.integers(2**40)))
    for scene, rendered, objects in zip(scenes, drawn, shown, strict=True):
        colour, shape = labels(scene, rendered.owner)
        lot = rng.random(GRID * GRID) - objects * complete  # the objects' patches come first
        place = torch.from_numpy(np.sort(np.argsort(lot)[:tokens]))
        coverage = torch.from_numpy(rendered.coverage).flatten()[place]
        wrong = torch.rand(tokens, generator=noise) < 0.04
        guess = torch.randint(len(SHAPES), (tokens,), generator=noise)
        told = torch.where(wrong, guess, shape[place])
        code = codes.encode(colour[place], told, coverage, place)
        visual.append(code + torch.randn(code.shape, generator=noise) * 0.2)
        places.append(place)
        owners.append(torch.from_numpy(rendered.owner).flatten()[place])
        coverages.append(coverage)
    mixture = MOSTLY_COUNTS if complete else QUESTIONS
    packed = pack([questions(scene, rng, mixture) for scene in scenes], rng)
    stacked = (torch.stack(x) for x in (visual, places, owners, coverages))
    first, *rest = stacked
    return first.bfloat16(), *rest, packed


class LanguageStage(nn.Module):
    """The decoder, its embeddings and head, with the loss of these stages."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.prefix: torch.Tensor
        self.decoder: Any = model.model.language_model
        self.head = model.lm_head
        self.decoder.set_attn_implementation(_IMPLEMENTATION)
        ids = vocabulary()
        self.register_buffer(
            "prefix", torch.tensor([ids[word] for word in PREFIX]), persistent=False
        )

    def forward(
        self,
        visual: torch.Tensor,
        place: torch.Tensor,
        owner: torch.Tensor,
        coverage: torch.Tensor,
        packed: Packed,
        dropping: Dropping | None = None,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss and this batch's measures.

        Args:
            visual: [B, V, WIDTH] embeddings of visual tokens.
            place: int64 [B, V], their place among the picture's 576.
            owner: int64 [B, V], the object they show.
            coverage: [B, V], how much of the patch it covers.
            packed: the questions.
            dropping: which visual tokens to drop where; None keeps all.
        """
        size, count = place.shape
        device = place.device
        embed = self.decoder.embed_tokens
        prefix = self.prefix.expand(size, -1)
        hidden = torch.cat((embed(prefix), visual, embed(packed.tokens)), dim=1)
        text_start = len(PREFIX) + 576
        positions = torch.cat(
            (
                torch.arange(len(PREFIX), device=device).expand(size, -1),
                place + len(PREFIX),
                packed.offset + text_start,
            ),
            dim=1,
        )
        branch = packed.branch
        own = (branch[:, :, None] == branch[:, None, :]).tril()[:, None]
        seen = torch.ones(len(PREFIX) + count, dtype=torch.bool, device=device)
        mask = _additive(torch.cat((seen.expand(*own.shape[:3], -1), own), dim=3), hidden)
        turns = self.decoder.rotary_emb(hidden, position_ids=positions)
        depth = len(self.decoder.layers)
        observer = AttentionLoss(
            packed,
            owner,
            coverage >= 0.5,
            first=len(PREFIX),
            general_layers=range(2, depth - 1),
            pointed_layers=range(depth // 4, depth * 3 // 4),
        )
        fixed = None
        if dropping is not None and dropping.ranking is not None:
            fixed = dropping.ranking.to(device).expand(size, -1)
        for number, layer in enumerate(self.decoder.layers):
            if dropping is not None and dropping.keep[number] < observer.visual:
                left = dropping.keep[number]
                scores = observer.scores if fixed is None else fixed
                chosen = scores.topk(left, dim=1).indices.sort(dim=1).values
                fixed = None if fixed is None else fixed.gather(1, chosen)
                hidden, *turns = (_dropped(x, chosen, observer.visual) for x in (hidden, *turns))
                mask = mask[..., observer.visual - left :]  # all see all that is before the text
                observer.keep(chosen)
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=tuple(turns),
                use_cache=False,
                observer=observer,
            )
        end = len(PREFIX) + observer.visual
        row, where = packed.rows.unbind(1)
        logits = self.head(self.decoder.norm(hidden[row, where + end])).float()
        losses = F.cross_entropy(logits, packed.labels, reduction="none")
        answer_loss = (losses * packed.weight).sum() / packed.weight.sum()
        general, pointed = observer.general(), observer.pointed()
        loss = answer_loss + 0.1 * general + 0.3 * pointed
        measures = {"answer": answer_loss.item()}
        if count:
            measures |= {"look_at_objects": general.item(), "look_at_target": pointed.item()}
        wrong = torch.zeros(len(packed.task), device=device)
        missed = (logits.argmax(-1) != packed.labels) & (packed.weight > 0)
        wrong.index_add_(0, packed.question, missed.float())
        for task, number in TASK_IDS.items():
            of_task = wrong[packed.task == number]
            if len(of_task):
                measures[f"right:{task}"] = (of_task == 0).float().mean().item()
        return loss, measures


def _dropped(x: torch.Tensor, chosen: torch.Tensor, visual: int) -> torch.Tensor:
    """[B, n, D] with the visual tokens `chosen` [B, left] out of `visual` behind the prefix."""
    parts = x.split((len(PREFIX), visual, x.shape[1] - len(PREFIX) - visual), dim=1)
    index = chosen[:, :, None].expand(-1, -1, x.shape[2])
    return torch.cat((parts[0], parts[1].gather(1, index), parts[2]), dim=1)
