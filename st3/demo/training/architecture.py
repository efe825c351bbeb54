"""The demo's shape: a small, true LLaVA with LLaVA-1.5's 576 visual tokens.

One place for every size. The tower sees 192 x 192 pictures in patches of 8; the decoder has the
depth of LLaVA-1.5-7B's, so that every method has the same schedule in both, and starts with fewer
layers (st3/demo/training/growth.py).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from st3.demo.scenes import PATCH_SIZE, PICTURE_SIZE

LAYERS = 32
YOUNG_LAYERS = 12
WIDTH = 128
HEADS = 4


def build_config(vocabulary: dict[str, int], layers: int = LAYERS) -> LlavaConfig:
    """The configuration for a tokenizer's `vocabulary` (token -> id) and a decoder's depth."""
    special: dict[str, Any] = {
        "bos_token_id": vocabulary["<s>"],
        "eos_token_id": vocabulary["</s>"],
        "pad_token_id": vocabulary["<pad>"],
    }
    vision = CLIPVisionConfig(
        image_size=PICTURE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        intermediate_size=384,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=320,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2048,
        initializer_range=0.06,
        # Slow turns leave half of a head's dimensions alike all over the picture, so that a word
        # and a patch can be compared by what they mean; with 10 000 it is a quarter.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        **special,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocabulary["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_seq_length=(PICTURE_SIZE // PATCH_SIZE) ** 2,
        tie_word_embeddings=False,
        **special,
    )


def build_model(config: LlavaConfig, seed: int) -> LlavaForConditionalGeneration:
    """An untrained model in fp32; the tower starts with a sense of place, see `_locate`."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    _locate(model)
    return model


@torch.no_grad()
def _locate(model: LlavaForConditionalGeneration) -> None:
    """Start the tower's attention local, as ConViT does (d'Ascoli et al., 2021).

    The position embedding holds sines and cosines of the patch's row and column; every head's
    queries and keys read a part of them, the query turned by the head's own offset, so that a
    head attends around the patch that lies at that offset. Training is free to leave all this.
    """
    tower = model.model.vision_tower
    side = tower.config.image_size // tower.config.patch_size
    frequencies = torch.linspace(0.08, 1.3, 16)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")

    def waves(place: torch.Tensor) -> torch.Tensor:  # [n] -> [n, 32], pairs (cos, sin)
        angle = place.reshape(-1, 1) * frequencies
        return torch.stack((angle.cos(), angle.sin()), dim=-1).flatten(1)

    embeddings = tower.embeddings
    position = embeddings.position_embedding.weight
    position.mul_(0.1)
    position[1:, :64] = torch.cat((waves(row), waves(column)), dim=1)
    embeddings.patch_embedding.weight.normal_(0, 0.07)
    embeddings.patch_embedding.weight[:64].mul_(0.1)

    offsets = [(-1.5, -1.5), (-1.5, 1.5), (1.5, -1.5), (1.5, 1.5)]
    for depth, layer in enumerate(tower.encoder.layers):
        attention = layer.self_attn
        reach = (1.0, 2.0, 2.0, 1.0)[depth % 4]
        for head in range(HEADS):
            rows = slice(head * 32, head * 32 + 32)
            dims = torch.arange(16).repeat_interleave(2) * 4 + torch.arange(2).repeat(16)
            select = torch.zeros(32, WIDTH)
            select[torch.arange(32), dims] = 1.5
            turn = torch.zeros(32, 32)
            for pair in range(16):
                axis = 0 if pair < 8 else 1
                angle = -frequencies[(pair % 8) * 2] * offsets[head][axis] * reach
                cos, sin = angle.cos(), angle.sin()
                block = torch.tensor([[cos, sin], [-sin, cos]])
                turn[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = block
            attention.q_proj.weight[rows] = turn @ select
            attention.k_proj.weight[rows] = select
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.add_(torch.randn_like(projection.weight) * 0.02)
            projection.bias.zero_()
