"""Stage `language` of the demo's training, and the loss of those after it: learning to answer.

All questions about a picture are packed behind its visual tokens in one row: a question attends to
the picture and to itself, and its positions start anew behind the picture. Two additions to the
usual loss come from what the renderer knows (both in `_AttentionLoss`): the last prompt token is to
look at the objects, and one head at the object that is asked about or named next. `trim` runs the
forward under an ST3 schedule, ranked by one question's last token, as at inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from st3.demo.codes import Codes, labels
from st3.demo.language import Question, ask, dress, nonsense, split, vocabulary
from st3.demo.scenes import GRID, SHAPES, Scene, render

PREFIX = ("<s>", "user", ":")
QUESTIONS = {
    "describe": 1,
    "count": 1,
    "colour_at_place": 1,
    "shape_at_place": 1,
    "colour_of_shape": 2,
    "shape_of_colour": 2,
    "exists": 4,
    "where": 2,
}
# For the last stage: what is learned last gets more room.
MORE_LOOKUPS = QUESTIONS | {"colour_of_shape": 1, "shape_of_colour": 4}
LOOKUPS = ("colour_of_shape", "shape_of_colour", "exists", "where")
_IMPLEMENTATION = "st3_demo_training"
_GENERAL_LAYERS = range(2, 11)  # 0-based: the layers whose scores can decide a cut
_POINTED_LAYERS = range(3, 9)


@dataclass
class Packed:
    """The text of a batch: B rows of up to T tokens, all behind the visual tokens.

    tokens, branch, offset: int64 [B, T]; branch -1 is padding; offset counts inside the branch.
    rows, labels: where an answer token is predicted [A, 2] (row, place) and which [A].
    lookup: bool [A], the tokens that answer a look-up by content, for the log.
    last: last prompt tokens [Q, 2].
    pointed, objects: places that concern one object [M, 2] and which object [M].
    ranking: the last prompt token of the question that ranks, one for each row [B].
    """

    tokens: torch.Tensor
    branch: torch.Tensor
    offset: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    lookup: torch.Tensor
    last: torch.Tensor
    pointed: torch.Tensor
    objects: torch.Tensor
    ranking: torch.Tensor

    def to(self, device: torch.device | str) -> Packed:
        """The same on `device`."""
        return Packed(
            **{field.name: getattr(self, field.name).to(device) for field in fields(self)}
        )


def questions(
    scene: Scene, rng: np.random.Generator, mixture: Mapping[str, int] = QUESTIONS
) -> list[Question]:
    """The questions that train on one scene, captions first; sometimes a nonsense prompt.

    `mixture` says how many of each task, which should name "describe" first.
    """
    asked = []
    for task, count in mixture.items():
        asked += [q for _ in range(count) if (q := ask(task, scene, rng)) is not None]
    if rng.random() < 0.15:
        caption = asked[0].answer
        asked[0] = Question("describe", dress(nonsense(rng), rng), caption, None)
    return asked


def _objects_named(question: Question) -> list[int | None]:
    """For each answer token, the object it speaks of: the target, or the caption's next one."""
    words = split(question.answer)
    if question.task != "describe":
        return [question.target] * len(words)
    named: list[int | None] = []
    current = 0
    for word in words:
        named.append(current)
        if word in {",", "and"}:
            current += 1
    return named


def pack(asked: Sequence[Sequence[Question]], rng: np.random.Generator) -> Packed:
    """Tokenise and pack the questions of each picture."""
    ids = vocabulary()
    unknown = ids["<unk>"]
    tokens: list[list[int]] = []
    branches: list[list[int]] = []
    offsets: list[list[int]] = []
    rows, labels, lookup, last, pointed, objects, ranking = [], [], [], [], [], [], []
    for row, batch in enumerate(asked):
        line: list[int] = []
        branch: list[int] = []
        offset: list[int] = []
        ends = []
        for number, question in enumerate(batch):
            prompt = [*split(question.prompt), "assistant", ":"]
            answer = [*split(question.answer), "</s>"]
            start = len(line)
            end = start + len(prompt) - 1
            ends.append(end)
            last.append((row, end))
            named = [*_objects_named(question), None]
            for i, (word, thing) in enumerate(zip(answer, named, strict=True)):
                rows.append((row, end + i))
                labels.append(ids[word])
                lookup.append(question.task in LOOKUPS and word != "</s>")
                if thing is not None:
                    pointed.append((row, end + i))
                    objects.append(thing)
            text = prompt + answer[:-1]
            line += [ids.get(word, unknown) for word in text]
            branch += [number] * len(text)
            offset += range(len(text))
        tokens.append(line)
        branches.append(branch)
        offsets.append(offset)
        ranking.append(ends[int(rng.integers(len(ends)))])
    width = max(map(len, tokens))

    def padded(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([x + [value] * (width - len(x)) for x in lists])

    return Packed(
        tokens=padded(tokens, ids["<pad>"]),
        branch=padded(branches, -1),
        offset=padded(offsets, 0),
        rows=torch.tensor(rows),
        labels=torch.tensor(labels),
        lookup=torch.tensor(lookup),
        last=torch.tensor(last),
        pointed=torch.tensor(pointed),
        objects=torch.tensor(objects),
        ranking=torch.tensor(ranking),
    )


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
            target = self.foreground[row] & (self.owner[row] == self.packed.objects[:, None])
            self.pointed.append(_cross_entropy(log_p[:, 0], target))
        with torch.no_grad():
            lines = torch.arange(len(query))
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
    codes: Codes, scenes: list[Scene], rng: np.random.Generator, tokens: int = 80
) -> tuple[Any, ...]:
    """Inputs of `LanguageStage` with no picture: noisy codes of `tokens` random patches a scene.

    One patch in 25 tells a wrong shape, as the tower's sometimes do.
    """
    visual, places, owners, coverages = [], [], [], []
    noise = torch.Generator().manual_seed(int(rng.integers(2**40)))
    for scene in scenes:
        rendered = render(scene, rng)
        colour, shape = labels(scene, rendered.owner)
        place = torch.from_numpy(np.sort(rng.choice(GRID * GRID, tokens, replace=False)))
        coverage = torch.from_numpy(rendered.coverage).flatten()[place]
        wrong = torch.rand(tokens, generator=noise) < 0.04
        guess = torch.randint(len(SHAPES), (tokens,), generator=noise)
        told = torch.where(wrong, guess, shape[place])
        code = codes.encode(colour[place], told, coverage, place)
        visual.append(code + torch.randn(code.shape, generator=noise) * 0.2)
        places.append(place)
        owners.append(torch.from_numpy(rendered.owner).flatten()[place])
        coverages.append(coverage)
    packed = pack([questions(scene, rng) for scene in scenes], rng)
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
        keep: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss and this batch's measures.

        Args:
            visual: [B, V, WIDTH] embeddings of visual tokens.
            place: int64 [B, V], their place among the picture's 576.
            owner: int64 [B, V], the object they show.
            coverage: [B, V], how much of the patch it covers.
            packed: the questions.
            keep: visual tokens alive in each layer; None keeps all.
        """
        with place.device:  # everything made here belongs there
            return self._forward(visual, place, owner, coverage, packed, keep)

    def _forward(
        self,
        visual: torch.Tensor,
        place: torch.Tensor,
        owner: torch.Tensor,
        coverage: torch.Tensor,
        packed: Packed,
        keep: Sequence[int] | None,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        size, count = place.shape
        embed = self.decoder.embed_tokens
        prefix = self.prefix.expand(size, -1)
        hidden = torch.cat((embed(prefix), visual, embed(packed.tokens)), dim=1)
        text_start = len(PREFIX) + 576
        positions = torch.cat(
            (
                torch.arange(len(PREFIX)).expand(size, -1),
                place + len(PREFIX),
                packed.offset + text_start,
            ),
            dim=1,
        )
        common = torch.full((size, len(PREFIX) + count), -2)
        branch = torch.cat((common, packed.branch), dim=1)
        allowed = (branch[:, None, :] == -2) | (branch[:, :, None] == branch[:, None, :])
        mask = (allowed & torch.ones(allowed.shape[1:], dtype=torch.bool).tril())[:, None]
        turns = self.decoder.rotary_emb(hidden, position_ids=positions)
        observer = _AttentionLoss(packed, owner, coverage >= 0.5, visual=count)
        for number, layer in enumerate(self.decoder.layers):
            if keep is not None and keep[number] < observer.visual:
                assert observer.scores is not None
                chosen = observer.scores.topk(keep[number], dim=1).indices.sort(dim=1).values
                alive = torch.arange(hidden.shape[1]).expand(size, -1)
                first, end = len(PREFIX), len(PREFIX) + observer.visual
                index = torch.cat((alive[:, :first], chosen + first, alive[:, end:]), dim=1)
                lines = torch.arange(size)[:, None]
                hidden = hidden[lines, index]
                turns = tuple(t[lines, index] for t in turns)
                mask = mask[lines[:, None], 0, index[:, :, None], index[:, None, :]][:, None]
                observer.owner = observer.owner.gather(1, chosen)
                observer.foreground = observer.foreground.gather(1, chosen)
                observer.visual = keep[number]
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
            "token_accuracy": right.float().mean().item(),
            "lookup_accuracy": right[packed.lookup].float().mean().item(),
        }
        return loss, measures
