"""How likely a given continuation is, under trimming: for tasks that rank what could be answered.

The continuation is no part of the prompt: which tokens are kept is decided by the prompt's last
token, as in any answer. So the prompt is prefilled, and the continuation is fed token by token
through stock `generate`, which may choose nothing else; annealing goes on meanwhile. Trimmed and
stock models take the same way, so that with nothing trimmed figures are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from st3.batch.asking import Asker
from st3.batch.collating import collated
from st3.batch.leaving import on_device
from st3.batch.preparing import Prepared
from st3.batch.row import Result
from st3.engine.session import TrimSession
from st3.evaluation.questions import Answer, Question
from st3.inference.decoding import decode


@dataclass(frozen=True, slots=True)
class Weighed(Answer):
    """What became of a row with a continuation.

    Attributes:
        loss: nats a token, the mean over the continuation's. `greedy`: whether each of its tokens
            is the likeliest one.
    """

    loss: float = 0.0
    greedy: bool = False

    def document(self) -> dict[str, Any]:
        """A line of the answers file."""
        line = Answer.document(self)
        return line if self.error is not None else line | {"loss": self.loss, "greedy": self.greedy}


class Weigher(Asker):
    """Asks how likely each row's continuation is."""

    def new_tokens(self, rows: list[Prepared]) -> int:
        """Of the longest continuation."""
        return max(len(_tokens(row, self.processor)) for row in rows)

    def compute(
        self, rows: list[Prepared], new: int, session: TrimSession | None,
        learn: Callable[[], None], *, leave: bool,
    ) -> list[Result]:  # fmt: skip
        """Results of a batch, and the time in `course`."""
        longest = max(row.tokens for row in rows)
        if longest + new > self.limit:
            raise ValueError(
                f"prompt and continuation make {longest + new} tokens; the model's context is "
                f"{self.limit}"
            )
        wanted = [_tokens(row, self.processor) for row in rows]
        inputs = on_device(collated([row.inputs for row in rows], self.pad), self.model)
        force = _Force(wanted, inputs["input_ids"].shape[1])
        began = perf_counter()
        with torch.inference_mode():
            decode(
                self.model, inputs, endless=True, max_new_tokens=new,
                logits_processor=LogitsProcessorList([force]),
            )  # fmt: skip
        losses, greedy = force.losses.tolist(), force.greedy.tolist()
        done = perf_counter()
        learn()
        self.course.prefill += force.first - began
        self.course.decode += done - force.first
        self.course.row_steps += len(rows) * (new - 1)
        self.course.new_tokens += sum(map(len, wanted))
        return [
            Weighed(
                row.row.number, row.row.id, answer="",
                prompt_tokens=row.tokens, visual_tokens=row.visual,
                kept_visual_tokens=_kept(session, place, row.visual),
                new_tokens=len(tokens), finish_reason="stop",
                loss=losses[place] / len(tokens), greedy=greedy[place],
            )
            for place, (row, tokens) in enumerate(zip(rows, wanted, strict=True))
        ]  # fmt: skip


class _Force(LogitsProcessor):
    """Lets only the continuations through, and adds up how likely they were.

    Attributes:
        losses: float64 [B], nats. `greedy`: bool [B]. `first`: when the prompts were computed.
    """

    def __init__(self, wanted: Sequence[Sequence[int]], start: int) -> None:
        width = max(map(len, wanted))
        self.wanted = torch.tensor([[*row, *[0] * (width - len(row))] for row in wanted])
        self.counted = torch.arange(width) < torch.tensor([[len(row)] for row in wanted])
        self.start, self.first = start, 0.0
        self.losses = torch.zeros(len(wanted), dtype=torch.float64)
        self.greedy = torch.ones(len(wanted), dtype=torch.bool)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - self.start
        told = scores.float().log_softmax(-1)
        wanted = self.wanted[:, step].to(told.device)[:, None]
        counted = self.counted[:, step]
        loss = -told.gather(1, wanted)[:, 0].double().cpu()
        self.losses += torch.where(counted, loss, 0.0)
        self.greedy &= ~counted | (told.argmax(-1, keepdim=True) == wanted)[:, 0].cpu()
        if not step:
            self.first = perf_counter()
        only: Any = torch.full_like(scores, float("-inf"))
        return only.scatter(1, wanted, 0.0)  # type: ignore[no-any-return]


def _tokens(row: Prepared, processor: Any) -> list[int]:
    """Of a row's continuation, at least one."""
    asked = row.row
    text = asked.continuation if isinstance(asked, Question) else ""
    found: list[int] = processor.tokenizer(text or "", add_special_tokens=False)["input_ids"]
    if not found:
        raise ValueError("a continuation without a token has no likelihood")
    return found


def _kept(session: TrimSession | None, row: int, visual: int) -> float:
    if session is None:
        return float(visual)
    kept = session.kept_per_layer(row)
    return round(sum(kept) / len(kept), 2)
