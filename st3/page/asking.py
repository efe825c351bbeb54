"""A question on its way: one thread has the model, whoever draws gets what has been seen so far.

Questions take turns. One that nobody listens to any more ends with its token.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from st3.engine.plan import Plan
from st3.engine.session import TrimSession
from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.inference.generation import Answer, answer_inputs, find_places, prepare
from st3.inference.places import Places
from st3.methods import Method, make_method
from st3.methods.schedule import Schedule
from st3.page.film import Film
from st3.profiling.costs import costs_of
from st3.profiling.course import schedule_of
from st3.profiling.macs import MacCounter
from st3.profiling.shape import Workload
from st3.units import si

SIDES = ("trimmed", "untrimmed")


@dataclass
class Seen:
    """What there is so far.

    Attributes:
        text: of each side. `answers`: those that are whole.
        generated: tokens of the trimmed side.
        film: once the trimmed answer is whole, and if tokens can be drawn.
        session, places: what `now` is made from, while it is not.
        notes: what is to be said besides.
        refusal: why there is no more.
    """

    text: dict[str, str] = field(default_factory=lambda: dict.fromkeys(SIDES, ""))
    answers: dict[str, Answer] = field(default_factory=dict)
    generated: int = 0
    film: Film | None = None
    session: TrimSession | None = None
    places: Places | None = None
    notes: list[str] = field(default_factory=list)
    refusal: str = ""

    def now(self) -> Film | None:
        """The film, or of one that is being made this moment: the model works on meanwhile."""
        if self.film is not None or self.session is None or self.places is None:
            return self.film
        if not any(self.text.values()):
            return None
        return Film.of(self.session, self.places, self.generated, self.generated)


class Host:
    """Has the model.

    Args:
        model, processor: from `st3.load`.
        name: of the model.
        explain: an error as a line, as the command line says it.
    """

    def __init__(
        self, model: Any, processor: Any, name: str, explain: Callable[[Exception], str] = str
    ) -> None:
        self.model, self.processor, self.name, self.explain = model, processor, name, explain
        self._parts = find_parts(model)
        self.layers = len(self._parts.layers)
        self._turn, self._over = threading.Lock(), threading.Event()
        self._counter: MacCounter | None = None

    def schedule(self, method: Method) -> Schedule:
        """What a method leaves alive in this model, of prompts that all its windows hold.

        Raises:
            ValueError: it does not fit.
        """
        return Plan.of(method, self._parts).schedule

    def close(self) -> None:
        """The end, also of what runs: torch must not be torn from a thread that uses it."""
        self._over.set()
        with self._turn:
            pass

    def ask(
        self, picture: Image.Image, prompt: str, method: Method, tokens: int, compare: bool
    ) -> Iterator[Seen]:
        """Ask, trimmed and then untrimmed; what was seen so far, again and again, to the end."""
        events: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        gone = threading.Event()

        def over() -> bool:
            return gone.is_set() or self._over.is_set()

        def run() -> None:
            try:
                with self._turn:
                    if not over():
                        self._run(
                            picture, prompt, method, tokens, compare,
                            lambda *event: events.put(event), over,
                        )  # fmt: skip
            except Exception as error:  # a model raises whatever it stumbles over
                events.put(("refusal", self.explain(error)))
            finally:
                events.put(None)

        threading.Thread(target=run, name="st3-page", daemon=True).start()
        seen = Seen()
        try:
            while (event := events.get()) is not None:
                waiting: list[tuple[str, Any] | None] = [event]
                while not events.empty() and waiting[-1] is not None:
                    waiting.append(events.get())
                for kind, what in filter(None, waiting):
                    self._note(seen, kind, what)
                yield seen
                if waiting[-1] is None:
                    return
        finally:
            gone.set()

    def _run(
        self, picture: Image.Image, prompt: str, method: Method, tokens: int, compare: bool,
        tell: Callable[..., None], gone: Callable[[], bool],
    ) -> None:  # fmt: skip
        inputs = prepare(self.model, self.processor, picture, prompt)
        try:
            places = find_places(self.model, self.processor, picture, prompt)
            tell("places", places)
        except ValueError as error:
            places = None
            tell("note", str(error))
        for side, how in zip(SIDES, (method, make_method("none")), strict=True):
            if gone() or (side == "untrimmed" and not compare):
                return

            def on_text(piece: str, side: str = side) -> None:
                tell("text", (side, piece))

            def on_session(session: TrimSession, side: str = side) -> None:
                if side == "trimmed":
                    tell("session", session)

            answer = answer_inputs(
                self.model, self.processor, inputs, how, max_new_tokens=tokens,
                on_session=on_session, on_text=on_text, stop=gone,
            )  # fmt: skip
            tell("answer", (side, answer))
            if side == "trimmed" and places is not None and answer.session is not None:
                # Here, where it is in nobody's time; while the answer came it would have been.
                tell("film", Film.of(answer.session, places, answer.new_tokens - 1))

    def _note(self, seen: Seen, kind: str, what: Any) -> None:
        """One event into what is seen."""
        if kind in ("text", "answer"):
            side, told = what
            if kind == "text":
                seen.text[side] += told
            else:
                seen.text[side], seen.answers[side] = told.text, told
            if side == "trimmed" and seen.session is not None:
                seen.generated = seen.session.last.generated
                if kind == "answer":
                    seen.notes += [*seen.session.last.notes]
        elif kind == "session":
            seen.session = what
        elif kind == "places":
            seen.places = what
        elif kind == "film":
            seen.film = what
        elif kind == "note":
            seen.notes.append(what)
        else:
            seen.refusal = what

    def rows(self, seen: Seen) -> list[tuple[str, str, str, str]]:
        """What it took: a label, trimmed, untrimmed, and how much less; one run each."""
        ours, theirs = (seen.answers.get(side) for side in SIDES)
        if ours is None or ours.session is None:
            return []
        was = None if theirs is None else theirs.timing
        session = ours.session
        held, full = session.kv_bytes, session.untrimmed_kv_bytes
        rows = [("visual tokens, mean over layers", *self._visual(session))]
        rows += [self._macs(ours)]
        rows += [
            ("KV cache after prefill", *_less(held[0], full[0], lambda x: si(x, "B"))),
            ("KV cache, mean", *_less(sum(held) / len(held), sum(full) / len(full), _bytes)),
            ("TTFT", *_less(ours.timing.ttft_ms, getattr(was, "ttft_ms", None), _ms)),
            ("TPOT", *_less(ours.timing.tpot_ms, getattr(was, "tpot_ms", None), _ms)),
            ("answer", *_less(ours.timing.total_ms, getattr(was, "total_ms", None), _ms)),
            ("tokens", str(ours.new_tokens), str(theirs.new_tokens) if theirs else "", ""),
        ]  # fmt: skip
        return rows

    def _visual(self, session: TrimSession) -> tuple[str, str, str]:
        kept = session.kept_per_layer()
        return _less(sum(kept) / len(kept), session.visual_tokens[0], lambda x: f"{x:.4g}")

    def _macs(self, ours: Answer) -> tuple[str, str, str, str]:
        label = "prefill MACs of the decoder (counted)"
        session = ours.session
        assert session is not None
        (visual,), (entered,) = session.visual_tokens, session.last.turns[0].entering
        work = Workload(visual, max(1, ours.prompt_tokens - visual), max(2, ours.new_tokens))

        def count(method: Method, entered: int) -> int:
            self._counter = self._counter or MacCounter(meta_model(self.model.config))
            schedule = schedule_of(method, self._parts, work).with_entered(entered)
            return costs_of(self._counter, None, schedule, work, 2).prefill_macs

        try:
            macs = count(session.method, entered), count(make_method("none"), visual)
        except ValueError:
            return label, "not counted", "not counted", ""
        return label, *_less(*macs, lambda x: si(x))


def _less(
    ours: float | None, theirs: float | None, word: Callable[[float], str]
) -> tuple[str, str, str]:
    """Both in words, and the difference as a share."""
    if ours is None or not theirs:
        return "not measured" if ours is None else word(ours), "not measured", ""
    return word(ours), word(theirs), f"{1 - ours / theirs:.0%} less" if ours <= theirs else (
        f"{ours / theirs - 1:.0%} more"
    )  # fmt: skip


def _ms(value: float) -> str:
    return f"{value:.1f} ms"


def _bytes(value: float) -> str:
    return si(value, "B")
