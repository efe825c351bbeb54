"""All commands. Importing this must not import torch; commands do that when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from st3 import __version__
from st3_cli import (
    attention_map,
    batch,
    benchmark,
    chat,
    env,
    evaluate,
    families,
    methods,
    page,
    profile,
    run,
    serve,
    sweep,
    verify,
)
from st3_cli.console import quiet_imports

app = typer.Typer(
    name="st3",
    help="Faster multimodal LLMs: drop the visual tokens that nobody attends to.",
    epilog="Start with: st3 run  (a bundled picture and the demo model, offline)",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"st3 {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit."),
    ] = False,
) -> None:
    pass


app.command(name="run", epilog=run.EXAMPLES)(run.run)
app.command(name="batch", epilog=batch.EXAMPLES)(batch.batch)
app.command(name="chat", epilog=chat.EXAMPLES)(chat.chat)
app.command(name="serve", epilog=serve.EXAMPLES)(serve.serve)
app.command(name="page", epilog=page.EXAMPLES)(page.page)
app.command(name="profile", epilog=profile.EXAMPLES)(profile.profile)
app.command(name="attention-map", epilog=attention_map.EXAMPLES)(attention_map.attention_map)
app.command(name="sweep", epilog=sweep.EXAMPLES)(sweep.sweep)
app.command(name="evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(name="verify", epilog=verify.EXAMPLES)(verify.verify)
app.command(name="benchmark", epilog=benchmark.EXAMPLES)(benchmark.benchmark)
app.command(name="methods", epilog=methods.EXAMPLES)(methods.methods)
app.command(name="models", epilog=families.EXAMPLES)(families.families)
app.command(name="env")(env.env)


def command_line() -> int | None:
    """Parse the command line and run what it asks for; the exit code."""
    quiet_imports()
    code: int | None = typer.main.get_command(app)(prog_name="st3", standalone_mode=False)
    return code
