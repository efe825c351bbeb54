"""Conversations: how a test holds one with a model, and what an oracle says of it.

The oracle runs stock transformers once over all that was said, at full length and with all the
pictures, and hides from each query what each turn's schedule has dropped by then. Which tokens go
follows from the attention of that run: of the row that ends the turn. Layers before the first cut
are annealed by scores of a layer above, so it runs once more for each turn, with what it has found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from conftest import greedy
from families.encoded import encoder_output
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.verification.choice import Choice
from st3.verification.masked import Hidden

_NAME = "st3_talk_oracle"
_RUNS: list[Whole] = []
_KINDS = ("token_type_ids", "mm_token_type_ids")
SPOKEN = list(range(93, 100))
"""Placeholders, which no answer says."""


@dataclass
class Talk:
    """A conversation so far.

    Attributes:
        model: its model. `make`: rows of a turn -> its inputs.
        inputs: all that was fed or will be, in the form of one prompt; without what was answered
            last.
        said: logits [B, new, vocabulary] of each answer.
        begins, ends: of each turn's forward, its first token's place and its last one's.
        begun: tokens generated and fed before it.
    """

    model: Any
    make: Any
    inputs: dict[str, Any] = field(default_factory=dict)
    said: list[torch.Tensor] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    cache: Any = None
    _pictures: list[list[dict[str, Any]]] = field(default_factory=list)

    def say(self, rows: Sequence[str], new: int = 5) -> None:
        """A turn, and its answer of `new` tokens."""
        number = len(self.said)
        turn = self.make(self.model, rows)
        counts = [row.count("I") + row.count("V") for row in rows]
        pictures = _each_picture(turn, [kind for row in rows for kind in row], number)
        if not self._pictures:
            self._pictures = [[] for _ in rows]
        spare = iter(pictures)
        for row, count in zip(self._pictures, counts, strict=True):
            row += [next(spare) for _ in range(count)]
        before = self.inputs
        words = {
            key: torch.cat((before[key], turn[key]), 1) if before else turn[key]
            for key in ("input_ids", "attention_mask", *_KINDS)
            if key in turn
        }
        self.inputs = words | _together([p for row in self._pictures for p in row])
        length = self.inputs["input_ids"].shape[1]
        self.begins.append(self.cache.get_seq_length() if self.cache is not None else 0)
        self.ends.append(length - 1)
        self.begun.append(self.begun[-1] + self._answered - 1 if self.begun else 0)
        self._answered = new
        positions = self.model._prepare_position_ids_for_generation(
            self.inputs["input_ids"], {**self.inputs}
        )
        asked = words | _together(pictures) | {"position_ids": positions}
        out = greedy(self.model, asked, new, suppress_tokens=SPOKEN, past_key_values=self.cache)
        self.cache = out.past_key_values
        self.said.append(torch.stack(out.logits, 1))
        fresh = out.sequences[:, length:]
        self.inputs["input_ids"] = out.sequences
        self.inputs["attention_mask"] = torch.cat(
            (words["attention_mask"], torch.ones_like(fresh)), 1
        )
        for key in _KINDS:
            if key in self.inputs:
                self.inputs[key] = torch.cat((self.inputs[key], torch.zeros_like(fresh)), 1)

    _answered: int = 0

    def fed(self) -> dict[str, Any]:
        """All that a model was fed: the last token of the last answer was not."""
        names = ("input_ids", "attention_mask", *_KINDS)
        return {key: x[:, :-1] if key in names else x for key, x in self.inputs.items()}

    def visual(self, turn: int) -> torch.Tensor:
        """bool [B, n]: the visual tokens of a turn, among all that was fed."""
        fed = self.fed()
        found = visual_mask(find_parts(self.model).visual_ids, fed["input_ids"])
        found = found & fed["attention_mask"].bool()
        place = torch.arange(found.shape[1])
        return found & (place >= self.begins[turn]) & (place <= self.ends[turn])


@dataclass
class Whole:
    """What one run over a conversation hides; layers count from 1."""

    talk: Talk
    hidden: list[Hidden]
    times: torch.Tensor
    begins: list[int]

    def allowed(self, layer: int, row: int) -> torch.Tensor:
        """bool [n, n]: which query sees which key, as far as trimming goes."""
        count = len(self.times)
        seen = torch.ones(count, count, dtype=torch.bool)
        for turn, hidden in enumerate(self.hidden):
            group = next(g for g in hidden.groups if g.first <= layer <= g.last)
            if not hidden.everyone(row) or group.scored_in not in hidden.seen:
                continue  # in the first run nobody knows yet
            begin, begun = self.begins[turn], self.talk.begun[turn]
            for t in sorted({*self.times[begin:].tolist()}):
                gone = hidden.gone(layer, row, t - begun)
                now = (self.times == t) & (torch.arange(count) >= begin)
                seen[now.nonzero(), torch.tensor(gone, dtype=torch.long)] = False
        return seen


def oracle(
    talk: Talk, plans: Sequence[Any], scorer: str = "last-token"
) -> tuple[list[torch.Tensor], list[Hidden]]:
    """Logits [B, new, vocabulary] of each answer, and what each turn kept.

    Args:
        talk: as it was held.
        plans: what each turn was trimmed by: a schedule, and groups of layers.
        scorer: by which tokens are chosen.
    """
    model, fed = talk.model, talk.fed()
    parts = find_parts(model)
    count = fed["input_ids"].shape[1]
    # With grids positions have three axes, and the model makes them.
    if not {"image_grid_thw", "video_grid_thw"} & {*fed}:
        fed["position_ids"] = (fed["attention_mask"].cumsum(1) - 1).clamp_min(0)
    times = torch.zeros(count, dtype=torch.long)
    for begin, end, begun in zip(talk.begins, talk.ends, talk.begun, strict=True):
        times[begin : end + 1] = begun
        times[end + 1 :] = begun + torch.arange(1, count - end)
    turns = range(len(talk.said))
    hidden = [
        Hidden(plans[n].schedule, plans[n].groups, talk.visual(n), parts.lenders, Choice(scorer))
        for n in turns
    ]
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    config = parts.decoder.config
    before = config._attn_implementation
    config._attn_implementation = {"": _NAME}
    _RUNS.append(Whole(talk, hidden, times, talk.begins))
    try:
        for _ in range(len(turns) + 1):
            for each in hidden:
                each._alive.clear()
            with torch.no_grad():
                logits = model(**fed, use_cache=False).logits
    finally:
        config._attn_implementation = {"": before}
        _RUNS.pop()
    answers = [
        logits[:, end : end + said.shape[1]] for end, said in zip(talk.ends, talk.said, strict=True)
    ]
    return answers, hidden


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float,
    softcap: float | None = None, **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    whole, layer = _RUNS[-1], module.layer_idx + 1
    rows, heads, count, _size = query.shape
    key, value = (x.repeat_interleave(heads // key.shape[1], 1) for x in (key, value))
    logits = query @ key.transpose(2, 3) * scaling
    if softcap:
        logits = (logits / softcap).tanh() * softcap
    allowed = torch.stack([whole.allowed(layer, row) for row in range(rows)])[:, None]
    allowed = (allowed & mask) | torch.eye(count, dtype=torch.bool)
    weights = logits.masked_fill(~allowed, float("-inf")).softmax(-1)
    for hidden, end in zip(whole.hidden, whole.talk.ends, strict=True):
        to = slice(0, end + 1)
        hidden.seen[layer] = hidden.choice.score(
            weights[:, :, to, to], key[:, :, to], hidden.visual[:, to]
        )
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _mask(*args: Any, **kwargs: Any) -> Any:
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


def _each_picture(inputs: dict[str, Any], kinds: Sequence[str], turn: int) -> list[dict[str, Any]]:
    """What stands for each picture or video, different in each turn."""
    given = {
        key: value for key, value in inputs.items()
        if key not in ("input_ids", "attention_mask", *_KINDS)
    }  # fmt: skip
    films = {key: given.pop(key) for key in [*given] if "video" in key}
    of_kind = {
        "I": iter(_apart(given, kinds.count("I"), "pixel_values", "image_grid_thw", turn)),
        "V": iter(_apart(films, kinds.count("V"), "pixel_values_videos", "video_grid_thw", turn)),
    }
    return [next(of_kind[kind]) for kind in kinds if kind in of_kind]


def _apart(
    given: dict[str, Any], count: int, what: str, grid: str, turn: int
) -> list[dict[str, Any]]:
    if not count:
        return []
    sizes = [1] * count
    if "mm_encoder_outputs" in given:
        what = "mm_encoder_outputs"
        given[what] = torch.stack([*given[what]["image"].pooler_output])
    elif grid in given and len(given[what]) > count:  # patches, and not features of pictures
        sizes = given[grid].prod(-1).tolist()
    different = given.pop(what).roll(turn, -1) * (1 + 0.2 * turn)
    rest = [{key: value[n : n + 1] for key, value in given.items()} for n in range(count)]
    return [{what: part, **more} for part, more in zip(different.split(sizes), rest, strict=True)]


def _together(pictures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for p in pictures for key in p)
    found: dict[str, Any] = {key: torch.cat([p[key] for p in pictures if key in p]) for key in keys}
    if "mm_encoder_outputs" in found:
        found["mm_encoder_outputs"] = {"image": encoder_output((*found["mm_encoder_outputs"],))}
    return found
