"""The options that every subcommand shares, and how they become a method."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st3.methods.schedule import ANNEALINGS
from st3_cli.errors import UsageError

if TYPE_CHECKING:
    from st3.methods import Method

MODEL, METHOD, OUTPUT = "Model", "Method", "Output"

Annealing = enum.Enum("Annealing", {name: name for name in ANNEALINGS}, type=str)  # type: ignore[misc]


class Device(enum.StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(enum.StrEnum):
    """What to compute in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Attention(enum.StrEnum):
    """The attention implementations that trimming works with."""

    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    flash_attention_3 = "flash_attention_3"


def share(text: str) -> float:
    """A share of the visual tokens: 0.07 or 7%."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no number: give a share such as 0.07 or 7%"
        ) from None
    if not 0 <= value <= 1:
        hint = f": did you mean {text}%?" if 1 < value <= 100 else " (0 % and 100 %)"
        raise typer.BadParameter(f"{text} is not between 0 and 1{hint}")
    return value


def tau(text: str) -> int:
    """A number of tokens, or 0 for `none`."""
    if text.lower() == "none":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is no whole number from 1 on: give e.g. 128, or none")
    return int(text)


def _stride(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is no whole number of layers from 1 on: give e.g. 4")
    return int(text)


def utf8(text: str | None) -> str | None:
    """A text as it was typed, whatever the locale: Python keeps bytes that this does not know."""
    try:
        return None if text is None else text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise typer.BadParameter("no valid text: it has bytes that are no UTF-8") from None


def _option(group: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=group, **more)


ImageArgument = Annotated[
    str | None,
    typer.Argument(
        help="A path, a URL, or - for standard input.", show_default="a bundled picture"
    ),
]
PromptArgument = Annotated[
    str | None,
    typer.Argument(help="The question.", show_default="Describe this picture.", callback=utf8),
]
ModelOption = Annotated[
    str,
    _option(MODEL, "--model", "-m", help="demo, 7b, 13b, a Hub id (or id@revision), or a folder."),
]
DeviceOption = Annotated[
    Device, _option(MODEL, "--device", help="auto takes CUDA if there is any.")
]
DtypeOption = Annotated[
    Dtype, _option(MODEL, "--dtype", help="auto: the checkpoint's; on a CPU fp32 if it is small.")
]
AttentionOption = Annotated[
    Attention | None,
    _option(
        MODEL,
        "--attn-implementation",
        help="How transformers computes attention.",
        show_default="sdpa",
    ),
]
CudaGraphsOption = Annotated[
    bool,
    _option(
        MODEL, "--cuda-graphs",
        help="Record decode step and repeated prefills once and replay them (CUDA only).",
    ),
]  # fmt: skip


class Compiler(enum.StrEnum):
    """Of decode steps."""

    off = "off"
    inductor = "inductor"


CompileOption = Annotated[
    Compiler,
    _option(MODEL, "--compile", help="Compile the decode step, a minute for a large model."),
]
MethodOption = Annotated[
    str,
    _option(
        METHOD,
        "--method",
        help="A method, such as st3 or fastv:k=2,r=75%; `st3 methods` lists them.",
    ),
]
PruneRatioOption = Annotated[
    float | None,
    _option(
        METHOD,
        "--prune-ratio",
        help="P, dropped at layer 4.",
        show_default="0.5",
        parser=share,
        metavar="P",
    ),
]
StrideOption = Annotated[
    int | None,
    _option(
        METHOD,
        "--stride",
        help="S, layers between cuts.",
        show_default="4, or a quarter of the depth",
        parser=_stride,
        metavar="S",
    ),
]
RatioOption = Annotated[
    float | None,
    _option(
        METHOD,
        "--ratio",
        help="R, dropped every S layers.",
        show_default="from C",
        parser=share,
        metavar="R",
    ),
]
FinalKeepOption = Annotated[
    float | None,
    _option(
        METHOD, "--final-keep", help="C, left in the last layer.",
        show_default="1 % for 32 layers, else 5 %",
        parser=share, metavar="C",
    ),
]  # fmt: skip
TauOption = Annotated[
    int | None,
    _option(
        METHOD, "--tau", help="After so many generated tokens no visual one is left; or none.",
        show_default="128",
        parser=tau, metavar="TOKENS|none",
    ),
]  # fmt: skip
AnnealingOption = Annotated[
    Annealing | None,
    _option(METHOD, "--annealing", help="How they leave over time.", show_default="cosine"),
]
ScorerOption = Annotated[
    str | None,
    _option(
        METHOD,
        "--scorer",
        help="Importance: last-token, prompt, random, ... (docs/method.md).",
        show_default="last-token",
        metavar="NAME",
    ),
]
SeedOption = Annotated[
    int, _option(MODEL, "--seed", help="Seed of whatever is random.", min=0, max=2**32 - 1)
]
JsonOption = Annotated[
    bool, _option(OUTPUT, "--json", help="One JSON document on stdout, all else on stderr.")
]
DebugOption = Annotated[bool, _option(OUTPUT, "--debug", help="Show tracebacks.")]


SettingsOption = Annotated[
    Path | None,
    _option(
        METHOD, "--settings", metavar="FILE.json",
        help="The method that `st3 sweep --budget` chose; in place of the options above.",
    ),
]  # fmt: skip


Given = Mapping[str, Any]
"""The ST3 family's options that were given, as `takes_method_options` collects them."""
NOTHING: Given = {}
_METHOD_OPTIONS = {
    "prune_ratio": PruneRatioOption,
    "stride": StrideOption,
    "ratio": RatioOption,
    "final_keep": FinalKeepOption,
    "tau": TauOption,
    "annealing": AnnealingOption,
    "scorer": ScorerOption,
}


def takes_method_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put the ST3 family's options in the place of a command's parameter `given`.

    The command gets those that were given, by name.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "given":
            parameters.append(parameter)
            continue
        parameters += [
            parameter.replace(name=name, default=None, annotation=annotation)
            for name, annotation in _METHOD_OPTIONS.items()
        ]

    @functools.wraps(command)
    def call(**values: Any) -> None:
        asked = {name: values.pop(name) for name in _METHOD_OPTIONS}
        command(**values, given={name: x for name, x in asked.items() if x is not None})

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def check_question(image: str | None, prompt: str | None) -> None:
    """A picture and a prompt may be left out, but not be empty.

    Raises:
        UsageError: one of them is.
    """
    if image == "":
        raise UsageError("the picture is empty: give a path, a URL or -, or nothing at all")
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty: ask something, e.g. 'What do you see?'")


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
    their labels. `stock` in the list is left out: it is no method, and always measured.

    Raises:
        UsageError: as `build_method`; or an option that no method in the list takes.
    """
    from st3.methods import PVTP, VTA, parse_methods
    from st3.methods.peers import Random, Uniform

    chosen = _chosen(given)
    others = ",".join(spec for spec in text.split(",") if spec.strip() != "stock")
    found: dict[str, Method] = {}
    taken: set[str] = set()
    try:
        for spec, method in parse_methods(others).items() if others or not text else ():
            own = {}
            if isinstance(method, (PVTP, VTA)):
                named = {pair.partition("=")[0].strip() for pair in _parameters(spec)}
                if isinstance(method, (Random, Uniform)):
                    named.add("scorer")  # which is what they are
                fitting = {key: value for key, value in chosen.items() if hasattr(method, key)}
                taken |= fitting.keys()
                own = {key: value for key, value in fitting.items() if key not in named}
            label = ",".join((*_parameters(spec), *(f"{k}={_word(v)}" for k, v in own.items())))
            label = f"{method.name}:{label}" if label else method.name
            found[label] = dataclasses.replace(method, **own)
            found[label].schedule(layers)
    except ValueError as error:
        raise UsageError(str(error)) from None
    left = sorted(chosen.keys() - taken)
    if left:
        raise UsageError(f"--{left[0].replace('_', '-')} is for the ST3 family; none is in {text}")
    return found


def _parameters(spec: str) -> list[str]:
    return [pair.strip() for pair in spec.partition(":")[2].split(",") if pair.strip()]


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
