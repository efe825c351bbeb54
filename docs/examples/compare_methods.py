"""Compare methods on your own questions: what stays equal to the untrimmed model, at what cost.

    python docs/examples/compare_methods.py            # the demo model, about its own scenes
    python docs/examples/compare_methods.py questions.jsonl --model 7b --methods st3,fastv,vtw

A line of `questions.jsonl` has `image` (a path beside the file) and `prompt`. No labels are needed:
*same* is the share of answers that are the untrimmed model's, word for word. Questions without such
an answer, as about a picture that cannot be read, are left out and named on standard error. MACs
and KV cache after prefill are counted for a prompt as long as the first; nothing is timed here.
`st3 profile` times; `st3 sweep` does this over a whole grid, with intervals, and goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import st3
from st3.batch.row import Result
from st3.demo.held_out import held_out
from st3.methods import parse_methods
from st3.profiling import Workload, profile

NEW_TOKENS = 32


def main() -> None:
    """A line for each method."""
    parser = argparse.ArgumentParser(description="What stays equal, and what it costs.")
    parser.add_argument("questions", type=Path, nargs="?")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--methods", default="st3,fastv,vtw,divprune:keep=25%")
    given = parser.parse_args()

    rows = read(given.questions) if given.questions else own_questions()
    model, processor = st3.load(given.model)
    methods = parse_methods(f"none,{given.methods}")
    answers = {
        label: list(st3.answer_all(model, processor, rows, method, max_new_tokens=NEW_TOKENS))
        for label, method in methods.items()
    }
    whole = [one for one in answers["none"] if one.error is None]
    for one in answers["none"]:
        if one.error is not None:
            print(f"question {one.number + 1}: {one.error}", file=sys.stderr)
    if not whole:
        sys.exit("no question could be answered")
    work = as_long_as(whole[0])
    report = profile(given.model, model.config, methods, [work], dtype=model.dtype)
    costs = {row.method: row for row in report.rows}

    print(f"{len(whole)} questions, {work.visual} visual tokens in the first")
    print(f"{'method':<20} {'same':>7} {'kept':>7} {'MACs':>7} {'KV':>7}")
    for label, found in answers.items():
        same = [found[one.number].answer == one.answer for one in whole]
        kept = [one.kept_visual_tokens / one.visual_tokens for one in found if one.visual_tokens]
        cost = costs[label]
        shares = (mean(same), mean(kept), cost.prefill_macs_ratio, cost.kv_ratio)
        print(f"{label:<20} " + " ".join("      -" if x is None else f"{x:>7.1%}" for x in shares))


def mean(values: list[Any]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None


def as_long_as(result: Result) -> Workload:
    """A prompt of as many tokens."""
    assert result.prompt_tokens is not None
    visual = result.visual_tokens or 0
    return Workload(visual=visual, text=result.prompt_tokens - visual, new=NEW_TOKENS)


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file, their pictures beside it."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [row | {"image": str(path.parent / row["image"])} for row in found]


def own_questions() -> list[dict[str, Any]]:
    """Three questions about each of eight scenes that the demo was never trained on."""
    return [
        {"image": asked.picture, "prompt": asked.question.prompt}
        for asked in held_out(scenes=8, seed=0, tasks=["describe", "count", "where"])
    ]


if __name__ == "__main__":
    main()
