"""st3 as a model of lmms-eval: `lmms-eval --model st3 --model_args method=st3:stride=4,tau=64`.

Answers come in batches, as of `st3.answer_all`. What cannot be answered raises, unless
`errors=empty` is asked for: a method that breaks would otherwise look like one that scores badly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from st3.batch.asking import Course
from st3.batch.ranks import device_of, find_ranks
from st3.evaluation.requests import Requests
from st3.evaluation.run import answers
from st3.inference.loading import load
from st3.methods import Method, make_method


class _Model(lmms):  # type: ignore[misc]
    """One model and one method.

    Args:
        pretrained: see `st3.load`. `dtype`, `attn_implementation`, `quantization`, `device_map`:
            likewise. `device`: likewise; None: `auto`.
        method: a method's spec, or `stock`. lmms-eval splits its arguments at commas: what is no
            argument here is taken for a parameter of the method.
        batch_size: prompts at a time; `auto` as memory allows.
        workers: processes that make pictures ready.
        errors: `raise`, or `empty`: what cannot be asked counts as an empty answer.

    Raises:
        ValueError: see `st3.load` and `make_method`.
    """

    def __init__(
        self,
        pretrained: str = "demo",
        method: str = "st3",
        batch_size: int | str = "auto",
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        quantization: str | None = None,
        device_map: str | None = None,
        workers: int = 0,
        errors: str = "raise",
        max_batch_size: int | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        if errors not in ("raise", "empty"):
            raise ValueError(f"errors={errors}: give raise or empty")
        self.method = joined(method, parameters)
        where = "cpu" if device == "cpu" else "cuda" if str(device).startswith("cuda") else "auto"
        ranks = find_ranks(where)
        self._rank, self._world_size = ranks.rank, ranks.world
        self.device = device_of(where if ranks.world > 1 else device or "auto", ranks)
        if ranks.world > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=self.device.type == "cpu")
        placed: dict[str, Any] = {"device_map": device_map} if device_map else {}
        if not device_map:
            placed = {"device": str(self.device)}
        self._live, self.processor = load(
            pretrained, dtype=str(dtype), attn_implementation=attn_implementation,
            quantization=quantization, **placed,
        )  # fmt: skip
        self.batch = None if batch_size == "auto" else int(batch_size)
        self.workers, self.errors, self.course = int(workers), errors, Course()

    @property
    def model(self) -> Any:
        """The live model."""
        return self._live

    @property
    def config(self) -> Any:
        """Its configuration."""
        return self._live.config

    def clean(self) -> None:
        """Nothing: lmms-eval would throw the model away after the first task."""

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers, in the order of requests."""
        found: list[Any] = [None] * len(requests)
        by_tokens: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            by_tokens.setdefault(Requests.tokens_of(request), []).append(place)
        for places in by_tokens.values():
            exam = Requests([requests[place] for place in places], self.task_dict)
            for place, row in zip(places, self._ask(exam), strict=True):
                text = exam.cut(row.answer or "")
                counts = TokenCounts(input_tokens=row.prompt_tokens, output_tokens=row.new_tokens)
                found[place] = GenerationResult(text, counts)
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Losses and whether they are the likeliest, in the order of requests."""
        exam = Requests(requests, self.task_dict)
        infinite = float("inf")
        # What lmms-eval 0.7 takes: a plain pair it would make a text of.
        return [
            GenerationResult(
                (infinite, False) if row.error is not None else (row.loss, row.greedy), None
            )
            for row in self._ask(exam)
        ]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not taken.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("st3 takes no task that asks in several rounds")

    def _ask(self, exam: Requests) -> Sequence[Any]:
        numbers = range(len(exam.ids))
        found = {
            result.number: result
            for some in answers(
                self._live, self.processor, exam, numbers, self.method, self.course,
                batch_size=self.batch, workers=self.workers,
            )
            for result in some
        }  # fmt: skip
        wrong = next((row for row in found.values() if row.error is not None), None)
        if wrong is not None and self.errors == "raise":
            raise RuntimeError(
                f"{exam.name}, document {wrong.id}: {wrong.error} (errors=empty in --model_args "
                "counts what cannot be asked as an empty answer)"
            )
        return [found[number] for number in numbers]


class Chat(_Model):
    """For tasks that say where pictures stand."""

    is_simple = False


class Plain(_Model):
    """For tasks as a text and pictures (`--force_simple`)."""

    is_simple = True


def joined(method: str, parameters: dict[str, Any]) -> Method | None:
    """A method from its spec and from parameters that were split off; None for `stock`.

    Raises:
        ValueError: see `make_method`.
    """
    if method == "stock" and not parameters:
        return None
    words = [f"{key}={'none' if value is None else value}" for key, value in parameters.items()]
    if words:
        method += ("," if ":" in method else ":") + ",".join(words)
    return make_method(method)
