"""`st3 serve`: a trimmed model behind the OpenAI API, until a signal comes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from st3_cli import method_options as m
from st3_cli import options as o
from st3_cli.console import aside, print_json, quiet_transformers, say
from st3_cli.errors import UsageError
from st3_cli.method_choice import build_method, read_settings
from st3_cli.models import load_model, note_hub

if TYPE_CHECKING:
    from st3.methods import Method

EXAMPLES = o.examples(
    "st3 serve",
    "st3 serve --model qwen2.5-vl-7b --tau 256 --port 9000",
    "ST3_API_KEY=$(openssl rand -hex 16) st3 serve --model 7b --host 0.0.0.0",
)
LIMITS = "Limits"


@m.takes_method_options
def serve(
    model: o.ModelOption = "demo",
    method: m.MethodOption = "st3",
    given: m.Given = m.NOTHING,
    settings: m.SettingsOption = None,
    quantization: o.QuantizationOption = None,
    device: o.DeviceOption = o.Device.auto,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
    compile: o.CompileOption = o.Compiler.off,
    batch_size: Annotated[
        int,
        o.option(
            o.COMPUTE, "--batch-size", min=1, metavar="N",
            help="Greedy requests answered together, where so many wait.",
        ),
    ] = 1,
    seed: o.SeedOption = 0,
    host: o.HostOption = "127.0.0.1",
    port: o.PortOption = 8000,
    served_name: Annotated[
        str | None,
        o.option(
            o.SERVER, "--served-name", metavar="NAME", show_default="as --model",
            help="What clients call the model.",
        ),
    ] = None,
    also: Annotated[
        str | None,
        o.option(
            o.SERVER, "--also", metavar="LIST", show_default="none",
            help="More methods, as none,fastv:k=2; clients ask for them as NAME:METHOD.",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        o.option(
            o.SERVER, "--api-key", metavar="KEY", envvar="ST3_API_KEY", show_default=False,
            help="What clients must send; others see it in the list of processes, so rather put "
            "it into the environment.",
        ),
    ] = None,
    no_api_key: Annotated[
        bool, o.flag(o.SERVER, "--no-api-key", help="Listen to other machines without a key.")
    ] = False,
    fetch_from: Annotated[
        list[str] | None,
        o.option(
            o.SERVER, "--fetch-from", metavar="HOST", show_default="none",
            help="Fetch pictures by http(s) from this host (img.example.com, or HOST:PORT); more "
            "than once for several. Others send data: URLs.",
        ),
    ] = None,
    queue: Annotated[
        int, o.option(LIMITS, "--queue", metavar="N", min=0, help="Requests that may wait.")
    ] = 64,
    timeout: Annotated[
        float,
        o.option(LIMITS, "--timeout", metavar="SECONDS", help="For a request, waiting included."),
    ] = 300.0,
    max_new_tokens: Annotated[
        int, o.option(LIMITS, "--max-new-tokens", metavar="N", min=1, help="Of an answer.")
    ] = 1024,
    max_body: Annotated[
        float, o.option(LIMITS, "--max-body", metavar="MB", help="Of a request.")
    ] = 68.0,
    max_waiting: Annotated[
        float,
        o.option(LIMITS, "--max-waiting", metavar="MB", help="Of all requests that run or wait."),
    ] = 1000.0,
    max_pictures: Annotated[
        int, o.option(LIMITS, "--max-pictures", metavar="N", min=0, help="Of a request.")
    ] = 16,
    max_pixels: Annotated[
        float,
        o.option(LIMITS, "--max-pixels", metavar="MILLIONS", help="Of all pictures of a request."),
    ] = 100.0,
    json: o.WhereOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """Answer chat completions with pictures over HTTP, as OpenAI's API does; trimmed.

    One request after the other, or those that wait in batches. GET /health, /metrics and
    /v1/models tell the rest. SIGTERM and Ctrl-C finish what runs, and refuse what waits.
    """
    for name, number in (
        ("timeout", timeout), ("max-body", max_body), ("max-waiting", max_waiting),
        ("max-pixels", max_pixels),
    ):  # fmt: skip
        if not 0 < number < float("inf"):
            raise UsageError(f"--{name}: give a number above 0")
    key = _key(api_key, no_api_key)
    try:
        from st3.serving.http.server import Server, bind, is_loopback, url_of
    except ImportError as error:
        raise ValueError(f"st3 serve lacks {error.name}: pip install 'st3[serve]'") from None
    if key is None and not no_api_key and not is_loopback(host):
        raise UsageError(
            f"--host {host} lets other machines ask: set ST3_API_KEY to a key that they must "
            "send, or say --no-api-key"
        )
    from st3.inference import checkpoints, configs
    from st3.serving.http.app import build_app
    from st3.serving.http.chat import Chat
    from st3.serving.http.limits import Limits
    from st3.serving.http.metrics import Metrics
    from st3.serving.http.worker import Worker

    limits = Limits(
        queue, timeout, int(max_body * 1e6), int(max_waiting * 1e6), max_pictures,
        int(max_pixels * 1e6), max_new_tokens,
        frozenset(name.lower() for name in fetch_from or ()),
    )  # fmt: skip
    spec = read_settings(settings, method, "st3", given)
    quiet_transformers()
    source = checkpoints.find(model)
    bound = bind(host, port)
    try:
        note_hub(model)
        layers = configs.load_config(source).get_text_config().num_hidden_layers
        chosen = build_method(spec, layers, given)
        others = _others(also, layers)
        live, processor = load_model(
            model, device, dtype, attn_implementation, quantization, device_map
        )
    except BaseException:
        bound.close()
        raise
    worker = Worker(live, processor, compile.value, batch_size, on_error=_report)
    name = served_name or model
    methods = {name: chosen} | {f"{name}:{spec}": one for spec, one in others.items()}
    chat = Chat(worker, methods, limits, Metrics(), seed)
    url = url_of(bound)
    document = {"url": f"{url}/v1", "model": chat.name, "method": chosen.name}

    def listens() -> None:
        if json:
            print_json(document)
        else:
            aside(f"{chat.name} under {chosen.name} at {url}/v1; /health and /metrics beside it")
        sys.stdout.flush()

    Server(build_app(chat, key), worker, listens).serve_on(bound)


def _key(key: str | None, none: bool) -> str | None:
    """The key, if there is one.

    Raises:
        UsageError: one that is none, or that is not wanted.
    """
    if key is None:
        return None
    if none:
        raise UsageError("--no-api-key, and ST3_API_KEY or --api-key has one: leave one out")
    if not key.strip() or not key.isascii() or not key.isprintable():
        raise UsageError("the API key is empty, or has letters that no header can have")
    return key


def _others(text: str | None, layers: int) -> dict[str, Method]:
    """The methods of a list, checked against a decoder of `layers` layers.

    Raises:
        UsageError: one of them is none, or does not fit.
    """
    from st3.methods import parse_methods

    if text is None:
        return {}
    try:
        found = parse_methods(text)
        for method in found.values():
            method.schedule(layers)
    except ValueError as error:
        raise UsageError(f"--also: {error}") from None
    return found


def _report(error: BaseException) -> None:
    say(f"a request failed: {type(error).__name__}: {error}")
