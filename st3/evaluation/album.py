"""The files of an evaluation besides its answers: JSON, CSV, Markdown and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from st3.evaluation.results import tables, to_csv
from st3.files import plainly, write_text
from st3.machine import made_with
from st3.plots.evaluation import save_scores

_RESUMES = "; once that is mended, the same command goes on with what is finished"


def save_evaluation(folder: Path, document: dict[str, Any]) -> list[str]:
    """Write everything; returns the names of the files and puts them into `document`.

    Raises:
        ValueError: the disk is full, or does not let us; no answer is lost.
    """
    rows, name = document["rows"], document["settings"]["model"]
    scored = [row for row in rows if row["score"] is not None]
    names = ["evaluation.json", "evaluation.csv", "evaluation.md"]
    with plainly("write into", folder, _RESUMES):
        if scored:
            names.append("evaluation.png")
            save_scores(folder / "evaluation.png", scored, f"{name}: scores by method")
        document["files"] = names
        text = "\n".join(table.markdown() for table in tables(rows))
        sources = dict.fromkeys(row["published_source"] for row in rows if row["published"])
        where = "".join(f"Published: {source}.\n" for source in sources)
        write_text(folder / "evaluation.md", f"{text}\n{where}{made_with(document)}\n")
        write_text(folder / "evaluation.csv", to_csv(rows))
        document_text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        write_text(folder / "evaluation.json", document_text)
    return names
