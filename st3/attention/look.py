"""One look at a model and a picture: capture, measures, verdict, as one JSON-able analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from st3.attention import measures as m
from st3.attention.capture import Capture, capture
from st3.inference.device_map import home
from st3.inference.generation import find_places, prepare
from st3.inference.places import Places
from st3.inference.visuals import Visual
from st3.machine import describe_machine
from st3.methods import Method, make_method

THRESHOLD = 0.05
"""A layer that pays the picture less of its attention than this could do without it (ours)."""
TOP = 0.1
"""Overlap of neighbouring layers is that of this share of the visual tokens (ours)."""


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        model, prompt, answer: what was asked of whom, and what it said untrimmed.
        method: whose survivors are shown.
        places: where the visual tokens lie.
        untrimmed: attention with nothing dropped.
        trimmed: attention under the method; of the prompt alone, or of a whole answer.
        trimmed_answer: what it said trimmed, if it was asked for a whole answer.
        tokens: the new tokens as text, untrimmed and trimmed.
        machine: see `st3.machine`.
    """

    model: str
    prompt: str
    answer: str
    method: Method
    places: Places
    untrimmed: Capture
    trimmed: Capture
    trimmed_answer: str | None
    tokens: tuple[list[str], list[str]]
    machine: dict[str, Any]

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.untrimmed.prompt)

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return int(self.untrimmed.prompt.shape[1])


def look(
    name: str,
    model: Any,
    processor: Any,
    visual: Visual,
    prompt: str,
    method: Method,
    *,
    new_tokens: int = 32,
    compare: bool = False,
) -> Look:
    """Ask about pictures or a video, untrimmed, and record attention; and see what `method` keeps.

    Args:
        name: of the model, for titles.
        model, processor: from `st3.load`.
        visual: a picture, several, or a `Clip` of a video; RGB.
        prompt: the question.
        method: whose survivors are wanted.
        new_tokens: at most so many.
        compare: let it answer trimmed as well.

    Raises:
        ValueError: see `st3.inference.generation.prepare`, `capture` and `find_places`.
    """
    places = find_places(model, processor, visual, prompt)  # first: it may be refused
    inputs = prepare(model, processor, visual, prompt)
    untrimmed = capture(model, inputs, make_method("none"), new_tokens=new_tokens)
    trimmed = capture(model, inputs, method, new_tokens=new_tokens if compare else 1)
    texts = [
        [processor.tokenizer.decode([token]) for token in found.answer]
        for found in (untrimmed, trimmed)
    ]
    answers = [
        processor.tokenizer.decode(found.answer, skip_special_tokens=True).strip()
        for found in (untrimmed, trimmed)
    ]
    return Look(
        model=name,
        prompt=prompt,
        answer=answers[0],
        method=method,
        places=places,
        untrimmed=untrimmed,
        trimmed=trimmed,
        trimmed_answer=answers[1] if compare else None,
        tokens=(texts[0], texts[1]),
        machine=describe_machine(home(model), model.dtype),
    )


def analyse(seen: Look) -> dict[str, Any]:
    """The measures as a JSON document, without the files.

    `layers` is of the untrimmed model's last prompt token, mean over heads, but for `kept` and
    `kept_share`: how many visual tokens the method keeps in the layer, and which share of the
    untrimmed visual attention those would hold.
    """
    found = layer_measures(seen.untrimmed)
    kept = [seen.trimmed.session.kept(layer) for layer in range(1, seen.layers + 1)]
    held = m.held_by(_part(seen.untrimmed), kept)
    for layer, tokens, share in zip(found, kept, held, strict=True):
        layer |= {"kept": len(tokens), "kept_share": share}
    document: dict[str, Any] = {
        "model": seen.model,
        "prompt": seen.prompt,
        "answer": seen.answer,
        "method": seen.method.name,
        "settings": seen.method.settings(seen.layers),
        "visual_tokens": int((seen.untrimmed.kinds == m.VISUAL).sum()),
        "layers": found,
        "generated": _over_tokens(seen.untrimmed, seen.tokens[0]),
        "verdict": _verdict(found, seen),
        "machine": seen.machine,
    }
    if seen.trimmed_answer is not None:
        document["trimmed"] = {
            "answer": seen.trimmed_answer,
            "same_answer": seen.trimmed_answer == seen.answer,
            "layers": layer_measures(seen.trimmed),
            "generated": _over_tokens(seen.trimmed, seen.tokens[1]),
        }
    return document


def layer_measures(found: Capture) -> list[dict[str, Any]]:
    """One dict a layer; `heads` has the same for each of its heads."""
    part, by_head = _part(found), m.visual_part(found.prompt, found.kinds)
    shares = m.shares(found.prompt, found.kinds)
    top = top_count(part.shape[-1])
    likeness, overlap = m.similarity(part), m.top_overlap(part, top)
    rows = []
    for n in range(len(part)):
        kinds = shares[n].mean(0)
        rows.append(
            {
                "layer": n + 1,
                "visual_share": float(kinds[m.VISUAL]),
                "shares": {kind: float(x) for kind, x in zip(m.KINDS, kinds, strict=True)},
                "tokens_for_90pct": int(m.tokens_for(part[n])),
                "entropy": float(m.entropy(part[n])),
                "similarity_to_previous": float(likeness[n, n - 1]) if n else None,
                "topk_overlap": float(overlap[n, n - 1]) if n else None,
                "heads": [
                    {
                        "head": h + 1,
                        "visual_share": float(shares[n, h, m.VISUAL]),
                        "tokens_for_90pct": int(m.tokens_for(by_head[n, h])),
                        "entropy": float(m.entropy(by_head[n, h])),
                    }
                    for h in range(by_head.shape[1])
                ],
            }
        )
    return rows


def top_count(visual: int) -> int:
    """How many tokens `topk_overlap` compares."""
    return max(1, round(TOP * visual))


def sentences(document: dict[str, Any]) -> list[str]:
    """The verdict, to read."""
    verdict, layers = document["verdict"], len(document["layers"])
    start = verdict["negligible_from"]
    if start is None:
        first = (
            "There is no layer from which on the picture could be dropped whole: even the last one "
            f"gives it {document['layers'][-1]['visual_share']:.1%} of its attention (less than "
            f"{verdict['threshold']:.0%} would count as none)."
        )
    else:
        first = (
            f"From layer {start} of {layers} on every layer gives the picture less than "
            f"{verdict['threshold']:.0%} of its attention: from there on it could be dropped whole."
        )
    worst = verdict["worst_kept_layer"]
    return [
        first,
        f"What {document['method']} keeps holds {verdict['mean_kept_share']:.1%} of the visual "
        f"attention on average over layers, and least in layer {worst}: "
        f"{verdict['worst_kept_share']:.1%} of it in {document['layers'][worst - 1]['kept']} of "
        f"{document['visual_tokens']} tokens.",
    ]


def _part(found: Capture) -> torch.Tensor:
    return m.visual_part(found.prompt.mean(1), found.kinds)


def _over_tokens(found: Capture, texts: list[str]) -> list[dict[str, Any]]:
    """Attention by kind, mean over layers and heads, while each new token was computed."""
    rows = found.shares.mean((1, 2))
    return [
        {"token": n, "text": text}
        | {kind: float(share) for kind, share in zip(m.KINDS, row, strict=True)}
        for n, (text, row) in enumerate(zip(texts, rows, strict=True), start=1)
    ]


def _verdict(layers: list[dict[str, Any]], seen: Look) -> dict[str, Any]:
    worst = min(layers, key=lambda layer: layer["kept_share"])
    return {
        "threshold": THRESHOLD,
        "negligible_from": m.negligible_from(
            [layer["visual_share"] for layer in layers], THRESHOLD
        ),
        "mean_kept_share": sum(layer["kept_share"] for layer in layers) / len(layers),
        "worst_kept_layer": worst["layer"],
        "worst_kept_share": worst["kept_share"],
        "top": TOP,
    }
