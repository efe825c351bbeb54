"""What the model is asked for a request that has its turn, or for several in one batch.

A request alone is answered as `st3 run` answers. Greedy ones that waited together may be a batch,
as rows of `st3 batch` are: each has stops, a length and a listener of its own, and leaves when it
has ended. None joins later: what is kept of a prompt, and when it goes, is counted from where the
batch began.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch

from st3.batch.collating import signature
from st3.batch.leaving import decode_rows
from st3.batch.preparing import arrays, padding
from st3.engine.session import TrimSession
from st3.engine.trim import trim
from st3.inference.fitting import Room, room_of
from st3.inference.generation import answer_inputs, ends_of, on_model, timing_of
from st3.inference.streaming import Streamer
from st3.inference.transcript import transcript_inputs
from st3.serving.http.job import Done, Job, Piece
from st3.serving.http.limits import invalid
from st3.serving.http.text import Outlet


@dataclasses.dataclass
class Asked:
    """A request, ready for the model.

    Attributes:
        job: who asks.
        inputs: of the model, still on the host.
        tokens: of the answer at most, and as the context allows.
        sampling: `temperature`, `top_p` and `seed`.
        stops: texts before which the answer ends.
    """

    job: Job
    inputs: dict[str, Any]
    tokens: int
    sampling: dict[str, Any]
    stops: tuple[str, ...]

    @property
    def length(self) -> int:
        """Of the prompt, in tokens."""
        return int(self.inputs["input_ids"].shape[1])

    def outlet(self) -> Outlet:
        """Where the answer's text goes."""
        job = self.job
        return Outlet(lambda text: job.tell(Piece(text)) if job.streams else None, self.stops)


class Answerer:
    """Asks a model.

    Args:
        model, processor: from `st3.load`.
        compile: see `st3.trim`.
    """

    def __init__(self, model: Any, processor: Any, compile: str = "off") -> None:
        self.model, self.processor, self.compile = model, processor, compile
        self.room, self.pad = room_of(model), padding(processor)
        self.ends = ends_of(model)

    def prepare(self, job: Job) -> Asked | None:
        """Pictures are decoded; None if nobody listens any more.

        Raises:
            Refusal: the model cannot be asked this.
        """
        question = job.question
        if question is None:
            return None
        try:
            inputs = transcript_inputs(
                self.processor, question.turns, question.decoded(), self.room
            )
        except ValueError as error:
            raise invalid(str(error)) from None
        job.question = None  # its pictures are in the inputs
        length = inputs["input_ids"].shape[1]
        how = {"temperature": question.temperature, "top_p": question.top_p, "seed": question.seed}
        tokens = min(question.tokens, self.room.tokens - length)
        return Asked(job, inputs, tokens, how, question.stops)

    def alone(self, asked: Asked) -> None:
        """Answer one."""
        job, outlet = asked.job, asked.outlet()
        inputs = {key: on_model(value, self.model) for key, value in asked.inputs.items()}
        asked.inputs = {}
        began = time.perf_counter()
        answer = answer_inputs(
            self.model, self.processor, inputs, job.method, **asked.sampling,
            max_new_tokens=asked.tokens, compile=self.compile, on_text=outlet.put,
            stop=lambda: job.gone or outlet.stopped,
        )  # fmt: skip
        outlet.end()
        assert answer.session is not None
        done = Done(
            text=outlet.text if outlet.stopped or job.streams else answer.text,
            finish="stop" if answer.ended or outlet.stopped else "length",
            prompt_tokens=answer.prompt_tokens,
            new_tokens=answer.new_tokens,
            ttft=began - job.arrived + answer.timing.ttft_ms / 1000,
            timing=dataclasses.asdict(answer.timing),
            **_trimmed(answer.session, 0, 1),
        )
        job.tell(done)

    def together(self, some: Sequence[Asked]) -> None:
        """Answer several, greedily.

        Args:
            some: one of the groups of `companies`, under one method.
        """
        rows = [arrays(asked.inputs) for asked in some]
        new = max(asked.tokens for asked in some)
        began = time.perf_counter()
        method = some[0].job.method
        with trim(self.model, method, max_new_tokens=new, compile=self.compile) as session:
            voices = [_Voice(self, asked, session, len(some), began) for asked in some]
            decode_rows(
                self.model, rows, self.pad, new, session,
                on_token=lambda row, token: voices[row].hear(row, token),
            )  # fmt: skip


class _Voice:
    """One answer of a batch of `rows`, as it comes."""

    def __init__(
        self, by: Answerer, asked: Asked, session: TrimSession, rows: int, began: float
    ) -> None:
        self.asked, self.session, self.rows, self.began = asked, session, rows, began
        self.tokenizer, self.ends = by.processor.tokenizer, by.ends
        self.tokens: list[int] = []
        self.trimmed: dict[str, Any] = {}
        self.outlet = asked.outlet()
        self.streamer = Streamer(self.tokenizer, self.outlet.put)
        self.streamer.put(torch.tensor([]))  # the prompt, of which it says nothing

    def hear(self, row: int, token: int) -> bool:
        """One more token; whether it was the last."""
        if not self.tokens:  # later on rows have other numbers
            self.trimmed = _trimmed(self.session, row, self.rows)
        self.tokens.append(token)
        self.streamer.put(torch.tensor([token]))
        ended = token in self.ends
        full = len(self.tokens) == self.asked.tokens
        if not (ended or full or self.outlet.stopped or self.asked.job.gone):
            return False
        self.streamer.end()
        self.outlet.end()
        self.asked.job.tell(self._done(ended))
        return True

    def _done(self, ended: bool) -> Done:
        job, outlet = self.asked.job, self.outlet
        text = outlet.text
        if not (outlet.stopped or job.streams):
            text = self.tokenizer.decode(self.tokens, skip_special_tokens=True).strip()
        timing = timing_of(self.streamer.times, self.began)
        return Done(
            text=text,
            finish="stop" if ended or outlet.stopped else "length",
            prompt_tokens=self.asked.length,
            new_tokens=len(self.tokens),
            ttft=self.streamer.times[0] - job.arrived,
            timing=dataclasses.asdict(timing),
            **self.trimmed,
        )


def companies(some: Sequence[Asked], room: Room) -> list[list[Asked]]:
    """Those that can be a batch: of one signature, and so that the longest prompt leaves room for
    the longest answer.
    """
    found: list[list[Asked]] = []
    kinds: dict[tuple[Any, ...], list[Asked]] = {}
    for asked in sorted(some, key=lambda asked: asked.length):
        kind = signature(arrays(asked.inputs))
        own = kinds.get(kind)
        if own is None or asked.length + max(x.tokens for x in (*own, asked)) > room.tokens:
            own = kinds[kind] = []
            found.append(own)
        own.append(asked)
    return found


def _trimmed(session: TrimSession, row: int, rows: int) -> dict[str, Any]:
    """What `Done` says of it, once there is a first token; a batch's cache is shared out evenly."""
    return {
        "method": session.method.name,
        "visual": session.visual_tokens[row],
        "kept": tuple(session.kept_per_layer(row)),
        "kv_bytes": session.kv_bytes[0] // rows,
        "untrimmed_kv_bytes": session.untrimmed_kv_bytes[0] // rows,
        "batch": rows,
    }
