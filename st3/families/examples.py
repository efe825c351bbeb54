"""A checkpoint of a family on the Hub, for messages and lists; none of them has been run by us."""

from __future__ import annotations

import re

from st3.families.proven import PROVEN

EXAMPLES = {
    "aria": "rhymes-ai/Aria",
    "aya_vision": "CohereLabs/aya-vision-8b",
    "cohere2_vision": "CohereLabs/command-a-vision-07-2025",
    "deepseek_vl": "deepseek-community/deepseek-vl-1.3b-chat",
    "deepseek_vl_hybrid": "deepseek-community/deepseek-vl-7b-chat",
    "ernie4_5_vl_moe": "baidu/ERNIE-4.5-VL-28B-A3B-PT",
    "fuyu": "adept/fuyu-8b",
    "gemma3": "google/gemma-3-12b-it",
    "gemma4": "google/gemma-4-E2B-it",
    "glm46v": "zai-org/GLM-4.6V",
    "glm4v": "zai-org/GLM-4.1V-9B-Thinking",
    "glm4v_moe": "zai-org/GLM-4.5V",
    "got_ocr2": "stepfun-ai/GOT-OCR-2.0-hf",
    "granite_docling": "ibm-granite/granite-docling-258M",
    "idefics2": "HuggingFaceM4/idefics2-8b",
    "idefics3": "HuggingFaceM4/Idefics3-8B-Llama3",
    "internvl": "OpenGVLab/InternVL3-8B-hf",
    "janus": "deepseek-community/Janus-Pro-1B",
    "lfm2_vl": "LiquidAI/LFM2-VL-1.6B",
    "lighton_ocr": "lightonai/LightOnOCR-1B-1025",
    "llama4": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "llava": "llava-hf/llava-1.5-7b-hf",
    "llava_next": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava_next_video": "llava-hf/LLaVA-NeXT-Video-7B-hf",
    "llava_onevision": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "mistral3": "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    "ovis2": "thisisiron/Ovis2-1B-hf",
    "paligemma": "google/paligemma2-3b-mix-224",
    "perception_lm": "facebook/Perception-LM-1B",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen2_vl": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen3_vl_moe": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "smolvlm": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "video_llava": "LanguageBind/Video-LLaVA-7B-hf",
    "vipllava": "llava-hf/vip-llava-7b-hf",
}


def guess(name: str) -> str | None:
    """The proven family that a checkpoint's name on the Hub speaks of, None if it does of none.

    A name proves nothing: it is for the line that says that the checkpoint cannot be looked at.
    """
    for family, example in EXAMPLES.items():
        if name == example:
            return family
    plain = _plain(name.rpartition("/")[2])
    found = [family for family in PROVEN if plain.startswith(_plain(family))]
    return max(found, key=len, default=None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
