"""`st3 verify MODEL`: is it right on my model? Every method against stock and against an oracle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from st3.files import plainly, write_text
from st3_cli import method_options as m
from st3_cli import options as o
from st3_cli.console import (
    aside,
    err,
    print_json_text,
    print_table,
    print_texts,
    quiet_transformers,
    say,
)
from st3_cli.errors import UsageError
from st3_cli.method_choice import build_methods
from st3_cli.models import note_hub
from st3_cli.outputs import check_output

if TYPE_CHECKING:
    from st3.verification.report import Report

EXAMPLES = o.examples(
    "st3 verify ./my-checkpoint",
    "st3 verify qwen2.5-vl-7b --methods none,st3,fastv:k=2",
    "st3 verify Qwen/Qwen3-VL-8B-Instruct --random --json",
)


@m.takes_method_options
def verify(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", show_default="demo",
            help="demo, a built-in shape (7b, qwen2.5-vl-7b, ...), a Hub id (or id@revision), or a "
            "folder.",
        ),
    ] = "demo",
    random: Annotated[
        bool,
        o.flag(
            o.MODEL, "--random",
            help="Take a tiny random model of its configuration, and read no weights.",
        ),
    ] = False,
    methods: Annotated[
        str | None,
        o.option(
            o.METHOD, "--methods", "--method", metavar="LIST", show_default="all",
            help="Several, of those that `st3 methods` lists; the options below go to the ST3 "
            "family in it.",
        ),
    ] = None,
    given: m.Given = m.NOTHING,
    new_tokens: Annotated[
        int,
        o.option(
            o.MODEL, "--new-tokens", "--new", metavar="N", min=2, callback=o.at_most(4096),
            help="Tokens to generate; tau follows from it unless it is given.",
        ),
    ] = 12,
    device: o.DeviceOption = o.Device.auto,
    dtype: Annotated[
        o.Dtype,
        o.option(
            o.COMPUTE, "--dtype", metavar="NAME",
            help=f"{o.one_of(o.Dtype)}; auto: float32 if it fits, else the checkpoint's.",
        ),
    ] = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
    seed: o.SeedOption = 0,
    output: Annotated[
        Path | None,
        o.option(o.OUTPUT, metavar="FILE", help="Save it as FILE.json or .md."),
    ] = None,
    force: Annotated[bool, o.flag(o.OUTPUT, "--force", help="Overwrite FILE.")] = False,
    json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Is it right on my model? Untrimmed must be stock, and every method what an oracle says.

    The oracle is the model's own stock layers, at full length, hiding what a method drops.
    Exit code 0: all that was measured is green. 1: something is red, or nothing was measured.
    """
    check_output("--output", output, force, ".json", ".md")

    from st3.methods import parse_methods
    from st3.verification import verify as v
    from st3.verification.fitting import standard_methods

    named = {} if methods is None else parse_methods(methods)  # before anything is loaded
    kinds = {given.get("kv_cache_dtype", "auto"), *(m.kv_cache_dtype for m in named.values())}
    if kinds != {"auto"}:
        raise UsageError(
            "st3 verify proves what is dropped, by an oracle whose KV cache has all its bits: "
            "leave kv_cache_dtype out"
        )
    quiet_transformers()
    if "/" in model and not random:
        note_hub(model)
    subject = v.find_subject(
        model, random=random, device=device.value, dtype=dtype.value, seed=seed,
        attn_implementation=attn_implementation.value if attn_implementation else None,
    )  # fmt: skip
    layers = subject.layers
    chosen = build_methods(
        methods if methods is not None else standard_methods(layers), layers, given
    )
    report = v.verify(
        subject, chosen, new=new_tokens,
        on_method=lambda label: aside(f"verifying {label}"),
    )  # fmt: skip
    if json:
        print_json_text(report.json())
    else:
        _print(report)
    if output is not None:
        with plainly("write", output):
            write_text(output, report.json() if output.suffix == ".json" else report.markdown())
        if not json:
            aside(f"wrote {output}")
    if report.verdict != "green":
        say(report.summary())
        raise typer.Exit(1)


def _print(report: Report) -> None:
    findings, *words = report.tables()
    print_table(findings.title, findings.heads, findings.rows)
    print_texts(*((table.title, table.heads, table.rows) for table in words))
    for line in (*report.notes, report.explained()):
        err.print(line, style="dim")
