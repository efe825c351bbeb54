"""`st3 page`: trimming in the browser, until a signal comes."""

from __future__ import annotations

import enum
import sys
from typing import Annotated, Any

from st3_cli import method_options as m
from st3_cli import options as o
from st3_cli.console import aside, print_json, quiet_transformers
from st3_cli.errors import explain
from st3_cli.method_choice import build_method, read_settings
from st3_cli.models import load_model, note_hub

EXAMPLES = o.examples(
    "st3 page",
    "st3 page --model qwen2.5-vl-7b --tau 256 --port 9000",
)


class Share(enum.StrEnum):
    """Whether others get in."""

    off = "off"
    on = "on"


@m.takes_method_options
def page(
    model: o.ModelOption = "demo",
    method: m.MethodOption = "st3",
    given: m.Given = m.NOTHING,
    settings: m.SettingsOption = None,
    quantization: o.QuantizationOption = None,
    device: o.DeviceOption = o.Device.auto,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    attn_implementation: o.AttentionOption = None,
    host: o.HostOption = "127.0.0.1",
    port: o.PortOption = 7860,
    share: Annotated[
        Share,
        o.option(
            o.SERVER, "--share", metavar="NAME",
            help=f"{o.one_of(Share)}: a public address through gradio's tunnel.",
        ),
    ] = Share.off,
    max_new_tokens: Annotated[
        int,
        o.option(o.SERVER, "--max-new-tokens", metavar="N", min=1, help="Of an answer, at most."),
    ] = 512,
    json: o.WhereOption = False,
    debug: o.DebugOption = False,
) -> None:  # fmt: skip
    """A page to try trimming on your own picture: sliders, live patches, both answers."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError("st3 page lacks gradio: pip install 'st3[page]'")
    from st3.inference import checkpoints, configs
    from st3.methods import split_spec
    from st3.methods.composed import split
    from st3.page.asking import Host
    from st3.page.start import serve
    from st3.serving.http.server import bind, is_loopback

    spec = read_settings(settings, method, "st3", given)
    quiet_transformers()
    source = checkpoints.find(model)
    bound = bind(host, port)  # so that it is known before a model is loaded
    try:
        note_hub(model)
        layers = configs.load_config(source).get_text_config().num_hidden_layers
        build_method(spec, layers, given)
        spec = _with(spec, given)
        live, processor = load_model(
            model, device, dtype, attn_implementation, quantization, device_map
        )
        port = bound.getsockname()[1]
    finally:
        bound.close()
    if not is_loopback(host):
        aside(f"note: {host} lets other machines ask; there is no key")

    def ready(url: str, shared: str | None) -> None:
        if json:
            print_json({"url": url, "shared": shared, "model": model, "method": spec})
        else:
            aside(f"{model} under {spec} at {url}")
            if shared:
                aside(f"for everybody at {shared}")
        sys.stdout.flush()

    options = (
        ("quantization", quantization, None), ("device", device, "auto"),
        ("device-map", device_map, None), ("dtype", dtype, "auto"),
        ("attn-implementation", attn_implementation, None),
    )  # fmt: skip
    more = [word for key, value, usual in options if value != usual
            for word in (f"--{key}", str(value))]  # fmt: skip
    serve(
        Host(live, processor, model, explain=lambda error: explain(error)[0]),
        method=spec, trusted=[split_spec(part)[0] for part in split(spec)], more=more,
        address=host, port=port, share=share is Share.on, limit=max_new_tokens, on_ready=ready,
    )  # fmt: skip


def _with(spec: str, given: m.Given) -> str:
    """Options of the ST3 family, as they stand in a spec."""
    if not given:
        return spec
    said = ",".join(f"{name}={_word(value)}" for name, value in given.items())
    return f"{spec}{',' if ':' in spec.rpartition('+')[2] else ':'}{said}"


def _word(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    return "none" if value == 0 and isinstance(value, int) else str(value)
