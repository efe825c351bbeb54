"""The family that a name speaks of: "Qwen2.5-VL", "llava 1.5", a checkpoint's name on the Hub.

A name proves nothing. It answers whoever has no configuration at hand yet.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from st3.families.examples import EXAMPLES

_ALIASES = {
    "command a vision": "cohere2_vision",
    "fastvlm": "fast_vlm",
    "glm 4.1v": "glm4v",
    "glm 4.5v": "glm4v_moe",
    "glm 4.6v": "glm46v",
    "got ocr 2.0": "got_ocr2",
    "granite vision 4.1": "granite4_vision",
    "hunyuanocr": "hunyuan_vl",
    "internvl 2.5": "internvl",
    "internvl 3": "internvl",
    "internvl 3.5": "internvl",
    "kimi k2.5": "kimi_k25",
    "kimi k2.6": "kimi_k25",
    "lightonocr": "lighton_ocr",
    "llama 3.2 vision": "mllama",
    "llava 1.5": "llava",
    "llava 1.6": "llava_next",
    "minicpm v 4.6": "minicpmv4_6",
    "minicpm v 4.7": "minicpmv4_7",
    "mistral small 3.1": "mistral3",
    "mistral small 3.2": "mistral3",
    "paligemma 2": "paligemma",
    "smolvlm 2": "smolvlm",
    "step 3.7": "step3p7",
    "videollama 3": "video_llama_3",
    "vip llava": "vipllava",
}
"""What people say where transformers has another name, or one name for several versions."""
_PIECE = re.compile(r"\d+(?:\.\d+)*|[a-z]+")
_SIZES = {"b", "m"}  # behind a number: so many parameters


def name_family(name: str, families: Collection[str]) -> str | None:
    """The one of `families` that a name speaks of, None if it speaks of none.

    The longest that the name begins with. What follows may be a size or a variant ("7B Instruct"),
    not a number alone: DeepSeek-VL 2 is no DeepSeek-VL.

    Args:
        name: as people write it, or a Hub id, whose owner does not matter.
        families: as transformers calls them; of too few, a longer name is taken for a shorter one.
    """
    for family, example in EXAMPLES.items():
        if name == example and family in families:
            return family
    said = _pieces(name.strip().rpartition("/")[2])
    known = {_pieces(family): family for family in families}
    known |= {_pieces(alias): family for alias, family in _ALIASES.items() if family in families}
    for family in families:  # people leave "moe" out; a number of active parameters says it
        known.setdefault(_pieces(family.removesuffix("_moe")), family)
    for pieces, family in known.items():
        if "".join(said) == "".join(pieces).replace(".", ""):  # all in one word: qwen25vl
            return family
    begins = [pieces for pieces in known if said[: len(pieces)] == pieces]
    if not begins:
        return None
    longest = max(begins, key=len)
    family, rest = known[longest], said[len(longest) :]
    if rest and rest[0][0].isdigit() and not {*rest[1:2]} & _SIZES:
        return None
    sparse = any(rest[at] == "a" and rest[at + 2 : at + 3] == ("b",) for at in range(len(rest)))
    return f"{family}_moe" if sparse and f"{family}_moe" in families else family


def _pieces(name: str) -> tuple[str, ...]:
    """Words and numbers: `qwen2_5_vl` and `Qwen2.5-VL` are both qwen, 2.5, vl."""
    plain = re.sub(r"(?<=\d)_(?=\d)", ".", name.lower())
    return tuple(_PIECE.findall(re.sub(r"(?<![a-z])v(?=\d)", "", plain)))
