"""The demo model as a checkpoint in the standard Hub layout, loaded like any other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from st3.demo.language import SPECIAL, vocabulary
from st3.demo.scenes import PATCH_SIZE, PICTURE_SIZE

PACKAGE = Path(__file__).parent / "model"
_TOWER = re.compile(r"^vision_tower\.(?!vision_model\.)")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ':' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ ' <image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ '\n' + part['text'] }}{% endfor %}"
    "{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or mark, lower case; anything else is <unk>."""
    ids = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="isolated"),
        ]
    )
    # No space before a mark; cleanup knows them all but the colon.
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>"},
    )


def build_processor() -> LlavaProcessor:
    """The processor: pictures are resized to 192 x 192, whatever their shape."""
    size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, do_center_crop=False, crop_size=size),
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def use_hub_names(path: Path) -> None:
    """Name a checkpoint's tensors as LLaVA's on the Hub are named.

    transformers from 5.13 on saves the tower without the level `vision_model`, and reads either;
    other engines read the Hub's names alone.
    """
    tensors = load_file(path)
    named = {_TOWER.sub("vision_tower.vision_model.", name): x for name, x in tensors.items()}
    save_file(named, path, metadata={"format": "pt"})


def save(model: Any, folder: Path) -> None:
    """Write weights (bf16 safetensors), configuration and processor into `folder`."""
    ids = vocabulary()
    assert list(ids)[: len(SPECIAL)] == list(SPECIAL)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
        do_sample=False,
        max_new_tokens=64,
    )
    model.config.text_config._attn_implementation = "sdpa"
    model.save_pretrained(folder)
    use_hub_names(folder / "model.safetensors")
    build_processor().save_pretrained(folder)
