"""Stage `language` of the demo's training, and the loss of those after it: learning to answer.

All questions about a picture are packed behind its visual tokens in one row: a question attends to
the picture and to itself, and its positions start anew behind the picture. Two additions to the
usual loss come from what the renderer knows (both in `_AttentionLoss`): the last prompt token is to
look at the objects, and one head at the objects that the words speak of, in question and answer. A
`Dropping` thins the visual tokens out from layer to layer; by attention means that of one
question's last token, as at inference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from st3.demo.codes import Codes, labels
from st3.demo.dropping import Dropping
from st3.demo.language import vocabulary
from st3.demo.packing import (
    MORE_COUNTS,
    PREFIX,
    QUESTIONS,
    TASK_IDS,
    Packed,
    pack,
    questions,
)
from st3.demo.scenes import GRID, SHAPES, Scene, render

_IMPLEMENTATION = "st3_demo_training"
_GENERAL_LAYERS = range(2, 11)  # 0-based: the layers whose scores can decide a cut
_POINTED_LAYERS = range(3, 9)


@dataclass
class _AttentionLoss:
    """Collects the attention losses of a forward, and the scores that rank visual tokens."""

    packed: Packed
    owner: torch.Tensor  # [B, V], object that each visual token shows, -1 for none
    foreground: torch.Tensor  # [B, V], coverage at least one half
    visual: int = 0
    general: list[torch.Tensor] = field(default_factory=list)
    pointed: list[torch.Tensor] = field(default_factory=list)
    scores: torch.Tensor | None = None

    def observe(self, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        """Read one layer's attention from a few rows to the visual tokens (renormalised)."""
        first, end = len(PREFIX), len(PREFIX) + self.visual
        keys = key[:, :, first:end].float()  # [B, H, V, D]

        def rows(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            row, place = places.unbind(1)
            chosen = query[row, :, place + end].float()  # [M, H, D]
            logits = torch.einsum("mhd,mhvd->mhv", chosen, keys[row]) * scaling
            return row, logits.log_softmax(-1)

        if layer in _GENERAL_LAYERS:
            row, log_p = rows(self.packed.last)
            mean = log_p.exp().mean(1).clamp_min(1e-9).log()
            self.general.append(_cross_entropy(mean, self.foreground[row]))
        if layer in _POINTED_LAYERS:
            row, log_p = rows(self.packed.pointed)
            owner = self.owner[row]
            meant = (self.packed.objects[:, None] >> owner.clamp_min(0)) & 1
            target = self.foreground[row] & (owner >= 0) & (meant == 1)
            self.pointed.append(_cross_entropy(log_p[:, 0], target))
        with torch.no_grad():
            lines = torch.arange(len(query), device=query.device)
            ranking = torch.stack((lines, self.packed.ranking), dim=1)
            self.scores = rows(ranking)[1].exp().mean(1)  # [B, V]


def _cross_entropy(log_p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over rows of -log p averaged over each row's target tokens; rows with none are left."""
    count = target.sum(1)
    loss = -(log_p * target).sum(1) / count.clamp_min(1)
    return loss[count > 0].mean() if bool((count > 0).any()) else log_p.sum() * 0


def _attention(
    module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any
) -> Any:
    observer: _AttentionLoss = kwargs.pop("observer")
    observer.observe(module.layer_idx, query, key, module.scaling)  # type: ignore[arg-type]
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


AttentionInterface.register(_IMPLEMENTATION, _attention)
AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)


def codes_batch(
    codes: Codes, scenes: list[Scene], rng: np.random.Generator, *, complete: bool = False
) -> tuple[Any, ...]:
    """Inputs of `LanguageStage` with no picture: noisy codes of some patches of each scene.

    64 to 256 patches at random; or, if `complete`, all patches with an object and 64 others or
    more, so that nothing has to be guessed. One patch in 25 tells a wrong shape, as the tower's
    sometimes do.
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
    mixture = MORE_COUNTS if complete else QUESTIONS
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
        common = torch.full((size, len(PREFIX) + count), -2, device=device)
        branch = torch.cat((common, packed.branch), dim=1)
        allowed = (branch[:, None, :] == -2) | (branch[:, :, None] == branch[:, None, :])
        mask = (allowed & torch.ones_like(allowed).tril())[:, None]
        turns = self.decoder.rotary_emb(hidden, position_ids=positions)
        observer = _AttentionLoss(packed, owner, coverage >= 0.5, visual=count)
        fixed = None
        if dropping is not None and dropping.ranking is not None:
            fixed = dropping.ranking.to(device).expand(size, -1)
        for number, layer in enumerate(self.decoder.layers):
            if dropping is not None and dropping.keep[number] < observer.visual:
                scores = observer.scores if fixed is None else fixed
                assert scores is not None
                left = dropping.keep[number]
                chosen = scores.topk(left, dim=1).indices.sort(dim=1).values
                fixed = None if fixed is None else fixed.gather(1, chosen)
                alive = torch.arange(hidden.shape[1], device=device).expand(size, -1)
                first, end = len(PREFIX), len(PREFIX) + observer.visual
                index = torch.cat((alive[:, :first], chosen + first, alive[:, end:]), dim=1)
                lines = torch.arange(size, device=device)[:, None]
                hidden = hidden[lines, index]
                turns = tuple(t[lines, index] for t in turns)
                mask = mask[lines[:, None], 0, index[:, :, None], index[:, None, :]][:, None]
                observer.owner = observer.owner.gather(1, chosen)
                observer.foreground = observer.foreground.gather(1, chosen)
                observer.visual = left
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=turns,
                use_cache=False,
                observer=observer,
            )
        end = len(PREFIX) + observer.visual
        row, where = packed.rows.unbind(1)
        logits = self.head(self.decoder.norm(hidden[row, where + end])).float()
        answer_loss = F.cross_entropy(logits, packed.labels)
        general = torch.stack(observer.general).mean()
        pointed = torch.stack(observer.pointed).mean()
        loss = answer_loss + 0.1 * general + 0.3 * pointed
        right = logits.argmax(-1) == packed.labels
        measures = {
            "answer": answer_loss.item(),
            "look_at_objects": general.item(),
            "look_at_target": pointed.item(),
        }
        for task, number in TASK_IDS.items():
            of_task = right[packed.task == number]
            if len(of_task):
                measures[f"right:{task}"] = of_task.float().mean().item()
        return loss, measures
