"""Tiny checkpoints with the real processors of their families, in the files that the Hub has.

True sizes of pictures, tiles and patches, and so true numbers of visual tokens; a tower of two
layers and a decoder of six, with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from st3.inference.image_processors import image_processor_for
from st3.inference.presets import known_config
from st3.inference.shrink import shrink

WORDS = "what do you see where is the red green blue yellow corner user assistant <pad> </s> <unk>"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}MARK {% elif part['type'] == 'video' %}FILM {% else %}"
    "{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)


def _smolvlm() -> Any:
    """SmolVLM's shape at 2 billion parameters: 81 visual tokens a tile."""
    text = known_config("7b").text_config.to_dict()
    return AutoConfig.for_model(
        "smolvlm", scale_factor=3, image_token_id=40, text_config=text,
        vision_config={"image_size": 384, "patch_size": 14, "model_type": "smolvlm_vision"},
    )  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """How to make one.

    Attributes:
        processor: name of its class.
        config: makes the configuration.
        marks: what the tokenizer is told: an attribute -> the token.
        place: what the chat template writes for a picture.
        film: what it writes for a video, if the family takes any.
        films: settings of its video processor, the class among them.
        settings: of the processor; `pictures`, of the image processor.
    """

    processor: str
    config: Callable[[], Any]
    marks: dict[str, str]
    place: str
    settings: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)
    film: str = ""
    films: dict[str, Any] = field(default_factory=dict)


_QWEN = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
_SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
_FILM = "<|vision_start|><|video_pad|><|vision_end|>"
CHECKPOINTS: dict[str, Checkpoint] = {
    "llava_next": Checkpoint(
        "LlavaNextProcessor", lambda: known_config("llava-next-7b"), {"image_token": "<image>"},
        "<image>", {"patch_size": 14, "vision_feature_select_strategy": "default",
                    "num_additional_image_tokens": 1},
    ),
    "llava_onevision": Checkpoint(
        "LlavaOnevisionProcessor", lambda: known_config("llava-onevision-7b"),
        {"image_token": "<image>", "video_token": "<video>"}, "<image>",
        {"num_image_tokens": 729, "vision_feature_select_strategy": "full"}, film="<video>",
        films={"video_processor_type": "LlavaOnevisionVideoProcessor"},
    ),
    "qwen2_5_vl": Checkpoint(
        "Qwen2_5_VLProcessor", lambda: known_config("qwen2.5-vl-7b"), _QWEN, _SEEN,
        film=_FILM,
        films={"video_processor_type": "Qwen2VLVideoProcessor", "do_sample_frames": True, "fps": 2},
    ),
    "qwen3_vl": Checkpoint(
        "Qwen3VLProcessor", lambda: known_config("qwen3-vl-8b"), _QWEN, _SEEN, film=_FILM,
        films={"video_processor_type": "Qwen3VLVideoProcessor"},
    ),
    "internvl": Checkpoint(
        "InternVLProcessor", lambda: known_config("internvl3-8b"),
        {"start_image_token": "<img>", "end_image_token": "</img>",
         "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}, "<IMG_CONTEXT>",
        film="<video>",
        films={"video_processor_type": "InternVLVideoProcessor",
               "size": {"height": 448, "width": 448}},
    ),
    "gemma3": Checkpoint(
        "Gemma3Processor", lambda: known_config("gemma3-12b"),
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>",
         "eoi_token": "<end_of_image>"}, "<start_of_image>",
    ),
    "smolvlm": Checkpoint(
        "SmolVLMProcessor", _smolvlm,
        {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
         "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
         "video_token": "<video>"},
        "<image>", {"image_seq_len": 81},
        {"size": {"longest_edge": 1152}, "max_image_size": {"longest_edge": 384}}, film="<video>",
        films={"video_processor_type": "SmolVLMVideoProcessor",
               "max_image_size": {"longest_edge": 384},
               "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 384}},
               "size": {"longest_edge": 384}},
    ),
}  # fmt: skip


def save_checkpoint(name: str, folder: Path) -> Path:
    """Write one; its answers are noise, its pictures and tokens are not."""
    made = CHECKPOINTS[name]
    config = made.config()
    pictures = image_processor_for(config)
    for key, value in made.pictures.items():
        setattr(pictures, key, value)
    tokenizer = _tokenizer(made)
    image = tokenizer.convert_tokens_to_ids(
        made.marks.get("context_image_token", made.marks.get("image_token", ""))
    )
    config = shrink(config, pictures=False)
    config.text_config.update({"vocab_size": len(tokenizer), "pad_token_id": 0})
    config.image_token_id = config.image_token_index = image
    for key, mark in (("video_token_id", "video_token"), ("video_token_index", "video_token")):
        if hasattr(config, key):
            setattr(config, key, tokenizer.convert_tokens_to_ids(made.marks[mark]))
    for key, word in (("vision_start_token_id", "<|vision_start|>"),
                      ("vision_end_token_id", "<|vision_end|>")):  # fmt: skip
        if hasattr(config, key):
            setattr(config, key, tokenizer.convert_tokens_to_ids(word))
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1 and not bool(weight.abs().sum()):
                weight.normal_(std=0.1)  # a projection that is born as zeros
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor = pictures.to_dict()
    settings = made.settings | {"processor_class": made.processor}
    _write(folder / "processor_config.json", settings | {"image_processor": image_processor})
    if made.films:
        _write(folder / "video_preprocessor_config.json", made.films)
    template = TEMPLATE.replace("MARK", made.place).replace("FILM", made.film)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def _tokenizer(made: Checkpoint) -> PreTrainedTokenizerFast:
    marks = [*made.marks.values(), "<|vision_start|>", "<|vision_end|>"]
    vocabulary = {word: number for number, word in enumerate(["<pad>", *WORDS.split()[:-3]])}
    for word in ("</s>", "<unk>", *marks):
        vocabulary.setdefault(word, len(vocabulary))
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=made.marks, padding_side="left",
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": marks[-2:]})
    assert hasattr(transformers, made.processor)
    return tokenizer


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, default=str), encoding="utf-8")
