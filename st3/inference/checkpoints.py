"""Where a checkpoint lies, by what a user calls it, and whether it can be had from there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

HUB_IDS = {
    "7b": "llava-hf/llava-1.5-7b-hf",
    "13b": "llava-hf/llava-1.5-13b-hf",
    "llava-next-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-onevision-7b": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
    "internvl3-8b": "OpenGVLab/InternVL3-8B-hf",
    "gemma3-12b": "google/gemma-3-12b-it",
}
"""Short names."""
_WHICH = (
    f"give demo, {', '.join(HUB_IDS)}, a Hub id such as {HUB_IDS['7b']}[@revision], or the folder "
    "of a checkpoint"
)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_DEMO = Path(__file__).parent.parent / "demo" / "model"


@dataclass(frozen=True)
class Source:
    """Where a checkpoint lies: a folder, or a Hub id with an optional revision."""

    place: str
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it lies on this machine's disk; otherwise on the Hub or in its cache."""
        return Path(self.place).is_dir()


def find(name: str, revision: str | None = None) -> Source:
    """Resolve what a user calls a model. What lies there is not looked at.

    Raises:
        ValueError: a path that is no folder, or something that cannot be a Hub id.
    """
    if not name.strip():
        raise ValueError(f"the model's name is empty: {_WHICH}")
    if name == "demo":
        return Source(str(_DEMO))
    if name == "small":
        raise ValueError("small is a shape without weights, for `st3 profile` alone: try demo")
    place, _, at = name.partition("@")
    if place in HUB_IDS:
        return Source(HUB_IDS[place], at or revision)
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(str(path))
    if path.exists():
        raise ValueError(f"{name} is a file: give the folder of a checkpoint")
    if name[:1] in {".", "/", "~"} or place.count("/") > 1:
        raise ValueError(f"there is no folder {name}")
    if not _HUB_ID.fullmatch(place):
        raise ValueError(f"unknown model {name!r}: {_WHICH}")
    return Source(place, at or revision)


def in_cache(source: Source) -> bool:
    """Whether a checkpoint's weights are on this machine: in its folder, or downloaded before."""
    if source.is_folder:
        return any(Path(source.place).glob("*.safetensors"))

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(source.place, name, revision=source.revision)
        return found if isinstance(found, str) else None

    index = cached("model.safetensors.index.json")
    if index is None:
        return cached("model.safetensors") is not None
    shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    return all(cached(shard) is not None for shard in shards)


def offline() -> bool:
    """Whether the user wants the Hub left alone."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def check_weights(source: Source) -> None:
    """See that a folder has weights that can be read; what the Hub has is seen when it is fetched.

    Raises:
        ValueError: no weights, or pickled ones alone.
    """
    if not source.is_folder or in_cache(source):
        return
    path = Path(source.place)
    pickled = sorted(p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if pickled:
        raise ValueError(
            f"{path} holds pickled weights ({pickled[0]}), which can run code when they are read: "
            "convert them with save_pretrained, which writes safetensors"
        )
    raise ValueError(f"{path} has no weights: no *.safetensors file")


@contextmanager
def fetching(source: Source, hint: str = "") -> Iterator[None]:
    """Say in one line why something of a checkpoint could not be fetched.

    Args:
        source: whose.
        hint: put behind the line.

    Raises:
        OSError: whatever transformers or the Hub's client raised where a checkpoint is not found,
            not allowed or not reachable. Other errors pass.
    """
    try:
        yield
    except Exception as error:
        reason = _not_fetched(error)
        if reason is None:
            raise
        raise OSError(f"{source.place}: {reason}{hint}") from error


def _not_fetched(error: BaseException) -> str | None:
    """Why, by the names in an error's chain of causes: the Hub's exceptions are many."""
    names: set[str] = set()
    link: BaseException | None = error
    while link is not None:
        names |= {cls.__name__ for cls in type(link).__mro__}
        hidden = link.__suppress_context__
        link = link.__cause__ or (None if hidden else link.__context__)
    if "GatedRepoError" in names:
        return "this model is gated: accept its terms on the Hub and set HF_TOKEN"
    if "RevisionNotFoundError" in names:
        return "there is no such revision on the Hub"
    if offline() and names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
        return (
            "the model is not in the local cache and HF_HUB_OFFLINE is set: unset it, or run "
            "`hf download MODEL` where there is a network and set HF_HOME to that cache"
        )
    if "RepositoryNotFoundError" in names:
        return "there is no such model on the Hub, or it is private: check its id, or set HF_TOKEN"
    unreachable = {"LocalEntryNotFoundError", "ConnectError", "ConnectTimeout", "ConnectionError"}
    if names & (unreachable | {"OfflineModeIsEnabled", "TransportError", "ProxyError"}):
        return (
            "the model is not in the local cache and the Hub cannot be reached: check the network, "
            "or run `hf download MODEL` where there is one and set HF_HOME to that cache"
        )
    return None
