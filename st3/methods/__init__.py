"""The registry of trimming methods: name -> schedule and scorer.

A method is a frozen dataclass whose fields are its parameters. To add one that chooses before the
decoder, or has a score of its own in it, put its file into `st3.methods.before` or
`st3.methods.inside`, where it is found; to add any other, write the class and put it into
`METHODS`. `trim` and every command know it from then on. One outside the package is named by its
file (`st3.methods.own`). A method can be written as one word, a *spec*: `st3`, `fastv:k=2,r=50%`,
`st3:tau=none`, `./mine.py:Mine:k=2`; a word in it that names a published setting of the method
stands for its parameters, as in `dpp:64`; what follows it goes before, as in
`cdpruner:64,theta=0.5`. Two specs with a `+` between are one method: the first before the decoder,
the second inside it.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from st3.methods.base import Method, Untrimmed
from st3.methods.before import selectors
from st3.methods.composed import Composed, split
from st3.methods.inside import insiders
from st3.methods.own import find_own, offered, split_spec
from st3.methods.peers import VTW, FastV, PyramidDrop, Random, Uniform
from st3.methods.st3 import PVTP, ST3, VTA

__all__ = [
    "METHODS", "PVTP", "VTA", "Method", "compose", "find_method", "make_method", "parameters",
    "parse_methods", "split_spec",
]  # fmt: skip

METHODS: dict[str, type[Method]] = (
    {m.name: m for m in (Untrimmed, PVTP, VTA, ST3, FastV, VTW, PyramidDrop, Random, Uniform)}
    | selectors()
    | insiders()
)


_TRUTHS = {"true": True, "false": False, "yes": True, "no": False}


def parameters(name: str) -> tuple[str, ...]:
    """Names of the parameters of the method `name`.

    Raises:
        ValueError: an unknown method.
    """
    return tuple(field.name for field in dataclasses.fields(find_method(name)))


def compose(first: str, *others: str, **given: Any) -> Method:
    """The method of two specs; what is given goes to the second, or else to the first.

    Raises:
        ValueError: as `make_method`; more than two, or two that do not go together.
    """
    if len(others) != 1:
        raise ValueError(
            f"{'+'.join((first, *others))}: a composition has two methods, one before the decoder "
            "and one inside it"
        )
    (second,) = others
    known = parameters(split_spec(second)[0])
    inside = {name: value for name, value in given.items() if name in known}
    outside = {name: value for name, value in given.items() if name not in known}
    before: Any = make_method(first, **outside)
    return Composed(before=before, inside=make_method(second, **inside))


def make_method(spec: str | Method | type[Method], **given: Any) -> Method:
    """The method that `spec` names, with the parameters in it and those in `given`.

    A named setting comes first; what is said besides goes before what it says. A class
    stands for itself, and so does a method, which has its parameters.

    Raises:
        ValueError: an unknown method, setting or parameter (the known ones are named), a parameter
            given twice, a bad value, or two methods that do not go together.
    """
    if isinstance(spec, Method):
        if given:
            raise ValueError(
                "give parameters with the name of a method, not with a Method: leave out "
                + ", ".join(given)
            )
        return spec
    if isinstance(spec, str):
        parts = split(spec)
        if len(parts) > 1:
            return compose(*parts, **given)
        name, rest = split_spec(spec)
        cls = find_method(name)
    else:
        cls, name, rest = spec, spec.name, ""
    known = tuple(field.name for field in dataclasses.fields(cls))
    words = [word for word in map(str.strip, rest.split(",")) if word]
    published: Mapping[str, str] = getattr(cls, "published", {})
    named: dict[str, str] = {}
    if words and words[0] in published:
        named = dict(pair.split("=") for pair in published[words.pop(0)].split(","))
    chosen: dict[str, str] = {}
    for pair in words:
        key, equals, value = (part.strip() for part in pair.partition("="))
        key = key.replace("-", "_")
        if pair in published:
            raise ValueError(f"{spec}: a named setting comes first, and alone: got {pair!r} behind")
        if not equals or not value:
            raise ValueError(
                f"{spec}: write a parameter as name=value, got {pair!r}{_settings(published, pair)}"
            )
        if key in chosen or key in given:
            raise ValueError(f"{spec}: {key} is given twice")
        chosen[key] = value
    chosen = {key: value for key, value in named.items() if key not in given} | chosen
    for parameter in (*chosen, *given):
        if parameter not in known:
            raise ValueError(
                f"method {name!r} has no parameter {parameter!r}; it has: {', '.join(known)}"
            )
    hints = typing.get_type_hints(cls)
    return cls(**{key: _read(key, value, hints[key]) for key, value in chosen.items()}, **given)


def parse_methods(text: str) -> dict[str, Method]:
    """Methods from a list such as `none,st3,fastv:k=2,r=0.5,vtw:k=16`: spec -> method.

    A piece that begins with a parameter goes on with those of the method before it.

    Raises:
        ValueError: as `make_method`; or nothing in the list.
    """
    specs: list[str] = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        if specs and "=" in split_spec(split(piece)[0])[0]:
            specs[-1] += ("," if split_spec(split(specs[-1])[-1])[1] else ":") + piece
        else:
            specs.append(piece)
    if not specs:
        raise ValueError(f"no method in {text!r}; known: {', '.join(METHODS)}")
    return {spec: make_method(spec) for spec in specs}


def _read(name: str, text: str, hint: Any) -> Any:
    """A parameter's value from its text, by the type that it has."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if text.lower() == "none" and types.NoneType in allowed:
        return None
    if str in allowed:
        return text
    if bool in allowed:
        if text.lower() not in _TRUTHS:
            raise ValueError(f"{name} must be one of {', '.join(_TRUTHS)}, got {text!r}")
        return _TRUTHS[text.lower()]
    try:
        if int in allowed:
            return int(text)
        if float in allowed:
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        kind = "whole number" if int in allowed else "number"
        raise ValueError(f"{name} must be a {kind}, got {text!r}") from None
    return text


def _settings(published: Mapping[str, str], word: str) -> str:
    """Which named settings there are, behind a word that is none."""
    alike = [name for name in published if name.replace("drop-", "").replace("keep-", "") == word]
    if alike:
        return f"; did you mean {alike[0]}, which is {published[alike[0]]}?"
    return f", or a named setting: {', '.join(published)}" if published else ""


def find_method(name: str) -> type[Method]:
    """The class of a method: of the registry, in a file (`./mine.py:Mine`), of another package.

    Raises:
        ValueError: there is none of this name, or it cannot be had.
    """
    found = METHODS.get(name) or find_own(name)
    if found is not None:
        return found
    everyone = (*METHODS, *offered())
    close = difflib.get_close_matches(name.lower(), everyone, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ValueError(f"unknown method {name!r}{hint}; known: {', '.join(everyone)}")
