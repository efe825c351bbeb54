"""Methods at equal tokens: each with its dial where it leaves so many visual tokens a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from st3.families.meta import meta_model
from st3.families.parts import find_parts
from st3.inference.suits import suits
from st3.methods import METHODS, Method, make_method, split_spec
from st3.methods.composed import split
from st3.methods.dial import turned
from st3.profiling.course import schedule_of
from st3.profiling.picture import picture_of
from st3.profiling.shape import Workload
from st3.sweep.grid import Cell

_TEXT = 64  # tokens beside the picture: what a layer with a window leaves depends on them
_DIGITS = range(1, 10)
_ABOUT = 0.15  # so far off a table for another depth may be; its MACs stand beside it


def equal_cells(
    config: Any, specs: Sequence[str], budgets: Sequence[int], size: tuple[int, int]
) -> list[Cell]:
    """A cell for each budget and method; one that cannot be turned to it says why.

    Args:
        config: of the model.
        specs: methods, with parameters that are to stay as they are.
        budgets: visual tokens of a picture, the mean over the decoder's layers at prefill.
        size: width and height of the pictures, in pixels.

    Raises:
        ValueError: an unknown method or parameter.
    """
    parts = find_parts(meta_model(config))
    visual = picture_of(config, size).tokens
    work = Workload(visual, _TEXT, 2)

    def count(method: Method) -> float:
        schedule = schedule_of(method, parts, work)
        return schedule.mean_keep * schedule.entering.of_alike(visual, 1)

    found = []
    for budget in budgets:
        for spec in specs:
            method = make_method(spec)
            try:
                _check_suits(spec, method, config)
                word = _published(spec, method, budget, count)
                if word is None:
                    ready = turned(method, len(parts.layers), budget, count)
                    word = _short(spec, ready, count)
                else:
                    ready = make_method(word)
                _check_suits(spec, ready, config)
                keeps = schedule_of(ready, parts, work)
            except ValueError as error:
                found.append(Cell(spec, None, None, None, 0.0, str(error), budget=budget))
                continue
            final = keeps.keeps[-1] * (keeps.entering.share or 1.0)
            found.append(Cell(word, None, None, keeps.tau, final, budget=budget))
    return found


def all_methods() -> list[str]:
    """Those that have a dial, or settings that were published for numbers of tokens."""
    return [
        name
        for name, method in METHODS.items()
        if method.dial is not None or any(word.isdecimal() for word in _settings(method))
    ]


def _settings(method: type[Method] | Method) -> Mapping[str, str]:
    found: Mapping[str, str] = getattr(method, "published", {})
    return found


def _check_suits(spec: str, method: Method, config: Any) -> None:
    fits, why = suits(lambda: method, config)
    if not fits:
        raise ValueError(f"{spec}: {why}")


def _published(
    spec: str, method: Method, budget: int, count: Callable[[Method], float]
) -> str | None:
    """The spec with a setting that is called after this number, where there is no dial.

    Raises:
        ValueError: it leaves another number.
    """
    if method.dial is not None or str(budget) not in _settings(method):
        return None
    *before, last = split(spec)
    name, rest = split_spec(last)
    word = "+".join([*before, f"{name}:{budget}" + (f",{rest}" if rest else "")])
    found = count(make_method(word))
    if abs(found / budget - 1) > _ABOUT:
        raise ValueError(f"{word} is called so, and leaves {found:.0f} tokens a layer here")
    return word


def _short(spec: str, method: Method, count: Any) -> str:
    """The method in one word, its dial with as few digits as leave as many tokens."""
    assert method.dial is not None
    name, value, wanted = method.dial.parameter, method.dial_value, count(method)
    joint = "," if ":" in split(spec)[-1] else ":"
    for digits in _DIGITS:
        text = str(value) if method.dial.whole else f"{value:.{digits}g}"
        word = f"{spec}{joint}{name}={text}"
        if count(make_method(word)) == wanted:
            return word
    return word
