"""From a name to a model and its processor: `demo`, `7b`, `13b`, a Hub id or a local folder.

One path for all of them: transformers' own `from_pretrained`, safetensors only. `random_model`
makes a model of the same shape with random weights, for measuring without a download.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from st3.families.parts import judge

HUB_IDS = {"7b": "llava-hf/llava-1.5-7b-hf", "13b": "llava-hf/llava-1.5-13b-hf"}
DTYPES = ("auto", "float32", "bfloat16", "float16")
PRESETS = ("demo", "small", "7b", "13b")
"""Built-in shapes; `small` is one without weights, that a laptop can time."""
# Decoder: hidden, intermediate, layers, head size. LLaVA-1.5's are LLaMA's; `small` has 7b's
# proportions and depth.
_SIZES = {"small": (640, 1728, 32, 64), "7b": (4096, 11008, 32, 128), "13b": (5120, 13824, 40, 128)}
_DEMO = Path(__file__).parent.parent / "demo" / "model"
_LARGE = 1_000_000_000  # parameters above which fp32 on a CPU is a waste of memory


@dataclass(frozen=True)
class Source:
    """Where a checkpoint lies: a folder, or a Hub id with an optional revision."""

    place: str
    revision: str | None = None


def find(name: str, revision: str | None = None) -> Source:
    """Resolve what a user calls a model.

    Raises:
        ValueError: a path that is no checkpoint, or something that cannot be a Hub id.
    """
    if name == "demo":
        return Source(str(_DEMO))
    if name == "small":
        raise ValueError("small is a shape without weights, for `st3 profile` alone: try demo")
    place, _, at = name.partition("@")
    if place in HUB_IDS:
        return Source(HUB_IDS[place], at or revision)
    path = Path(name).expanduser()
    if path.is_dir():
        _check_folder(path)
        return Source(str(path))
    if path.exists():
        raise ValueError(f"{name} is a file: give the folder of a checkpoint")
    if name[:1] in {".", "/", "~"} or place.count("/") > 1:
        raise ValueError(f"there is no folder {name}")
    if place.count("/") != 1 or not all(place.split("/")):
        raise ValueError(
            f"unknown model {name!r}: give demo, 7b, 13b, a Hub id such as "
            f"{HUB_IDS['7b']}[@revision], or the folder of a checkpoint"
        )
    return Source(place, at or revision)


def load_config(source: Source) -> Any:
    """The checkpoint's configuration, of a family that has an adapter.

    Raises:
        ValueError: no adapter.
        OSError: not found, or not reachable.
    """
    try:
        config = AutoConfig.from_pretrained(
            source.place, revision=source.revision, trust_remote_code=False
        )
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{source.place} brings code of its own, which st3 does not run: take a checkpoint "
            "of a family that transformers itself has"
        ) from None
    judge(config)
    return config


def load(
    name: str = "demo",
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model for inference, and its processor.

    Args:
        name: `demo` (packaged), `7b`, `13b`, a Hub id with an optional `@revision`, or a folder.
        device: `auto` (CUDA where there is one), or any torch device.
        dtype: one of `DTYPES`; `auto` is the checkpoint's own on a GPU, and on a CPU fp32 for
            models below a billion parameters and bf16 above.
        revision: branch, tag or commit on the Hub.
        attn_implementation: passed to transformers; its default (SDPA) if None.

    Raises:
        ValueError: a name, device, dtype, family or checkpoint that cannot be used.
        OSError: not found, or not reachable.
    """
    source = find(name, revision)
    config = load_config(source)
    chosen = find_device(device)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        source.place,
        revision=source.revision,
        config=config,
        dtype=find_dtype(dtype, chosen, config),
        attn_implementation=attn_implementation,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of a {config.model_type} model, {missing[0]} "
            "among them: the checkpoint is incomplete"
        )
    processor: Any = AutoProcessor.from_pretrained(
        source.place, revision=source.revision, trust_remote_code=False
    )
    processor.tokenizer.padding_side = "left"
    return model.to(chosen).eval(), processor


def random_model(
    config: Any,
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A model of this configuration with random weights: it times as a trained one would.

    Raises:
        ValueError: no adapter for the family, or no such device.
    """
    judge(config)
    torch.manual_seed(seed)
    with torch.device(find_device(device)):
        model: Any = AutoModelForImageTextToText.from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation=attn_implementation
        )
    model.eval()
    return cast(PreTrainedModel, model)


def known_config(name: str) -> Any:
    """The configuration of one of `PRESETS`, with no network.

    Raises:
        ValueError: any other name.
    """
    if name == "demo":
        return load_config(find(name))
    if name not in _SIZES:
        raise ValueError(f"no built-in configuration {name!r}; there are: {', '.join(PRESETS)}")
    hidden, intermediate, layers, head_size = _SIZES[name]
    tower = (256, 1024, 6, 4) if name == "small" else (1024, 4096, 24, 16)
    vision = CLIPVisionConfig(
        hidden_size=tower[0],
        intermediate_size=tower[1],
        num_hidden_layers=tower[2],
        num_attention_heads=tower[3],
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head_size,
        num_key_value_heads=hidden // head_size,
        max_position_embeddings=4096,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000)


def read_config(path: Path) -> Any:
    """The configuration in a `config.json`, or in the one of a folder.

    Raises:
        ValueError: no such file, no JSON, or of no family that transformers knows and we adapt.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    family = found.pop("model_type", None) if isinstance(found, dict) else None
    if family is None:
        raise ValueError(f"{path} is no model's configuration: it has no model_type")
    try:
        config = AutoConfig.for_model(family, **found)
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        raise ValueError(f"{path} makes no configuration: {error}") from error
    judge(config)
    return config


def in_cache(source: Source) -> bool:
    """Whether a checkpoint's weights are on this machine: a folder, or downloaded before."""
    if Path(source.place).is_dir():
        return True

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(source.place, name, revision=source.revision)
        return found if isinstance(found, str) else None

    index = cached("model.safetensors.index.json")
    if index is None:
        return cached("model.safetensors") is not None
    shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    return all(cached(shard) is not None for shard in shards)


def find_device(device: str) -> torch.device:
    """`auto` -> CUDA where there is one.

    Raises:
        ValueError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: give auto, cpu or cuda") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            has = f"{count} of them" if count else "none"
            raise ValueError(f"no device {device!r}: torch sees {has}; use the device cpu")
    return chosen


def find_dtype(dtype: str, device: torch.device, config: Any) -> torch.dtype:
    """The dtype to load in; see `load`.

    Raises:
        ValueError: not a dtype of ours, or one that the device lacks.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("this GPU has no bfloat16: use the dtype float16")
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type == "cuda":
        own = config.dtype or config.get_text_config().dtype
        if isinstance(own, torch.dtype):
            return own
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    with torch.device("meta"):
        count = AutoModelForImageTextToText.from_config(config).num_parameters()
    return torch.float32 if count < _LARGE else torch.bfloat16


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is no checkpoint: it has no config.json")
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if pickled:
        raise ValueError(
            f"{path} holds pickled weights ({pickled[0]}), which can run code when they are read: "
            "convert them with save_pretrained, which writes safetensors"
        )
    raise ValueError(f"{path} has no weights: no *.safetensors file")
