"""From what was asked on the command line to methods that fit a decoder's depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st3_cli.errors import UsageError
from st3_cli.method_options import Given

if TYPE_CHECKING:
    from st3.methods import Method


def read_settings(path: Path | None, spec: str, default: str, given: Given) -> str:
    """The method in a settings file, or `spec` where there is none.

    Raises:
        UsageError: no such file or no method in it; or a method or parameters given as well.
    """
    if path is None:
        return spec
    also = list(given)
    if spec != default or also:
        other = f"--{also[0].replace('_', '-')}" if also else "--method"
        raise UsageError(f"--settings and {other} both say how to trim: leave one out")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["method"]
    except OSError as error:
        raise UsageError(f"--settings: cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise UsageError(f'--settings: {path} has no "method"; `st3 sweep --budget` writes one')
    return found


def build_method(spec: str, layers: int, given: Given) -> Method:
    """The method that was asked for, checked against a decoder of `layers` layers.

    Raises:
        UsageError: an unknown method, a parameter that it lacks, or values that do not fit.
    """
    from st3.methods import make_method

    chosen = _chosen(given)
    try:
        method = make_method(spec, **chosen)
        method.schedule(layers)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return method


def build_methods(text: str, layers: int, given: Given) -> dict[str, Method]:
    """The methods of a list: label -> method.

    Options go to those of the ST3 family that have them and do not name them themselves, and into
    their labels; --kv-cache-dtype goes to every method. `stock` in the list is left out: it is no
    method, and always measured.

    Raises:
        UsageError: as `build_method`; or an option that no method in the list takes.
    """
    from st3.methods import PVTP, VTA, parse_methods, split_spec
    from st3.methods.composed import split
    from st3.methods.peers import Random, Uniform

    chosen = _chosen(given)
    others = ",".join(spec for spec in text.split(",") if spec.strip() != "stock")
    found: dict[str, Method] = {}
    taken: set[str] = set()
    try:
        for spec, method in parse_methods(others).items() if others or not text else ():
            fitting = {key: value for key, value in chosen.items() if key == "kv_cache_dtype"}
            *first, last = split(spec)
            named = {pair.partition("=")[0].strip() for pair in _parameters(last)}
            decides = getattr(method, "inside", method)
            if isinstance(decides, (PVTP, VTA)):
                if isinstance(decides, (Random, Uniform)):
                    named.add("scorer")  # which is what they are
                fitting = {key: value for key, value in chosen.items() if hasattr(decides, key)}
            taken |= fitting.keys()
            own = {key: value for key, value in fitting.items() if key not in named}
            label = ",".join((*_parameters(last), *(f"{k}={_word(v)}" for k, v in own.items())))
            label = f"{split_spec(last)[0]}:{label}" if label else split_spec(last)[0]
            label = "+".join((*(part.strip() for part in first), label))
            found[label] = method.changed(**own)
            found[label].schedule(layers)
    except ValueError as error:
        raise UsageError(str(error)) from None
    left = sorted(chosen.keys() - taken)
    if left:
        raise UsageError(f"--{left[0].replace('_', '-')} is for the ST3 family; none is in {text}")
    return found


def _parameters(spec: str) -> list[str]:
    from st3.methods import split_spec

    return [pair.strip() for pair in split_spec(spec)[1].split(",") if pair.strip()]


def _word(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _chosen(given: Given) -> dict[str, Any]:
    """The options that were given, as parameters.

    Raises:
        UsageError: --tau and --annealing that contradict each other.
    """
    chosen = dict(given)
    tau, annealing = given.get("tau"), given.get("annealing")
    if tau is not None and annealing is not None and (tau == 0) != (annealing.value == "none"):
        raise UsageError("--tau and --annealing contradict each other: leave one out")
    if "tau" in chosen:
        chosen["tau"] = chosen["tau"] or None
    if "annealing" in chosen:
        chosen["annealing"] = chosen["annealing"].value
    return chosen
