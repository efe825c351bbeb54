"""Everything that a look leaves behind in a folder: PNGs, `attention.json`, one `report.html`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from st3.attention.capture import Capture
from st3.attention.look import Look, sentences, top_count
from st3.files import make_folder, write_text
from st3.plots import attention as draw
from st3.plots.kept import save_kept, save_kept_over_time
from st3.plots.page import listed, page, paragraph, pictured, tabled


@dataclass(frozen=True)
class Plate:
    """One picture: its file name, how to draw it, and what it shows."""

    name: str
    write: Callable[[Path], None]
    caption: str


def plates(seen: Look, layers: Sequence[int], heads: Sequence[int]) -> list[Plate]:
    """All pictures of a look; those of the trimmed answer follow, if there is one.

    Args:
        layers, heads: those of the grid of heads, from 1.
    """
    method = seen.method.name
    found = _of_capture(seen, seen.untrimmed, seen.tokens[0], "untrimmed", "", layers, heads)
    session = seen.trimmed.session
    survivors = [
        Plate(
            "kept.png",
            partial(save_kept, places=seen.places, session=session, model=seen.model),
            f"The patches that {method} keeps in each group of layers, after prefill.",
        )
    ]
    if session.schedule.anneals:
        survivors.append(
            Plate(
                "kept-over-time.png",
                partial(save_kept_over_time, places=seen.places, session=session, model=seen.model),
                f"The patches that are left after some generated tokens: {method} lets the least "
                "attended go first.",
            )
        )
    found[2:2] = survivors
    if seen.trimmed_answer is not None:
        found += _of_capture(
            seen, seen.trimmed, seen.tokens[1], method, f"-{method}", layers, heads
        )
    return found


def save_album(
    folder: Path, seen: Look, document: dict[str, Any], layers: Sequence[int],
    heads: Sequence[int], on_file: Callable[[str], None] = lambda name: None,
) -> list[str]:  # fmt: skip
    """Write all pictures, the JSON and the report; each is whole or not there.

    Returns:
        The names of the files, the report first.
    """
    make_folder(folder)
    pages = plates(seen, layers, heads)
    for plate in pages:
        on_file(plate.name)
        plate.write(folder / plate.name)
    names = ["report.html", "attention.json", *(plate.name for plate in pages)]
    document["files"] = names
    write_text(folder / "attention.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "report.html", _report(document, folder, pages))
    return names


TABLE = {
    "layer": lambda row: str(row["layer"]),
    "visual share": lambda row: f"{row['visual_share']:.1%}",
    "tokens for 90 %": lambda row: str(row["tokens_for_90pct"]),
    "entropy": lambda row: f"{row['entropy']:.2f}",
    "like previous": lambda row: _optional(row["similarity_to_previous"]),
    "top overlap": lambda row: _optional(row["topk_overlap"]),
    "kept": lambda row: str(row["kept"]) if "kept" in row else "-",
    "kept attention": lambda row: f"{row['kept_share']:.1%}" if "kept_share" in row else "-",
}
"""The table of redundancy: head -> cell of a row of `layers`."""

EXPLAINED = (
    "Visual share: attention of the last prompt token that goes to the picture. Tokens for 90 %: "
    "the fewest visual tokens that hold nine tenths of it. Entropy: 1 if all visual tokens are "
    "attended alike, 0 if one has it all. Like previous: cosine similarity with the visual "
    "attention of the layer before. Top overlap: how much of the most attended tenth of the visual "
    "tokens is the same there. Kept: visual tokens that the method keeps in the layer; kept "
    "attention: the share of the untrimmed visual attention that they would hold. All mean over "
    "heads."
)


def _of_capture(
    seen: Look, found: Capture, texts: list[str], under: str, suffix: str,
    layers: Sequence[int], heads: Sequence[int],
) -> list[Plate]:  # fmt: skip
    who = f"{seen.model}, {under}"
    made = [
        Plate(
            f"layers{suffix}.png",
            partial(draw.save_layers, places=seen.places, found=found, who=who),
            f"Where the last prompt token looks in the picture, layer by layer ({under}).",
        ),
        Plate(
            f"heads{suffix}.png",
            partial(
                draw.save_heads, places=seen.places, found=found, who=who,
                layers=list(layers), heads=list(heads),
            ),
            f"The same for single heads ({under}).",
        ),
        Plate(
            f"shares-layers{suffix}.png",
            partial(draw.save_shares, found=found, who=who),
            f"How the last prompt token's attention divides, layer by layer ({under}): text before "
            "the picture, the picture, text behind it.",
        ),
    ]  # fmt: skip
    if len(found.shares) > 1:
        made.append(
            Plate(
                f"shares-tokens{suffix}.png",
                partial(draw.save_shares_over_tokens, found=found, texts=texts, who=who),
                f"The same while the answer grows ({under}): does what is generated draw attention "
                "away from the picture?",
            )
        )
    groups = seen.trimmed.session.groups
    made += [
        Plate(
            f"neighbours{suffix}.png",
            partial(
                draw.save_neighbours, found=found, groups=groups,
                top=top_count(seen.places.count), who=who, method=seen.method.name,
            ),
            f"Do neighbouring layers attend alike ({under})? Where a frame is bright all over, one "
            "choice of tokens serves all of its layers.",
        ),
        Plate(
            f"concentration{suffix}.png",
            partial(draw.save_concentration, found=found, who=who),
            f"How few visual tokens hold the visual attention ({under}), one line a layer: the "
            "steeper, the more could go.",
        ),
    ]  # fmt: skip
    return made


def _report(document: dict[str, Any], folder: Path, plates: Sequence[Plate]) -> str:
    """One page that needs nothing else."""
    parts = [
        paragraph(document["prompt"], "Prompt"),
        paragraph(document["answer"], "Answer"),
    ]
    if "trimmed" in document:
        parts.append(paragraph(document["trimmed"]["answer"], f"With {document['method']}"))
    rows = [[cell(row) for cell in TABLE.values()] for row in document["layers"]]
    parts += [listed(sentences(document)), tabled((*TABLE,), rows), paragraph(EXPLAINED)]
    parts += [pictured(folder / plate.name, plate.caption) for plate in plates]
    machine = document["machine"]
    made = (
        f"st3 {machine['st3']}, torch {machine['torch']}, transformers {machine['transformers']}, "
        f"{machine['device']}, {machine['dtype']}"
    )
    return page(
        f"st3 attention map: {document['model']}", f"Attention of {document['model']}", parts, made
    )


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
