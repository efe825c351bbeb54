"""A conversation with a model about pictures, which keeps its KV cache from turn to turn.

Pictures may come with any turn. Under `st3.trim` those of each turn are scored, cut and annealed by
themselves (`st3.engine.turn`); nothing that was said is fed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteriaList

from st3.engine.session import TrimSession
from st3.engine.trim import trim
from st3.families.parts import find_parts
from st3.inference.chat import Message, written
from st3.inference.decoding import decode
from st3.inference.fitting import context
from st3.inference.generation import (
    Answer,
    answered,
    ends_of,
    on_model,
    sampling,
)
from st3.inference.streaming import Stop, Streamer
from st3.inference.videos import Clip
from st3.inference.visuals import Visual, check_visual, message, pictures_of, tokenized
from st3.methods import Method

_KINDS = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
_WORDS = ("input_ids", "attention_mask", *_KINDS)
_SIZES = ("grid", "second_per")  # in names of what positions are made from


class Conversation:
    """One conversation; a context, at whose end its KV cache is freed.

    Args:
        model, processor: from `st3.load`.
        method: how to trim; None leaves everything to stock transformers.
        compile: see `st3.trim`.

    Attributes:
        session: of `st3.trim`; None without a method.

    Raises:
        ValueError: a method that does not fit the model.
    """

    def __init__(
        self, model: Any, processor: Any, method: Method | None = None, compile: str = "off"
    ) -> None:
        self.model, self.processor = model, processor
        self._stack = ExitStack()
        self.session: TrimSession | None = None
        if method is not None:
            self.session = self._stack.enter_context(trim(model, method, compile=compile))
        self.forget()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def forget(self) -> None:
        """Begin anew."""
        self._words: dict[str, torch.Tensor] = {}
        self._sizes: dict[str, torch.Tensor] = {}
        self._before: Message | None = None
        self._cache: Any = None

    @property
    def tokens(self) -> int:
        """Of all that was said, as if nothing had been dropped."""
        return int(self._words["input_ids"].shape[1]) if self._words else 0

    def ask(
        self,
        text: str,
        visual: Visual = (),
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """The next turn. What is wrong with it leaves the conversation as it was; what goes wrong
        in the middle, as memory that runs out, begins a new one.

        Args:
            text: without any chat format.
            visual: RGB, what is shown with it: a picture, several, or a video.
            max_new_tokens: at most so many, fewer where the context ends.
            temperature: 0 for greedy.
            seed: of sampling, of the whole conversation; later turns' is not looked at.
            on_text: gets the answer piece by piece.
            stop: asked after each token whether to leave it at that.

        Raises:
            ValueError: an empty text, something that the processor refuses, or more than the
                model's context holds.
        """
        words, media, sizes, said = self._next(text, visual)
        length = words["input_ids"].shape[1]
        room = context(self.model) - length
        if room < 1:
            raise ValueError(
                f"with this turn the conversation has {length} tokens, the model's context is "
                f"{context(self.model)}: {self._mend(text, visual)}begin a new one"
            )
        inputs = words | media
        # Made of all that was said: `generate` would want all pictures for it, and encode them.
        prepare = getattr(self.model, "_prepare_position_ids_for_generation", None)
        if prepare is not None:
            inputs["position_ids"] = prepare(words["input_ids"], words | sizes)
        if not self._words:
            self._cache = DynamicCache()
        streamer = Streamer(self.processor.tokenizer, on_text)
        if not self._words:
            torch.manual_seed(seed)
        tokens = min(max_new_tokens, room)
        fed, began = self._fed(), time.perf_counter()
        try:
            output = decode(
                self.model, inputs, streamer=streamer, max_new_tokens=tokens,
                past_key_values=self._cache,
                suppress_tokens=[*find_parts(self.model).visual_ids],  # no answer is a picture
                stopping_criteria=StoppingCriteriaList([Stop(stop)] if stop else []),
                **sampling(temperature),
            )  # fmt: skip
        except BaseException:
            if self._fed() != fed:
                self.forget()  # the cache holds half a turn
            raise
        new = output[:, length:]
        self._words = {"input_ids": output} | {
            key: torch.cat((value, new.new_full(new.shape, int(key == "attention_mask"))), 1)
            for key, value in words.items()
            if key != "input_ids"
        }
        self._sizes, self._before = sizes, said
        return answered(self.model, self.processor, output, length, streamer, began, self.session)

    def _mend(self, text: str, visual: Visual) -> str:
        """What could be left out of a turn that is too long."""
        if not isinstance(visual, Clip):
            return "show less, or " if pictures_of(visual) else ""
        count, limit = len(visual.frames), context(self.model)
        length = limit
        while count and length >= limit:
            count //= 2
            if count:
                length = self._next(text, visual.some(count))[0]["input_ids"].shape[1]
        return f"take {count} frames of the video (--frames), or " if count else ""

    def _fed(self) -> tuple[int, int]:
        """What the cache holds: nothing, so many tokens, and turns with pictures."""
        held = self._cache.get_seq_length() if self._words else -1
        turns = len(self.session.record.turns) if self._words and self.session else 0
        return held, turns

    def _next(
        self, text: str, visual: Visual
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, torch.Tensor], Message]:
        """All words so far and of the next turn; what it shows; sizes of all; the message."""
        if pictures_of(visual):
            check_visual(visual, self.processor)
        said = message(visual, self.processor, text)
        before = [] if self._before is None else [self._before]
        made = tokenized(self.processor, [visual], [written(self.processor, [*before, said])])
        made = {key: on_model(value, self.model) for key, value in made.items()}
        words = {key: made.pop(key) for key in _WORDS if key in made}
        sizes: dict[str, Any] = dict(self._sizes)
        for key, value in made.items():
            if any(part in key for part in _SIZES):
                old = sizes.get(key)
                joined = torch.cat if isinstance(value, torch.Tensor) else _chained
                sizes[key] = value if old is None else joined([old, value])
        return self._joined(words), made, sizes, said

    def _joined(self, words: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Behind what was said, without a beginning, and without an end that was said already."""
        before = self._words
        if not before:
            return words
        tokenizer, ids = self.processor.tokenizer, words["input_ids"][0].tolist()
        skipped = int(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
        last = int(before["input_ids"][0, -1])
        skipped += last in ends_of(self.model) and ids[skipped : skipped + 1] == [last]
        joined = {}
        for key in {**before, **words}:
            old = before.get(key, torch.zeros_like(before["input_ids"]))
            new = words.get(key, torch.zeros_like(words["input_ids"]))[:, skipped:]
            joined[key] = torch.cat((old, new), 1)
        return joined


def _chained(lists: Sequence[Any]) -> list[Any]:
    return [each for one in lists for each in one]
