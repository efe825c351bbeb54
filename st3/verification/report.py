"""What was found of each method, as a table and as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from st3.tables import Table
from st3.units import si
from st3.verification.prompts import OWN

GREEN, RED = "green", "red"


@dataclass(frozen=True)
class Row:
    """One method. What was not measured is None.

    Attributes:
        method: its label.
        verdict: `green`, `red` or `not measured`.
        why: what is wrong, or why it was not measured; empty if green.
        reference: what it was compared with: stock, the masked or the compaction oracle.
        prefill_difference, step_difference: largest absolute difference of logits at the first
            token, and over the later ones; `allowed_difference`: the bound.
        same_tokens: whether the answer is stock's; asked of `none` alone.
        kept_per_layer: visual tokens alive in each layer after prefill; `kept_last_step` while the
            last token is computed.
        ties: tokens so close to a cut that the oracle took the engine's side.
        kv_bytes: live keys and values while the last token is computed, as reported;
            `kv_counted_bytes` as counted from what attention was given.
        as_it_was: whether the model was left as it was.
    """

    method: str
    verdict: str
    why: str = ""
    reference: str | None = None
    prefill_difference: float | None = None
    step_difference: float | None = None
    allowed_difference: float | None = None
    same_tokens: bool | None = None
    kept_per_layer: list[int] | None = None
    kept_last_step: list[int] | None = None
    ties: int | None = None
    kv_bytes: int | None = None
    kv_counted_bytes: int | None = None
    as_it_was: bool | None = None


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        model: what was asked for.
        family: its `model_type`; `text_model` its text model's.
        weights: `checkpoint`'s own or `random`.
        dtype, device: in what and where.
        layers: of the decoder.
        prompt: what made it; `prompt_tokens`, `visual_tokens` in it; `new_tokens` of the answer.
        bound: of differences of logits, relative to the largest logit, and at least 1 of it.
        tie_tolerance: relative distance from a cut within which either choice is right.
        rows: one a method.
        notes: what a reader must know, a sentence each.
        machine: what it was made with.
    """

    model: str
    family: str
    text_model: str
    weights: str
    dtype: str
    device: str
    layers: int
    prompt: str
    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    bound: float
    tie_tolerance: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`green` if something was measured and nothing is red."""
        verdicts = {row.verdict for row in self.rows}
        return GREEN if GREEN in verdicts and RED not in verdicts else RED

    def summary(self) -> str:
        """One line on what is red."""
        red = [row.method for row in self.rows if row.verdict == RED]
        if red:
            return f"{self.model}: red in {len(red)} of {len(self.rows)}: {', '.join(red)}"
        if self.verdict == RED:
            return f"{self.model}: nothing could be measured"
        return f"{self.model}: green"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"verdict": self.verdict, **dataclasses.asdict(self)}

    def json(self) -> str:
        """One document."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"

    def tables(self) -> list[Table]:
        """The findings, and what is not green in words."""
        weights = "random weights" if self.weights == "random" else "its own weights"
        if self.weights != "random" and not self.prompt.startswith(OWN):
            weights += ", random text"
        title = f"{self.model}: {self.family}, {weights}, {self.dtype} on {self.device}"
        heads = (
            "method", "verdict", "logits, prefill", "logits, steps", "allowed", "kept at last",
            "ties", "KV cache",
        )  # fmt: skip
        found = [Table(title, heads, tuple(_cells(row) for row in self.rows))]
        said = tuple((row.method, f"{row.verdict}: {row.why}") for row in self.rows if row.why)
        if said:
            found.append(Table("What is not green", ("method", "why"), said))
        return found

    def explained(self) -> str:
        """What the figures are, and how far they reach, in a few sentences."""
        return (
            f"Prompt: {self.visual_tokens} visual tokens of {self.prompt_tokens} ({self.prompt}); "
            f"{self.new_tokens} new tokens, {self.layers} layers. Logits: largest absolute "
            f"difference to stock (none) or the oracle; allowed: {self.bound:g} of the largest "
            "logit. Kept at last: visual tokens in the last layer, after prefill and in the last "
            f"step. Ties: scores within {self.tie_tolerance:g} of a cut, relative, where the "
            "oracle took the engine's choice. KV cache: in the last step, as reported and as "
            "counted."
        )

    def markdown(self) -> str:
        """The tables, and the notes below."""
        parts = [table.markdown() for table in self.tables()]
        return "\n".join([*parts, *(f"{note}\n" for note in (*self.notes, self.explained()))])


def _cells(row: Row) -> tuple[str, ...]:
    kept = "-"
    if row.kept_per_layer and row.kept_last_step:
        kept = f"{row.kept_per_layer[-1]}, {row.kept_last_step[-1]}"
    figures = (row.prefill_difference, row.step_difference, row.allowed_difference)
    return (
        row.method,
        row.verdict,
        *("-" if value is None else f"{value:.1e}" for value in figures),
        kept,
        "-" if row.ties is None else str(row.ties),
        "-" if row.kv_bytes is None else si(row.kv_bytes, "B"),
    )
