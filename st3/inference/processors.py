"""A checkpoint's processor, with what older checkpoints leave to the model's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoProcessor, AutoTokenizer, ProcessorMixin

from st3.inference.checkpoints import Source
from st3.inference.still_processors import load_still_processor

_FILE = "processor_config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
TORCHVISION = (
    "pip install 'st3[vision]'; beside a CPU build of torch, torchvision's first: "
    "pip install torchvision --index-url https://download.pytorch.org/whl/cpu"
)
"""How it comes onto a machine, in messages."""
_FAILURES = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError)


def load_processor(source: Source, config: Any) -> ProcessorMixin:
    """The processor, which pads on the left and knows how many tokens a picture becomes.

    Args:
        source: of the checkpoint.
        config: the model's.

    Raises:
        ValueError: no processor of pictures and text, or one that lacks what the configuration
            does not tell either.
        OSError: not found, or not reachable.
    """
    try:
        processor: Any = AutoProcessor.from_pretrained(
            source.place, revision=source.revision, trust_remote_code=False
        )
    except _FAILURES as error:
        processor = _without_videos(source, config, error)
    if any(getattr(processor, part, None) is None for part in ("tokenizer", "image_processor")):
        unknown = _unknown_class(source)
        if unknown is not None:
            raise ValueError(
                f"{source.place}: this version of transformers has no processor {unknown!r}: see "
                f"processor_class in {_FILE}, or update transformers"
            )
        raise ValueError(
            f"{source.place} has no processor of pictures and text: copy {_FILE} (or "
            "preprocessor_config.json) and the tokenizer's files from the checkpoint it was made of"
        )
    _check_tokenizer(processor, source)
    complete(processor, config, str(Path(source.place) / _FILE if source.is_folder else _FILE))
    processor.tokenizer.padding_side = "left"
    return processor  # type: ignore[no-any-return]


def _unknown_class(source: Source) -> str | None:
    """The processor's class that the files name, where transformers does not know it."""
    try:
        settings, _ = ProcessorMixin.get_processor_dict(
            source.place, revision=source.revision or "main"
        )
    except _FAILURES:
        return None
    name = settings.get("processor_class")
    return None if name is None or hasattr(transformers, name) else str(name)


def _check_tokenizer(processor: Any, source: Source) -> None:
    """A tokenizer whose files are missing comes out empty."""
    mark = getattr(processor, "image_token", None)
    known = processor.tokenizer.convert_tokens_to_ids(mark) if isinstance(mark, str) else 0
    if known is None or (known == processor.tokenizer.unk_token_id and mark != "<unk>"):
        raise ValueError(
            f"{source.place}: its tokenizer does not know {mark}, which stands for a picture: copy "
            "tokenizer.json and tokenizer_config.json from the checkpoint that it was made of"
        )


def _without_videos(source: Source, config: Any, error: Exception) -> Any:
    """A processor of pictures alone, where the whole one cannot be had; None if there is no file.

    Raises:
        ValueError: what transformers said of the whole one, or that torchvision is missing.
        OSError: not reachable.
    """
    try:
        return load_still_processor(source.place, source.revision or "main", config.model_type)
    except ImportError as missing:
        raise ValueError(f"{source.place}: {_missing(missing)}") from missing
    except _FAILURES:
        pass  # the first one tells more
    if isinstance(error, OSError):
        if not source.is_folder:
            raise error
        file = Path(source.place) / _FILE
        if file.is_file():
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{file} makes no processor: {reason}") from error
        return None
    if isinstance(error, ImportError):
        raise ValueError(f"{source.place}: {_missing(error)}") from error  # noqa: TRY004
    if "trust_remote_code" in str(error):
        raise ValueError(
            f"{source.place}: its processor is code of its own, which st3 does not run: in "
            f"{_FILE}, name one that transformers itself has"
        ) from None
    broken = _broken_tokenizer(source)
    if broken is not None:
        raise ValueError(f"{source.place}: its tokenizer cannot be read: {broken}") from error
    raise ValueError(f"{source.place}: its processor cannot be read: {error}") from error


def _broken_tokenizer(source: Source) -> str | None:
    """What is wrong with it, and where; None if it can be read."""
    if source.is_folder and not any(Path(source.place, name).is_file() for name in _TOKENIZERS):
        return f"it has no {_TOKENIZERS[0]} - copy it from the checkpoint that it was made of"
    try:
        AutoTokenizer.from_pretrained(
            source.place, revision=source.revision or "main", trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises bare exceptions
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return f"{reason} - copy tokenizer.json and tokenizer_config.json anew"
    return None


def _missing(error: ImportError) -> str:
    """What to install for a processor, in one line."""
    reason = " ".join(str(error).split())
    if "torchvision" in reason.lower() or "num2words" in reason:
        return f"its processor needs torchvision (SmolVLM's, num2words): {TORCHVISION}"
    return f"its processor needs a package that is missing: {reason[:200]}"


def complete(processor: Any, config: Any, file: str = _FILE) -> None:
    """Fill what a processor needs to count a picture's tokens, where it has a place for it.

    Args:
        processor: changed in place; what it has stays.
        config: the model's.
        file: where it should have been, for messages.

    Raises:
        ValueError: something is missing, and in the configuration as well.
    """
    vision = getattr(config, "vision_config", None)
    for key, owner in (("patch_size", vision), ("vision_feature_select_strategy", config)):
        if getattr(processor, key, "") is not None:
            continue
        value = getattr(owner, key, None)
        if value is None:
            raise ValueError(f"{file} has no {key}, and config.json does not tell it: put it there")
        setattr(processor, key, value)
    # A file that does not tell it reads as 0; if it is, the tower says so too.
    if getattr(processor, "num_additional_image_tokens", None) == 0:
        processor.num_additional_image_tokens = _beside_patches(vision)


def _beside_patches(vision: Any) -> int:
    """Tokens that a vision tower adds to a picture's patches, such as CLIP's class token.

    They are counted on the meta device; a tower that cannot run there is taken to add none.
    """
    try:
        side, patch = vision.image_size, vision.patch_size
        with torch.device("meta"), torch.no_grad():
            tower: Any = AutoModel.from_config(vision, trust_remote_code=False)
            picture = torch.empty(1, vision.num_channels, side, side, dtype=tower.dtype)
            features = tower(pixel_values=picture).last_hidden_state
        return max(0, int(features.shape[1]) - int(side // patch) ** 2)
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError):
        return 0
