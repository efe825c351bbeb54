"""What a trimming method is: parameters that become a schedule, and the name of a scorer."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from st3.methods.dial import Dial
from st3.methods.schedule import Schedule

KV_CACHE_DTYPES = ("auto", "int8", "int4")


class Selector(Protocol):
    """What chooses before the decoder: a `st3.methods.selecting.Selecting`."""

    name: ClassVar[str]
    spares: ClassVar[str]

    def asks(self) -> tuple[str, ...]:
        """See there."""

    def choose(self, view: Any) -> Any:
        """See there."""


@dataclass(frozen=True)
class Method(ABC):
    """Which visual tokens leave, where and when.

    Attributes:
        scorer: a key of `SCORERS`, what importance is; or the name of a method that chooses before
            the decoder, whose order then decides in every layer.
        kv_cache_dtype: how the KV cache holds what is left, one of `KV_CACHE_DTYPES`: `auto` as the
            model makes it, `int8` and `int4` in fewer bits (ours: the papers drop tokens alone).
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """The paper the method comes from."""
    stage: ClassVar[str] = "in the decoder"
    """Where it drops: in the tower, before the decoder, in the decoder, or while decoding."""

    dial: ClassVar[Dial | None] = None
    """Which parameter trades visual tokens for compute, for comparisons at equal tokens."""

    scorer: str = "last-token"
    kv_cache_dtype: str = "auto"

    def __post_init__(self) -> None:
        from st3.methods.before import selectors
        from st3.methods.scorers import SCORERS  # it needs torch, and a list of methods does not

        if self.scorer not in {*SCORERS, *selectors()}:
            known = ", ".join((*SCORERS, *selectors()))
            raise ValueError(f"unknown scorer {self.scorer!r}; known: {known}")
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            known = ", ".join(KV_CACHE_DTYPES)
            raise ValueError(f"unknown kv_cache_dtype {self.kv_cache_dtype!r}; known: {known}")

    @abstractmethod
    def schedule(self, layers: int) -> Schedule:
        """The schedule for a decoder of `layers` layers.

        Raises:
            ValueError: the parameters fit no schedule of this depth.
        """

    @property
    def selector(self) -> Selector | None:
        """What looks at the visual tokens before layer 1, if anything does."""
        from st3.methods.before import selectors

        found: Any = selectors().get(self.scorer)
        return None if found is None else found()

    def changed(self, **parameters: Any) -> Method:
        """The same with other parameters."""
        return dataclasses.replace(self, **parameters)

    def settings(self, layers: int) -> dict[str, Any]:
        """Every parameter with the value that is in force for `layers` layers, for reports."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Untrimmed(Method):
    """Nothing is dropped: our path without trimming, the baseline of every comparison."""

    name: ClassVar[str] = "none"
    source: ClassVar[str] = "baseline"
    stage: ClassVar[str] = "nothing"

    def schedule(self, layers: int) -> Schedule:
        return Schedule((1.0,) * layers)
