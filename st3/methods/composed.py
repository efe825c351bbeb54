"""Two methods in one: `A+B`, one that chooses before the decoder, and one inside it.

B's shares, counts and annealing are of the tokens that A lets in (ours): with `visionzip:keep=50%`
before it `fastv:r=50%` leaves a quarter of all. Which tokens go there is B's to say, by its scorer;
`scorer=A` makes it A's order, where A has one. Its dial is B's, with what A lets in as it is.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from st3.methods.base import Method
from st3.methods.schedule import Schedule
from st3.methods.selecting import Selecting

if TYPE_CHECKING:
    from st3.methods.scorers import Scorer

_JOINT = re.compile(r"\+(?=\s*(?:[^\W\d]|\.{0,2}/))")  # a name or a file: not that of 1e+5
INSIDE = ("scorer", "kv_cache_dtype", "tau", "annealing")
"""Parameters of A that are B's to say."""


def split(spec: str) -> list[str]:
    """The specs that a composition is made of; of any other method the one."""
    return _JOINT.split(spec)


@dataclass(frozen=True)
class Composed(Method):
    """One method before the decoder, another inside it, for what the first lets in.

    Attributes:
        before, inside: A and B.

    Raises:
        ValueError: they do not go together.
    """

    source: ClassVar[str] = "a composition of two methods"
    stage: ClassVar[str] = "before the decoder and in it"

    scorer: str = field(init=False)
    kv_cache_dtype: str = field(init=False)
    before: Selecting = field(kw_only=True)
    inside: Method = field(kw_only=True)

    def __post_init__(self) -> None:
        a, b = self.before, self.inside
        if not isinstance(a, Selecting):  # no wrong type: another method
            raise ValueError(  # noqa: TRY004
                f"{a.name}+{b.name}: the first must drop before the decoder, and {a.name} does not"
            )
        if isinstance(b, (Selecting, Composed)):
            raise ValueError(  # noqa: TRY004
                f"{a.name}+{b.name}: the second must drop inside the decoder, and {b.name} does "
                "not; one method before it is all there can be"
            )
        own = {"scorer": a.name, "kv_cache_dtype": "auto", "tau": None, "annealing": "cosine"}
        for name, default in own.items():
            if getattr(a, name) != default:
                raise ValueError(
                    f"{a.name}+{b.name}: {name}={getattr(a, name)} of {a.name} is about what "
                    f"happens inside the decoder: leave it to {b.name}"
                )
        if b.selector is not None and b.selector.name != a.name:
            raise ValueError(
                f"{a.name}+{b.name}: tokens enter in the order of {a.name}, so that inside the "
                f"decoder scorer={b.scorer} cannot decide; scorer={a.name} or one of attention can"
            )
        for name, value in (
            ("name", f"{a.name}+{b.name}"),
            ("source", f"{a.source}; {b.source}"),
            ("scorer", b.scorer),
            ("kv_cache_dtype", b.kv_cache_dtype),
            ("dial", b.dial),
        ):
            object.__setattr__(self, name, value)

    def schedule(self, layers: int) -> Schedule:
        return dataclasses.replace(
            self.inside.schedule(layers), entering=self.before.schedule(layers).entering
        )

    @property
    def decides(self) -> bool:
        return self.inside.decides

    def ranks_by(self) -> Scorer:
        return self.inside.ranks_by()

    @property
    def selector(self) -> Selecting:
        return self.before

    @property
    def positions(self) -> str:
        """A's."""
        return self.before.positions

    @property
    def tau(self) -> int | None:
        """B's, None where it anneals nothing."""
        found: int | None = getattr(self.inside, "tau", None)
        return found

    @property
    def dial_value(self) -> Any:
        """B's."""
        return self.inside.dial_value

    def changed(self, **parameters: Any) -> Method:
        inside = {name for name in parameters if hasattr(self.inside, name)}
        return Composed(
            before=dataclasses.replace(
                self.before, **{name: x for name, x in parameters.items() if name not in inside}
            ),
            inside=self.inside.changed(**{name: parameters[name] for name in inside}),
        )

    def settings(self, layers: int) -> dict[str, Any]:
        before = self.before.settings(layers)
        return {
            "before": {"name": self.before.name}
            | {name: value for name, value in before.items() if name not in INSIDE},
            "inside": {"name": self.inside.name, **self.inside.settings(layers)},
        }
