"""What a trimming method is: parameters that become a schedule, and the name of a scorer."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import sys
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from st3.methods.dial import Dial
from st3.methods.schedule import Schedule

if TYPE_CHECKING:
    from st3.methods.scorers import Scorer

KV_CACHE_DTYPES = ("auto", "int8", "int4")
_KINDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "a word", bool: "true or false",
    types.NoneType: "None",
}  # fmt: skip


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
            the decoder, whose order then decides in every layer, or of one that has a score of its
            own.
        kv_cache_dtype: how the KV cache holds what is left, one of `KV_CACHE_DTYPES`: `auto` as the
            model makes it, `int8` and `int4` in fewer bits (ours: the papers drop tokens alone).
    """

    name: ClassVar[str]
    source: ClassVar[str] = "own"
    """The paper the method comes from."""
    stage: ClassVar[str] = "in the decoder"
    """Where it drops: in the tower, before the decoder, in the decoder, or while decoding."""

    dial: ClassVar[Dial | None] = None
    """Which parameter trades visual tokens for compute, for comparisons at equal tokens."""

    scorer: str = "last-token"
    kv_cache_dtype: str = "auto"

    def __post_init__(self) -> None:
        self._check_kinds()
        from st3.methods.before import selectors
        from st3.methods.inside import insiders
        from st3.methods.scorers import SCORERS  # it needs torch, and a list of methods does not

        if not self.decides and self.scorer not in SCORERS and self._other() is None:
            everyone = (*SCORERS, *selectors(), *insiders())
            close = difflib.get_close_matches(self.scorer.lower(), everyone, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            if self.scorer.partition(":")[0] in everyone:
                hint = " (a scorer is a name alone, without parameters)"
            known = ", ".join(everyone)
            raise ValueError(f"unknown scorer {self.scorer!r}{hint}; known: {known}")
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            known = ", ".join(KV_CACHE_DTYPES)
            raise ValueError(f"unknown kv_cache_dtype {self.kv_cache_dtype!r}; known: {known}")

    def _check_kinds(self) -> None:
        """Refuse values of another kind than a parameter's; numbers of NumPy become Python's."""
        try:
            hints = typing.get_type_hints(type(self))
        except NameError:  # of a class in a user's file
            return
        for field in dataclasses.fields(self):
            hint, value = hints[field.name], getattr(self, field.name)
            allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            if not {*allowed} <= _KINDS.keys():
                continue
            if isinstance(value, numbers.Number) and not isinstance(value, bool | int | float):
                value = int(value) if isinstance(value, numbers.Integral) else float(value)  # type: ignore[arg-type]
                object.__setattr__(self, field.name, value)
            kinds = (*allowed, int) if float in allowed else allowed
            fits = isinstance(value, kinds) and (bool in allowed or not isinstance(value, bool))
            if not fits and not {int, str} <= {*allowed}:  # a budget says more itself
                said = " or ".join(_KINDS[kind] for kind in allowed)
                raise ValueError(f"{self.name}: {field.name} must be {said}, got {value!r}")

    @abstractmethod
    def schedule(self, layers: int) -> Schedule:
        """The schedule for a decoder of `layers` layers.

        Raises:
            ValueError: the parameters fit no schedule of this depth.
        """

    @property
    def decides(self) -> bool:
        """Whether it has a scorer, or an order, of its own and goes by that: `scorer` names it."""
        return False

    def ranks_by(self) -> Scorer:
        """What says in the decoder's layers how important tokens are."""
        from st3.methods.scorers import SCORERS, InOrder

        other = self._other()
        if hasattr(other, "score"):
            found: Scorer = other().ranks_by()
            return found
        return SCORERS.get(self.scorer, InOrder())

    @property
    def selector(self) -> Selector | None:
        """What looks at the visual tokens before layer 1, if anything does."""
        other = self._other()
        return other() if hasattr(other, "choose") else None

    def _other(self) -> Any:
        """The class of another method whose order or score `scorer` asks for; None if of none.

        Raises:
            ValueError: one from outside the package that cannot be had.
        """
        from st3.methods.before import selectors
        from st3.methods.inside import insiders
        from st3.methods.own import find_own
        from st3.methods.scorers import SCORERS

        if self.decides or self.scorer in SCORERS:
            return None
        known: dict[str, Any] = selectors() | insiders()
        found = known.get(self.scorer) or find_own(self.scorer)
        return found if hasattr(found, "choose") or hasattr(found, "score") else None

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Other processes find a class that is in a user's file by the file."""
        from st3.methods.own import revive

        module = sys.modules.get(type(self).__module__)
        if module is None or not hasattr(module, "__st3_sha256__"):
            return super().__reduce_ex__(protocol)
        return revive, (module.__file__, type(self).__qualname__, vars(self))

    @property
    def dial_value(self) -> Any:
        """Where its dial stands; None where it has none."""
        return None if self.dial is None else getattr(self, self.dial.parameter)

    def changed(self, **parameters: Any) -> Method:
        """The same with other parameters."""
        return dataclasses.replace(self, **parameters)

    def settings(self, layers: int) -> dict[str, Any]:
        """Every parameter with the value that is in force for `layers` layers, for reports.

        Of a method from outside the package also its `origin`: which class, and what its file held.
        """
        from st3.methods.own import origin

        found = dataclasses.asdict(self)
        other = self._other()
        where = origin(self) or ({} if other is None else origin(other))
        return found | ({"origin": where} if where else {})


@dataclass(frozen=True)
class OwnRule(Method):
    """A method with a rule of its own, in a file of its own.

    Attributes:
        scorer: what says how important tokens are; by default the method itself, and otherwise any
            scorer.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """What it must see, by default; see `asks` of those that choose, or decide."""
    is_set: ClassVar[bool] = False
    """Whether its choice holds for one budget only, and others do not nest in it."""
    differs: ClassVar[str] = ""
    """What differs from the authors' code."""
    published: ClassVar[Mapping[str, str]] = {}
    """Settings that were published, by name, as parameters."""

    scorer: str = ""

    def __post_init__(self) -> None:
        if not self.scorer:
            object.__setattr__(self, "scorer", self.name)
        super().__post_init__()

    @property
    def decides(self) -> bool:
        return self.scorer == self.name


@dataclass(frozen=True)
class Untrimmed(Method):
    """Nothing is dropped: our path without trimming, the baseline of every comparison."""

    name: ClassVar[str] = "none"
    source: ClassVar[str] = "baseline"
    stage: ClassVar[str] = "nothing"

    def schedule(self, layers: int) -> Schedule:
        return Schedule((1.0,) * layers)
