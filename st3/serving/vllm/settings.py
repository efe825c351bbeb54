"""What `--hf-overrides '{"st3": {...}}'` asks for, read and judged: no vLLM here.

vLLM hands overrides on to every process as an attribute of the model's configuration: that of the
processor, which writes fewer placeholders, and that of the model, which chooses as many tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from st3.methods import make_method
from st3.methods.before import selectors
from st3.methods.selecting import POSITIONS, Selecting

KEYS = ("keep", "method", "positions")
EXAMPLE = '{"st3": {"keep": 0.25, "method": "divprune", "positions": "original"}}'
_OF_ROWS = ("features", "grid")
_CLASS_TOKEN = "attention features"


@dataclass(frozen=True)
class Settings:
    """What is trimmed, and how.

    Attributes:
        method: chooses; its `keep` is a share of each picture's tokens, its `positions` those of
            what stays.
    """

    method: Selecting

    @property
    def keep(self) -> float:
        """The share of a picture's tokens that stays, above 0 and up to 1."""
        share = self.method.budget().share
        assert share is not None
        return share

    @property
    def original(self) -> bool:
        """Whether what stays keeps its positions."""
        return self.method.positions == "original"

    @property
    def needs_tower(self) -> bool:
        """Whether the method goes by the class token's attention."""
        return _CLASS_TOKEN in self.method.asks()

    @property
    def mark(self) -> str:
        """All that decides which rows a picture becomes, as a suffix of its hash."""
        return f"-st3-{self.method!r}"

    def describe(self) -> str:
        """Half a line."""
        return (
            f"{self.keep:g} of every picture's tokens stay, by {self.method.name}, at "
            f"{self.method.positions} positions"
        )


def read_settings(config: Any) -> Settings | None:
    """The settings that a model's configuration carries; None if there are none.

    Raises:
        ValueError: they make no sense; one line says which, and what would.
    """
    given = getattr(config, "st3", None)
    if given is None:
        return None
    if isinstance(given, Mapping) or hasattr(given, "__dict__"):
        given = dict(given if isinstance(given, Mapping) else vars(given))
    return _read(json.dumps(given))


@lru_cache(maxsize=8)
def _read(given: str) -> Settings:
    """Once in a process: vLLM's processor asks four times a request, and every method is judged."""
    return make_settings(json.loads(given))


def make_settings(given: Any) -> Settings:
    """The same from the mapping itself.

    Raises:
        ValueError: as `read_settings`.
    """
    keys = [*map(str, given)] if isinstance(given, Mapping) else None
    if keys is None:
        raise ValueError(f"st3: settings are a mapping such as {EXAMPLE}, got {given!r}")
    unknown = sorted({*keys} - {*KEYS})
    if unknown:
        raise ValueError(f"st3: unknown setting {unknown[0]!r}; known: {', '.join(KEYS)}")
    missing = [key for key in ("keep", "method") if key not in given]
    if missing:
        raise ValueError(f"st3: {' and '.join(missing)} must be set, as in {EXAMPLE}")
    keep, positions = _keep(given["keep"]), given.get("positions", "original")
    if positions not in POSITIONS:
        raise ValueError(
            f"st3: positions must be one of {', '.join(POSITIONS)}, got {json.dumps(positions)}"
        )
    return Settings(_method(given["method"], keep, positions))


def _keep(given: Any) -> float:
    if isinstance(given, (int, float)) and not isinstance(given, bool) and 0 < given <= 1:
        return float(given)
    raise ValueError(
        f"st3: keep is a share of a picture's tokens, above 0 and up to 1, such as 0.25; got "
        f"{json.dumps(given)}"
    )


@cache
def fitting() -> tuple[str, ...]:
    """Names of the methods that can choose here, some of them only where there is a class token."""
    return tuple(name for name, kind in selectors().items() if _misfit(kind()) is None)


def _known() -> str:
    return f"known here: {', '.join(fitting())}"


def _method(given: Any, keep: float, positions: str) -> Selecting:
    name = given.partition(":")[0].strip() if isinstance(given, str) else None
    if name is None:
        raise ValueError(f"st3: method is a name, got {json.dumps(given)}; {_known()}")
    if name not in selectors():
        raise ValueError(f"st3: method {name!r} does not choose before the decoder; {_known()}")
    try:
        method: Any = make_method(given, keep=keep, positions=positions)
    except ValueError as error:
        raise ValueError(f"st3: {error}") from None
    if why := _misfit(method):
        raise ValueError(f"st3: method {method.name!r} {why}; {_known()}")
    chosen: Selecting = method
    return chosen


def _misfit(method: Selecting) -> str | None:
    """Why a method cannot choose from one picture that is encoded for all questions."""
    asks = method.asks()
    if "text" in asks:
        return "needs the question, and vLLM encodes a picture once for all questions"
    if "frames" in asks or "videos" in asks:
        return "needs frames of a video: vLLM has --video-pruning-rate for these"
    if method.per != "picture":
        return "must spend its budget on each picture by itself (per=picture)"
    if method.tau is not None:
        return "cannot anneal here: leave tau out"
    if method.kv_cache_dtype != "auto":
        return "leaves the KV cache to vLLM: give --kv-cache-dtype instead"
    seen = [need for need in asks if need not in (*_OF_ROWS, _CLASS_TOKEN)]
    if seen:
        return f"needs to see more of the vision tower than its class token ({', '.join(seen)})"
    return None
