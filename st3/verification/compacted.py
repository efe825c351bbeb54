"""The compaction oracle: stock layers on gathered tokens, one row.

For what cannot hide a token. The state of a recurrent layer decays over whatever passes, and one
scale for all activations is that of whatever is there: trimming means that the token never reached
the layer. So the oracle feeds each stock layer what is left, from a stock cache, and picks it apart
by plain lists. Masks of the prompt, and features that a decoder adds between its layers, are those
that stock made.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from st3.inference.decoding import decode
from st3.verification.choice import Choice
from st3.verification.masked import Forced, positions_without

_WINDOW = "sliding_attention"


def compacted_logits(
    model: Any,
    decoder: Any,
    inputs: dict[str, Any],
    answer: torch.Tensor,
    plan: Any,
    visual: torch.Tensor,
    choice: Choice | None = None,
    entered: list[int] | None = None,
    embeddings: torch.Tensor | None = None,
    gone: torch.Tensor | None = None,
) -> tuple[torch.Tensor, _Left]:
    """Logits [1, T, vocabulary] of the answer [1, T], and what was left in each layer.

    Args:
        model: any that fits; it is left as it was.
        decoder: its text model.
        inputs: of one prompt.
        answer: what is said.
        plan: schedule and groups of the generation to compare with.
        visual: bool [1, n].
        choice: how tokens are chosen; by the last token's attention if None.
        entered: places of the visual tokens that a selector let in, the most important first; None
            where all enter.
        embeddings: float [1, n, d], what the decoder gets of the prompt in place of its own; None
            where no token was merged into another.
        gone: bool [1, n], tokens of the prompt that count for no position; None where all count.
    """
    forwards = _watched(model, decoder, inputs, answer, gone)
    if embeddings is not None:
        forwards[0] = (embeddings, *forwards[0][1:])
    left = _Left(plan, visual, choice or Choice(), entered)
    cache = DynamicCache(config=decoder.config)
    for number, kind in enumerate(_kinds(decoder)):
        if kind == _WINDOW:  # its own would let go of keys by their count
            cache.layers[number] = DynamicLayer()
    norm = getattr(decoder, "norm", None) or decoder.embedding_norm
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = {"": "eager"}
    try:
        logits = []
        for step, (hidden, turns, asked) in enumerate(forwards):
            if step == 0:
                last = _prompt(decoder, cache, left, hidden, turns, asked)[:, -1:]
            else:
                last = _step(decoder, cache, left, hidden, turns, step)
            logits.append(model.lm_head(norm(last))[:, 0])
    finally:
        decoder.config._attn_implementation = {"": before}
    return torch.stack(logits, 1), left


class _Left:
    """What is left of one prompt, by plain lists of places; layers count from 1.

    Attributes:
        visual: bool [1, n]. `everyone`, `text`: places of its visual tokens and of the others.
        scores: layer -> by place, what it says of the tokens alive in it.
        held: layer -> places of its keys.
    """

    def __init__(
        self, plan: Any, visual: torch.Tensor, choice: Choice, entered: list[int] | None = None
    ) -> None:
        self.plan, self.choice, self.visual = plan, choice, visual
        self.prompt = visual.shape[1]
        self.everyone: list[int] = visual[0].nonzero().flatten().tolist()
        self.text = [place for place in range(self.prompt) if place not in {*self.everyone}]
        self.entered = self.everyone if entered is None else entered[::-1]
        self.scores: dict[int, list[float]] = {}
        self.held: dict[int, list[int]] = {}
        self._alive: dict[tuple[int, int], list[int]] = {}

    def group(self, layer: int) -> Any:
        """The layers that share their tokens with this one."""
        return next(g for g in self.plan.groups if g.first <= layer <= g.last)

    def alive(self, layer: int, row: int = 0, generated: int = 0) -> list[int]:
        """Places of the visual tokens alive in a layer, the least important first."""
        group = self.group(layer)
        count = self.plan.schedule.inside.count(layer, len(self.entered), generated)
        if count == len(self.entered):
            return self.entered
        key = group.first, generated
        if key not in self._alive:
            if generated:
                pool = self.alive(layer)
            else:
                pool = self.entered if group.first == 1 else self.alive(group.first - 1)
            first = group.scored_in - self.choice.layers + 1
            said = [self.scores[n] for n in range(first, group.scored_in + 1) if n in self.scores]
            scores = [float(sum(each)) for each in zip(*said, strict=True)]
            if group.scored_in == 0:  # as they were let in, the least important first
                standing = {place: n for n, place in enumerate(self.entered)}
                scores = [float(standing.get(place, -1)) for place in range(self.prompt)]

            def told() -> list[int]:
                assert self.choice.told is not None
                return [self.everyone[n] for n in self.choice.told(group.first, 0, generated)]

            self._alive[key] = self.choice.pick(pool, scores, count, told)
        return self._alive[key]

    def see(self, layer: int, places: list[int], weights: torch.Tensor, key: torch.Tensor) -> None:
        """Take down what a layer says of the tokens at `places`, the prompt's alive in it.

        Args:
            layer: its number.
            places: of its tokens, in order.
            weights: [1, heads, m, m], attention after softmax.
            key: [1, key heads, m, head size].
        """
        said = [0.0] * self.prompt
        if self.choice.scorer in ("random", "uniform"):  # they go by the number in the prompt
            said = self.choice.score(weights, key, self.visual)[0]
        else:
            here = self.choice.score(weights, key, self.visual[:, places])[0]
            for place, score in zip(places, here, strict=True):
                said[place] = score
        self.scores[layer] = said


def _watched(
    model: Any, decoder: Any, inputs: Any, answer: torch.Tensor, gone: torch.Tensor | None
) -> list[tuple[Any, Any, Any]]:
    """What stock feeds its decoder in each forward: embeddings, rotary phases by kind, the rest."""
    fed: list[tuple[Any, dict[Any, Any], dict[str, Any]]] = []

    def enter(module: Any, args: Any, kwargs: Any) -> Any:
        if gone is not None:
            kwargs = kwargs | {"position_ids": positions_without(gone, kwargs)}
        fed.append((kwargs["inputs_embeds"], {}, kwargs))
        return args, kwargs

    def turn(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        kind = args[2] if len(args) > 2 else kwargs.get("layer_type")
        fed[-1][1][kind] = out

    handles = [
        decoder.register_forward_pre_hook(enter, with_kwargs=True),
        decoder.rotary_emb.register_forward_hook(turn, with_kwargs=True),
    ]
    try:
        decode(
            model, inputs, endless=True, max_new_tokens=answer.shape[1],
            logits_processor=[Forced(answer)],
        )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    return fed


def _prompt(
    decoder: Any, cache: Any, left: _Left, hidden: torch.Tensor, turns: Any, asked: Any
) -> torch.Tensor:
    """The prompt [1, n, d] through all layers; hidden states of what is left in the last one."""
    places = list(range(left.prompt))
    masks, features = asked.get("attention_mask"), asked.get("deepstack_visual_embeds") or ()
    for number in range(1, len(decoder.layers) + 1):
        if number == left.group(number).first:
            kept = sorted(left.text + left.alive(number))
            hidden = hidden[:, [places.index(place) for place in kept]]
            places = kept
        left.held[number] = list(places)
        phases = _phases(decoder, turns, number)
        phases = phases and tuple(turn[:, places] for turn in phases)
        mask = masks.get(_kinds(decoder)[number - 1]) if isinstance(masks, dict) else None
        hidden, weights = _run(decoder, cache, left, number, hidden, places, phases, mask)
        if number <= len(features):
            for column, place in enumerate(places):
                if place in left.everyone:
                    hidden[:, column] += features[number - 1][left.everyone.index(place)]
        if weights is not None:
            left.see(number, places, weights, cache.layers[number - 1].keys)
    return hidden


def _step(
    decoder: Any, cache: Any, left: _Left, hidden: torch.Tensor, turns: Any, step: int
) -> torch.Tensor:
    """One token [1, 1, d] through all layers, which annealing has thinned before."""
    places = [left.prompt + step - 1]
    for number, layer in enumerate(decoder.layers, 1):
        if hasattr(layer, "self_attn"):
            gone = {*left.everyone} - {*left.alive(number, generated=step)}
            held = left.held[number]
            index = [n for n, place in enumerate(held) if place not in gone]
            mine = cache.layers[number - 1]
            mine.keys, mine.values = mine.keys[:, :, index], mine.values[:, :, index]
            left.held[number] = [held[n] for n in index] + places
        phases = _phases(decoder, turns, number)
        hidden, _ = _run(decoder, cache, left, number, hidden, places, phases)
    return hidden


def _phases(decoder: Any, turns: Any, number: int) -> Any:
    return turns.get(_kinds(decoder)[number - 1], turns.get(None))


def _kinds(decoder: Any) -> list[str]:
    """Of the layers; a configuration that names none has one."""
    kinds = getattr(decoder.config, "layer_types", None)
    return list(kinds or ["full_attention"] * len(decoder.layers))


def _run(
    decoder: Any, cache: Any, left: _Left, number: int, hidden: torch.Tensor, places: list[int],
    phases: Any, whole: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """One stock layer, and its attention if it has any; `whole` is a mask of the full prompt."""
    layer, seen, handle, mask = decoder.layers[number - 1], [], None, None
    if hasattr(layer, "self_attn"):
        device = hidden.device
        behind = torch.tensor(places, device=device)[:, None]
        behind = behind - torch.tensor(left.held[number], device=device)
        unseen = behind < 0
        if _kinds(decoder)[number - 1] == _WINDOW:
            unseen = unseen | (behind >= decoder.config.sliding_window)
        mask = torch.zeros(behind.shape, dtype=hidden.dtype, device=device)
        if whole is not None:
            seen_all = whole if whole.dtype == torch.bool else whole >= 0
            unseen = ~seen_all[0, 0][places][:, left.held[number]]
        mask = mask.masked_fill(unseen, float("-inf"))[None, None]
        handle = layer.self_attn.register_forward_hook(
            lambda module, args, out: seen.append(out[1])
        )
    try:
        hidden = layer(
            hidden, position_embeddings=phases, attention_mask=mask, past_key_values=cache
        )
    finally:
        if handle is not None:
            handle.remove()
    return hidden, seen[0] if seen else None
