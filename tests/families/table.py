"""The table of docs/models.md: every image-text-to-text family of transformers, and what st3 says.

`python tests/families/table.py` writes it, `--check` fails where it is not what is written.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from families.zoo import ZOO
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from st3.families.examples import EXAMPLES
from st3.families.parts import judge

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
MADE_WITH = "5.23.0"
"""The version of transformers whose families are listed."""
_LONG = 120
_HEAD = "| family | status | handed in | oracle | text models, or why | for example |"
_BEGIN, _END = "<!-- table of families -->\n", "<!-- end of table -->"


def _proven() -> dict[str, tuple[set[str], bool, str, str]]:
    """Family -> text models that an oracle has proven, whether with videos, what was handed in, and
    which oracle.
    """
    found: dict[str, tuple[set[str], bool, str, str]] = {}
    for tiny in ZOO.values():
        config = tiny.configuration()
        texts, video, *_ = found.get(config.model_type, (set(), False))
        states = {*tiny.text.get("layer_types", ())} & {"linear_attention", "conv"}
        text = config.get_text_config().model_type
        oracle = "compaction" if states else "masked"
        given = "encoded features" if tiny.encoded else "pixels"
        found[config.model_type] = texts | {text}, video or tiny.video, given, oracle
    return found


def _judged(family: str) -> tuple[str, str]:
    """What st3 says of a family's default configuration: a status, and why."""
    try:
        config: Any = CONFIG_MAPPING[family]()
        for name in ("image_token_id", "video_token_id"):
            if getattr(config, name, 0) is None:  # checkpoints set it
                setattr(config, name, 5)
        judge(config)
    except ValueError as error:
        reason = str(error)
        if reason.startswith("st3 cannot trim"):
            return "refused", reason.partition(": ")[2]
        return "not tried", _in_a_line(reason)
    except Exception as error:  # a configuration may fail in many ways
        return "not tried", _in_a_line(f"this configuration cannot be made: {error}")
    return "fits", "not proven by an oracle"


def _in_a_line(reason: str) -> str:
    """The beginning of an error, as a cell of the table."""
    line = " ".join(reason.split()).replace("|", "/").replace("`", "'")
    return line if len(line) <= _LONG else line[:_LONG].rsplit(" ", 1)[0] + " ..."


def table() -> str:
    """Markdown."""
    proven = _proven()
    lines = [_HEAD, "| --- | --- | --- | --- | --- | --- |"]
    for family in sorted({*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *proven}):
        if family in proven:
            texts, video, given, oracle = proven[family]
            what = "works, pictures and video" if video else "works, pictures"
            cells = what, given, oracle, ", ".join(sorted(texts)), EXAMPLES.get(family, "-")
            lines.append(f"| `{family}` | {' | '.join(cells)} |")
        else:
            status, why = _judged(family)
            lines.append(f"| `{family}` | {status} | - | - | {why} | - |")
    return "\n".join(lines) + "\n"


def written() -> str:
    """What the page holds."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)].strip() + "\n"


def main() -> None:
    """Write or check."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    made = table()
    if "--check" in sys.argv:
        sys.exit(0 if made == written() else "docs/models.md is not what is made: write it anew")
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text[: text.index(_BEGIN) + len(_BEGIN)], text[text.index(_END) :]
    PAGE.write_text(f"{head}\n{made}\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
