"""How faithful a trimmed model is to itself untrimmed: no labels needed.

The untrimmed answer is forced on the trimmed model, token by token. Where its own choice would have
been another token, the answers part; the distributions on the way give the KL divergence. So one
forced run tells all that a free one would, but for what an answer says after it has parted.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from st3.batch.collating import collated, grouped
from st3.batch.leaving import decode_rows, on_device
from st3.batch.preparing import Preparer, padding
from st3.batch.row import Row
from st3.engine.trim import trim
from st3.inference.decoding import decode
from st3.inference.fitting import check_pads, room_of
from st3.inference.generation import ends_of
from st3.methods import Method
from st3.proportion import interval
from st3.sweep.questions import Question


@dataclass(frozen=True)
class Reference:
    """The untrimmed answers to one batch of questions.

    Attributes:
        questions: of the batch.
        rows: inputs of each alone. `inputs`: of all together, for `generate`.
        tokens: int64 [B, T], new tokens, padded at the end.
        lengths: of each answer, its end token included.
        log_probabilities: float32 [T, B, vocabulary], on the CPU.
        texts: the answers.
    """

    questions: tuple[Question, ...]
    rows: tuple[Mapping[str, Any], ...]
    inputs: dict[str, Any]
    tokens: torch.Tensor
    lengths: tuple[int, ...]
    log_probabilities: torch.Tensor
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """One question under one setting.

    Attributes:
        agreed: tokens of the untrimmed answer before the first other choice, over all of them.
        kl: KL divergence of the next-token distribution from the untrimmed one, nats, mean over
            the tokens of the untrimmed answer.
        text: the trimmed answer.
        same: whether every choice is the untrimmed one.
        right: whether `text` is the known answer; None where none is known.
    """

    agreed: float
    kl: float
    text: str
    same: bool
    right: bool | None


@torch.inference_mode()
def references(
    model: Any, processor: Any, questions: Sequence[Question], *, batch: int, max_new_tokens: int
) -> list[Reference]:
    """Answer all questions untrimmed, by stock transformers, greedily, `batch` at a time.

    Raises:
        ValueError: one cannot be asked.
    """
    check_pads(processor, min(batch, len(questions)))
    prepare = Preparer(processor, room_of(model))
    # Answers of a batch end together, if their length is known, and little is padded.
    ordered = sorted(questions, key=lambda q: (len(q.answer or ""), len(q.prompt)))
    found = []
    made = [prepare(Row(n, q.prompt, (q.picture,), number=n)) for n, q in enumerate(ordered)]
    wrong = next((row for row in made if row.problem is not None), None)
    if wrong is not None:
        raise ValueError(f"{ordered[wrong.row.number].label}: {wrong.problem}")
    for group in grouped(made, batch):
        part = tuple(ordered[row.row.number] for row in group)
        rows = tuple(row.inputs for row in group)
        inputs = on_device(collated(rows, padding(processor)), model)
        output = decode(
            model, inputs, max_new_tokens=max_new_tokens,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
        ends = ends_of(model)
        lengths = tuple(_length(row.tolist(), ends) for row in tokens)
        log_probabilities = torch.stack([x.float().log_softmax(-1).cpu() for x in output.logits])
        texts = _decode(processor, tokens)
        found.append(Reference(part, rows, inputs, tokens, lengths, log_probabilities, texts))
    return found


@torch.inference_mode()
def outcomes(
    model: Any, processor: Any, reference: Reference, method: Method | None, max_new_tokens: int
) -> list[Outcome]:
    """How one batch fares under `method`, or again untrimmed if that is None."""
    force = _Force(reference)
    with _trimmed(model, method):
        decode(
            model, reference.inputs, max_new_tokens=reference.tokens.shape[1],
            logits_processor=LogitsProcessorList([force]),
        )  # fmt: skip
    kl = (force.kl * force.counted).sum(0) / force.counted.sum(0)
    prefix = (force.matched | ~force.counted).int().cumprod(0).bool() & force.counted
    agreed = prefix.sum(0) / force.counted.sum(0)
    parted = [row for row in range(len(reference.questions)) if not bool(agreed[row] == 1)]
    texts = list(reference.texts)
    if parted:
        some = [reference.rows[row] for row in parted]
        with _trimmed(model, method) as session:
            answers = decode_rows(model, some, padding(processor), max_new_tokens, session)
        free = _decode(processor, answers.tokens)
        for row, text in zip(parted, free, strict=True):
            texts[row] = text
    return [
        Outcome(
            agreed=float(agreed[row]),
            kl=float(kl[row]),
            text=texts[row],
            same=row not in parted,
            right=None if question.answer is None else texts[row] == question.answer.strip(),
        )
        for row, question in enumerate(reference.questions)
    ]


def summary(found: Sequence[Outcome]) -> dict[str, float | None]:
    """Of many questions: what `Outcome` says of each, on average."""
    return {
        "fidelity": statistics.fmean(outcome.same for outcome in found),
        "token_agreement": statistics.fmean(outcome.agreed for outcome in found),
        "kl": statistics.fmean(outcome.kl for outcome in found),
        **accuracy([outcome.right for outcome in found if outcome.right is not None]),
    }


def accuracy(right: Sequence[bool | None]) -> dict[str, float | None]:
    """Share of right answers with its 95 % interval; None where no answer is known."""
    if not right:
        return {"accuracy": None, "accuracy_low": None, "accuracy_high": None}
    hits = sum(map(bool, right))
    low, high = interval(hits, len(right))
    return {"accuracy": hits / len(right), "accuracy_low": low, "accuracy_high": high}


def marks(same: Sequence[bool], right: Sequence[bool | None]) -> dict[str, str]:
    """Each question's outcome, 1 or 0, in the order they are asked in, which all cells share.

    `right_each` is empty where an answer is not known.
    """
    known = [bool(each) for each in right if each is not None]
    return {
        "same_each": "".join(str(int(each)) for each in same),
        "right_each": "".join(str(int(each)) for each in known) if len(known) == len(same) else "",
    }


class _Force(LogitsProcessor):
    """Lets only the reference's next token through, and notes what would have been chosen."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        steps, batch = reference.tokens.shape[1], reference.tokens.shape[0]
        self.start = reference.inputs["input_ids"].shape[1]
        self.kl = torch.zeros(steps, batch)
        self.matched = torch.zeros(steps, batch, dtype=torch.bool)
        lengths = torch.tensor(reference.lengths)
        self.counted = torch.arange(steps)[:, None] < lengths

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - self.start
        ours = scores.float().log_softmax(-1).cpu()
        theirs = self.reference.log_probabilities[step]
        wanted = self.reference.tokens[:, step]
        self.kl[step] = (theirs.exp() * (theirs - ours)).nan_to_num(0.0).sum(-1).clamp_min(0)
        self.matched[step] = (scores.argmax(-1) == wanted).cpu()
        only: Any = torch.full_like(scores, float("-inf"))
        return only.scatter(1, wanted[:, None], 0.0)  # type: ignore[no-any-return]


def _trimmed(model: Any, method: Method | None) -> AbstractContextManager[Any]:
    return nullcontext() if method is None else trim(model, method)


def _decode(processor: Any, tokens: Any) -> tuple[str, ...]:
    texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return tuple(text.strip() for text in texts)


def _length(tokens: list[int], ends: set[int]) -> int:
    return next((n + 1 for n, token in enumerate(tokens) if token in ends), len(tokens))
