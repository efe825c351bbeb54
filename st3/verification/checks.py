"""The checks: `none` is stock, every method is its oracle, and the model stays as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from st3.engine.session import TrimSession
from st3.engine.trim import trim
from st3.families.parts import Parts, find_parts
from st3.inference.decoding import decode
from st3.inference.suits import looks_at_tower, suits
from st3.methods import Method
from st3.methods.base import Untrimmed
from st3.tables import NOT_MEASURED
from st3.verification.choice import SCORERS, Choice
from st3.verification.compacted import compacted_logits
from st3.verification.footprint import checksum, differences, footprint
from st3.verification.masked import Hidden, masked_logits
from st3.verification.prompts import Question, special_ids
from st3.verification.report import GREEN, RED, Row

BOUNDS = {
    torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1,
}  # fmt: skip
"""Of the largest difference of logits, as a share of the largest logit, or of 1 if that is less."""
TIES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative distance of two scores that rounding may turn."""
OnMethod = Callable[[str], None]


@dataclass(frozen=True)
class _Stock:
    """What transformers itself says: ids [1, T], logits [1, T, vocabulary], bytes of a token."""

    answer: torch.Tensor
    logits: torch.Tensor
    token_bytes: dict[int, int]


class Verifier:
    """One model and one prompt.

    Args:
        model: a live one that fits.
        question: a prompt that it takes.
        new: tokens to generate, at least 2.
    """

    def __init__(self, model: Any, question: Question, new: int) -> None:
        self.model, self.question, self.new = model, question, new
        self.parts: Parts = find_parts(model)
        self.prompt = question.visual.shape[1]
        self.visual_tokens = int(question.visual.sum())
        self._sum = checksum(model)
        self.stock = self._ask_stock()

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        found: torch.dtype = self.model.dtype
        return found

    def rows(
        self, methods: Mapping[str, Method], on_method: OnMethod = lambda _: None
    ) -> list[Row]:
        """A row for every method, by its label."""
        found = []
        for label, method in methods.items():
            on_method(label)
            found.append(self.row(label, method))
        if checksum(self.model) != self._sum and found:
            why = "the numbers of the weights are not what they were before all this"
            found[-1] = replace(found[-1], verdict=RED, why=_join(found[-1].why, why))
        return found

    def row(self, label: str, method: Method) -> Row:
        """Run one method and compare it; whatever it raises makes the row red."""
        before = footprint(self.model)
        try:
            row = self._compare(label, method)
        except Exception as error:  # a broken engine may raise anything
            what = " ".join(f"{type(error).__name__} {error}".split())[:300]
            row = Row(label, RED, f"it failed: {what}")
        left = differences(before, footprint(self.model))
        if left:
            why = _join(row.why, f"the model is not as it was: {left}")
            row = replace(row, verdict=RED, why=why)
        return replace(row, as_it_was=not left)

    def _compare(self, label: str, method: Method) -> Row:
        if method.selector is not None and method.selector.spares == "pictures":
            return Row(label, NOT_MEASURED, "it goes by what moves, and the picture is a still one")
        if method.selector is not None:
            fits, why = suits(lambda: method, self.model.config)
            if not fits:
                return Row(label, NOT_MEASURED, why)
            if self.question.encoded and looks_at_tower(method.selector):
                return Row(label, NOT_MEASURED, "it looks at the tower, and no picture was taken")
        counted = [0] * self.new
        with trim(self.model, method) as session:
            session.observer = self._counter(session, counted)
            ours = self._ask()
            record, reported = session.record, list(session.kv_bytes)
            session.observer = None
            cache = session.cache
            live = None if cache is None else cache.live_bytes
        answer, logits = ours.sequences[:, self.prompt :], torch.stack(ours.logits, 1)
        if record.blended:
            return Row(label, NOT_MEASURED, "no oracle knows what is merged in the decoder")
        kept = [session.kept_per_layer(0, t) for t in range(self.new)]
        row = Row(
            label, GREEN, kept_per_layer=kept[0], kept_last_step=kept[-1],
            kv_bytes=reported[-1], kv_counted_bytes=counted[-1],
        )  # fmt: skip
        untrimmed = isinstance(method, Untrimmed)
        if not untrimmed and min(map(min, kept)) == self.visual_tokens:
            return replace(
                row, verdict=NOT_MEASURED,
                why=f"it trims none of {self.visual_tokens} visual tokens in {len(kept[0])} layers "
                f"and {self.new} new tokens",
            )  # fmt: skip
        wrong = self._miscounted(reported, counted, live)
        if untrimmed:
            row, off = self._beside_stock(row, answer, logits)
        else:
            row, off = self._beside_oracle(row, method, record.plan, session, answer, logits)
        wrong = [*off, *wrong]
        return replace(row, verdict=RED if wrong else GREEN, why="; ".join(wrong))

    def _beside_stock(
        self, row: Row, answer: torch.Tensor, logits: torch.Tensor
    ) -> tuple[Row, list[str]]:
        same = answer.eq(self.stock.answer)[0]
        alike = int(same.long().cumprod(0).sum())  # tokens before the first that differs
        row, wrong = self._distance(row, logits[:, : alike + 1], self.stock.logits[:, : alike + 1])
        row = replace(row, reference="stock", same_tokens=bool(same.all()), ties=0)
        if not row.same_tokens:
            at = self.stock.logits[0, alike]
            margin = float(at[self.stock.answer[0, alike]] - at[answer[0, alike]])
            if not wrong and 0 <= margin <= float(row.allowed_difference or 0):
                return replace(row, ties=1), []
            wrong.insert(0, f"token {alike + 1} of the answer is not stock's")
        return row, wrong

    def _beside_oracle(
        self, row: Row, method: Method, plan: Any, session: TrimSession, answer: torch.Tensor,
        logits: torch.Tensor,
    ) -> tuple[Row, list[str]]:  # fmt: skip
        inputs, visual, parts = self.question.inputs, self.question.visual, self.parts
        numbers = visual[0].nonzero().flatten().tolist()
        entered = None
        if plan.selector is not None:  # whose choice the oracle takes as it is
            entered = [numbers[n] for n in session.record.turns[0].entered(0)]
        gone = None
        if entered is not None and getattr(method, "positions", "original") == "compact":
            gone = visual.clone()
            gone[0, entered] = False
        # A score that the oracles do not know is taken as it is, too.
        told = method.scorer not in SCORERS and plan.selector is None
        choice = Choice(
            method.scorer if method.scorer in SCORERS else "last-token",
            told=lambda layer, row, generated: session.kept(layer, row, generated),
            tolerance=math.inf if told else TIES[self.dtype],
        )
        said: Any
        with torch.no_grad():
            if parts.recurrent:
                want, said = compacted_logits(
                    self.model,
                    parts.decoder,
                    inputs,
                    answer,
                    plan,
                    visual,
                    choice,
                    entered,
                    session.record.turns[0].merged,
                    gone,
                )
            else:
                said = Hidden(plan.schedule, plan.groups, visual, parts.lenders, choice)
                said.entered = None if entered is None else [entered]
                said.uncounted = gone
                said.embeddings = session.record.turns[0].merged
                said.features = session.record.turns[0].features
                want = masked_logits(self.model, parts.decoder, inputs, answer, said)
        row, wrong = self._distance(row, logits, want)
        standing = {place: n for n, place in enumerate(numbers)}
        for step in range(self.new):
            for layer in range(1, plan.layers + 1):
                alive = sorted(standing[place] for place in said.alive(layer, 0, step))
                if alive != session.kept(layer, 0, step):
                    wrong.append(
                        f"layer {layer} keeps other visual tokens than the oracle after {step} "
                        "generated ones"
                    )
                    break
            else:
                continue
            break
        oracle = "compaction oracle" if parts.recurrent else "masked oracle"
        if told:
            return replace(row, reference=f"{oracle}, told the choice", ties=0), wrong
        return replace(row, reference=oracle, ties=choice.ties), wrong

    def _distance(self, row: Row, got: torch.Tensor, want: torch.Tensor) -> tuple[Row, list[str]]:
        """Largest differences of logits [1, T, vocabulary], and what is wrong with them."""
        wide = torch.promote_types(got.dtype, torch.float32)
        off = (got.to(wide) - want.to(wide)).abs().amax((0, 2))
        allowed = BOUNDS[self.dtype] * max(1.0, float(want.to(wide).abs().max()))
        prefill = float(off[0])
        steps = float(off[1:].max()) if len(off) > 1 else None
        row = replace(
            row, prefill_difference=prefill, step_difference=steps, allowed_difference=allowed
        )
        wrong = []
        if not prefill <= allowed:  # NaN is wrong, too
            wrong.append(f"logits differ by {prefill:.2g} at prefill, allowed are {allowed:.2g}")
        if steps is not None and not steps <= allowed:
            first = int((~(off[1:] <= allowed)).long().argmax()) + 1
            wrong.append(
                f"logits differ by {steps:.2g} in decode, first in step {first}, allowed are "
                f"{allowed:.2g}"
            )
        return row, wrong

    def _miscounted(self, reported: list[int], counted: list[int], live: int | None) -> list[str]:
        """What is wrong with the bytes of the KV cache."""
        wrong = []
        # At prefill a layer with a window is given more than it keeps.
        for step in range(1 if self.parts.windows else 0, self.new):
            if reported[step : step + 1] != counted[step : step + 1]:
                said = reported[step] if step < len(reported) else "no"
                wrong.append(
                    f"{said} KV bytes are reported after {step} generated tokens, {counted[step]} "
                    "counted"
                )
                break
        if live != reported[-1]:
            wrong.append(f"{reported[-1]} KV bytes are reported at the end, {live} live")
        return wrong

    def _counter(self, session: TrimSession, counted: list[int]) -> Any:
        """An observer that adds up what attention is given, forward by forward."""

        def count(layer: int, query: Any, key: torch.Tensor, *_: Any) -> None:
            step = 0 if query.shape[2] > 1 else session.generated
            if layer in self.stock.token_bytes:
                counted[step] += key.shape[0] * key.shape[2] * self.stock.token_bytes[layer]

        return count

    def _ask(self) -> Any:
        """Greedy, of exactly so many tokens, none of which stands for a picture."""
        special = {*special_ids(self.model.config), *self.parts.visual_ids}
        words = self.model.config.get_text_config().vocab_size
        return decode(
            self.model, self.question.inputs, endless=True, max_new_tokens=self.new,
            min_new_tokens=self.new, return_dict_in_generate=True, output_logits=True,
            suppress_tokens=sorted(n for n in special if n < words),
        )  # fmt: skip

    def _ask_stock(self) -> _Stock:
        said = self._ask()
        layers = said.past_key_values.layers
        sizes = {}
        for number in self.parts.keyed:
            pair = layers[number - 1].keys, layers[number - 1].values
            sizes[number] = sum(x.shape[1] * x.shape[3] * x.element_size() for x in pair)
        return _Stock(said.sequences[:, self.prompt :], torch.stack(said.logits, 1), sizes)


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
