"""The options that the subcommands share: the model, what computes it, what is printed."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, Any

import typer

MODEL, COMPUTE, METHOD, OUTPUT, SERVER = "Model", "Compute", "Method", "Output", "Server"


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


class Quantization(enum.StrEnum):
    """Weights in few bits, see `st3.inference.quantization`."""

    bnb_4bit = "bnb-4bit"
    bnb_8bit = "bnb-8bit"
    torchao_int8 = "torchao-int8"
    torchao_int8_dynamic = "torchao-int8-dynamic"
    torchao_int4 = "torchao-int4"


class Compiler(enum.StrEnum):
    """Of decode steps."""

    off = "off"
    auto = "auto"
    inductor = "inductor"
    openvino = "openvino"


def option(group: str, *names: str, help: str, **more: Any) -> Any:
    """An option in a panel of the help."""
    return typer.Option(*names, help=help, rich_help_panel=group, **more)


def flag(group: str, name: str, *, help: str) -> Any:
    """An option without a value."""
    return option(group, name, help=help, metavar="")


def one_of(kinds: type[enum.Enum]) -> str:
    """The choices in words, for the help text: in a metavar they would break inside words."""
    *most, last = (kind.value for kind in kinds)
    return f"{', '.join(most)} or {last}"


def examples(*commands: str) -> str:
    """What a command's help ends with: a line each."""
    return "\n\n".join(["Examples:", *commands])


def at_most(limit: int) -> Callable[[int | None], int | None]:
    """A callback that refuses more; a range in the help would be wider than its text."""

    def check(value: int | None) -> int | None:
        if value is not None and value > limit:
            raise typer.BadParameter(f"{value} is too large: give at most {limit}")
        return value

    return check


ModelOption = Annotated[
    str,
    option(
        MODEL, "--model", "-m", metavar="NAME",
        help="demo, a short name (7b, qwen2.5-vl-7b, ...; `st3 models`), a Hub id (or "
        "id@revision), or a folder.",
    ),
]  # fmt: skip
HostOption = Annotated[str, option(SERVER, "--host", metavar="NAME", help="Address to listen on.")]
PortOption = Annotated[
    int, option(SERVER, "--port", metavar="N", min=0, max=65535, help="0: any free one.")
]
WhereOption = Annotated[
    bool, flag(OUTPUT, "--json", help="Once it listens, print where as one JSON document.")
]
QuantizationOption = Annotated[
    Quantization | None,
    option(
        COMPUTE, "--quantization", metavar="NAME", show_default="none",
        help=f"Keep the decoder's weights in few bits: {one_of(Quantization)}.",
    ),
]  # fmt: skip
DeviceMapOption = Annotated[
    str | None,
    option(
        COMPUTE, "--device-map", metavar="MAP",
        help="In place of --device: auto, balanced or sequential, or a JSON file (or JSON text) "
        "of modules and their devices.",
    ),
]  # fmt: skip
TensorParallelOption = Annotated[
    bool,
    flag(
        COMPUTE, "--tensor-parallel",
        help="Share the heads out to all processes: torchrun --nproc-per-node 2 -m st3_cli run ...",
    ),
]  # fmt: skip
DeviceOption = Annotated[
    Device,
    option(
        COMPUTE, "--device", metavar="NAME",
        help=f"{one_of(Device)}; auto takes CUDA if there is any.",
    ),
]  # fmt: skip
DtypeOption = Annotated[
    Dtype,
    option(
        COMPUTE, "--dtype", metavar="NAME",
        help=f"{one_of(Dtype)}; auto: the checkpoint's; on a CPU float32 if it is small.",
    ),
]  # fmt: skip
AttentionOption = Annotated[
    Attention | None,
    option(
        COMPUTE, "--attn-implementation", metavar="NAME", show_default="sdpa",
        help=f"How transformers computes attention: {one_of(Attention)}.",
    ),
]  # fmt: skip
CudaGraphsOption = Annotated[
    bool,
    flag(
        COMPUTE, "--cuda-graphs",
        help="Record decode step and repeated prefills once and replay them (CUDA only).",
    ),
]  # fmt: skip
CompileOption = Annotated[
    Compiler,
    option(
        COMPUTE, "--compile", metavar="NAME",
        help=f"{one_of(Compiler)}: compile the decode step, in seconds on a CPU; auto measures "
        "once whether that pays.",
    ),
]  # fmt: skip
SeedOption = Annotated[
    int,
    option(
        MODEL, "--seed", metavar="N", min=0, callback=at_most(2**32 - 1),
        help="Seed of whatever is random.",
    ),
]  # fmt: skip
JsonOption = Annotated[
    bool, flag(OUTPUT, "--json", help="One JSON document on stdout, all else on stderr.")
]
DebugOption = Annotated[bool, flag(OUTPUT, "--debug", help="Show tracebacks.")]
