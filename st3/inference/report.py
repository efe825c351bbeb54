"""An answer as JSON and as lines to read: what `st3 run` prints."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from transformers import PreTrainedModel

from st3.engine.session import TrimSession
from st3.inference.device_map import home
from st3.inference.generation import Answer
from st3.inference.weights import live_bytes
from st3.machine import describe_machine
from st3.units import si


def describe(answer: Answer, name: str, model: PreTrainedModel, *, prompt: str) -> dict[str, Any]:
    """The JSON document of one trimmed answer; the keys of DESIGN section 6 are stable.

    `kv_cache.bytes` is what lives at the end of prefill; `mean_bytes`, `peak_bytes` and
    `final_bytes` are over the decode, `allocated_bytes` counts free slots too.
    """
    session = answer.session
    assert session is not None
    timing = answer.timing
    after_prefill, mean = _kv_ratios(answer)
    return {
        "answer": answer.text,
        "model": name,
        "method": session.method.name,
        "visual_tokens": {
            "total": session.visual_tokens[0],
            "kept_per_layer": session.kept_per_layer(),
        },
        "selection": selection_of(session),
        "kv_cache": {
            "bytes": session.kv_bytes[0],
            "untrimmed_bytes": session.untrimmed_kv_bytes[0],
            "ratio": after_prefill,
            "mean_bytes": sum(session.kv_bytes) / len(session.kv_bytes),
            "mean_ratio": mean,
            "peak_bytes": max(session.kv_bytes),
            "final_bytes": session.kv_bytes[-1],
            "allocated_bytes": session.allocated_kv_bytes,
        },
        "timing": {
            "ttft_ms": timing.ttft_ms,
            "tpot_ms": timing.tpot_ms,
            "total_ms": timing.total_ms,
        },
        "new_tokens": answer.new_tokens,
        "prompt": prompt,
        "prompt_tokens": answer.prompt_tokens,
        "settings": session.method.settings(session.layers),
        "weights_bytes": live_bytes(model),
        "ranks": 1 if session.plan.ranks is None else session.plan.ranks.size,
        "machine": describe_machine(home(model), model.dtype),
    }


def selection_of(session: TrimSession) -> dict[str, Any] | None:
    """What was chosen before the decoder, and what the method did there otherwise; None if none.

    Tokens of a picture, tile or video count from 0 in each.
    """
    if session.plan.selector is None:
        return None
    record = session.record
    record.check_choices()
    parts, inside = record.prompt.parts[0], record.turns[0].alive(1, row=0, generated=0)
    sizes = [part if isinstance(part, int) else part.tokens for part in parts]
    ends = [*itertools.accumulate(sizes, initial=0)]
    which = [
        [number - first for number in inside if first <= number < end]
        for first, end in itertools.pairwise(ends)
    ]
    return {
        "method": session.plan.selector.name,
        "entered": len(inside),
        "pictures": sizes,
        "entered_per_picture": [len(tokens) for tokens in which],
        "entered_tokens": which,
        "notes": list(record.notes),
    }


def summary(answer: Answer) -> str:
    """One line about one cold run: tokens, TTFT, tokens per second, the KV cache's share."""
    parts = [
        f"one cold run: {answer.new_tokens} token{'s' if answer.new_tokens != 1 else ''}"
        f" in {answer.timing.total_ms / 1000:.2f} s",
        f"TTFT {answer.timing.ttft_ms:.0f} ms",
        f"{answer.tokens_per_second:.1f} tok/s",
        f"KV cache at {_kv_ratios(answer)[0]:.0%}",
    ]
    return " · ".join(parts)


def more_than_stock(answer: Answer) -> str | None:
    """Why the KV cache is larger than stock's, if it is, in a sentence."""
    if _kv_ratios(answer)[0] <= 1:
        return None
    return (
        "the KV cache is larger than untrimmed: layers with a sliding window hold only the last "
        "tokens of a prompt, and this method keeps visual tokens by importance instead"
    )


def describe_turn(answer: Answer, number: int) -> dict[str, Any]:
    """The JSON document of a turn of a conversation, `number` from 1, once it is answered.

    `kept_per_layer` and `kv_cache` are what is alive then, of all turns so far.
    """
    session = answer.session
    assert session is not None
    ours, theirs = session.kv_bytes[-1], session.untrimmed_kv_bytes[-1]
    return {
        "turn": number,
        "answer": answer.text,
        "new_tokens": answer.new_tokens,
        "context_tokens": answer.prompt_tokens + answer.new_tokens,
        "visual_tokens": {
            "total": session.visual_tokens[0],
            "kept_per_layer": session.kept_per_layer(0, session.generated),
        },
        "kv_cache": {"bytes": ours, "untrimmed_bytes": theirs, "ratio": ours / theirs},
        "timing": dataclasses.asdict(answer.timing),
    }


def turn_summary(answer: Answer) -> str:
    """The same in a line."""
    told = describe_turn(answer, 0)
    visual, cache = told["visual_tokens"], told["kv_cache"]
    kept = visual["kept_per_layer"]
    parts = [
        f"{answer.new_tokens} token{'s' * (answer.new_tokens != 1)}, "
        f"{answer.tokens_per_second:.1f} tok/s",
        f"TTFT {answer.timing.ttft_ms:.0f} ms",
        f"context {told['context_tokens']} tokens",
        f"visual tokens kept {kept[0]} of {visual['total']} in layer 1, {kept[-1]} in the last",
        f"KV cache {si(cache['bytes'], 'B')}, {cache['ratio']:.0%} of untrimmed",
    ]
    if not visual["total"]:
        del parts[3]
    if cache["ratio"] > 1:
        parts[-1] += " (sliding windows hold only the last tokens, this method by importance)"
    return " · ".join(parts)


def compare(answer: Answer, baseline: Answer) -> list[tuple[str, str, str]]:
    """Rows (label, trimmed, untrimmed) of the comparison."""
    same = answer.text == baseline.text
    answers = ("as above", "the same") if same else (answer.text, baseline.text)
    rows = [("answer", *answers)]
    measures = (
        ("tokens", lambda a: str(a.new_tokens)),
        ("TTFT", lambda a: _ms(a.timing.ttft_ms)),
        ("TPOT", lambda a: _ms(a.timing.tpot_ms)),
        ("speed", lambda a: f"{a.tokens_per_second:.1f} tok/s"),
        ("KV cache after prefill", _kv_after_prefill),
        ("KV cache on average", lambda a: f"{_kv_ratios(a)[1]:.1%}"),
    )
    return rows + [(label, measure(answer), measure(baseline)) for label, measure in measures]


def _ms(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f} ms"


def _kv_ratios(answer: Answer) -> tuple[float, float]:
    """The KV cache's share of untrimmed at the end of prefill, and on average over the answer."""
    session = answer.session
    assert session is not None
    ours, theirs = session.kv_bytes, session.untrimmed_kv_bytes
    return ours[0] / theirs[0], sum(ours) / sum(theirs)


def _kv_after_prefill(answer: Answer) -> str:
    assert answer.session is not None
    return f"{si(answer.session.kv_bytes[0], 'B')}, {_kv_ratios(answer)[0]:.1%}"
