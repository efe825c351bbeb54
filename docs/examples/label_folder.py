"""Label every picture of a folder, check the labels, and keep apart what is none.

    python docs/examples/label_folder.py               # six pictures that are drawn on the spot
    python docs/examples/label_folder.py photos --model 7b --prompt "A colour?" --labels red,blue

A label counts if it is one of `--labels`, in capitals or not. The rest, and pictures that cannot
be read, go to standard error by name: ask again, or look at them yourself. For thousands of
pictures take `st3 batch`, which survives interruptions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import st3
from st3.demo.held_out import held_out

NUMBERS = "none,one,two,three,four,five,six,seven,eight,nine"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> None:
    """A line of JSON for each picture that got a label."""
    parser = argparse.ArgumentParser(description="A checked label for every picture.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--method", default="st3")
    parser.add_argument("--prompt", default="How many objects are there?")
    parser.add_argument("--labels", default=NUMBERS, help="allowed, with commas between them")
    given = parser.parse_args()
    allowed = {plain(label): label.strip() for label in given.labels.split(",")}

    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or drawn(Path(scratch))
        model, processor = st3.load(given.model)
        good = bad = 0
        for result in st3.answer_all(
            model, processor, rows(folder), given.method, prompt=given.prompt, max_new_tokens=8
        ):
            label = allowed.get(plain(result.answer or ""))
            if label:
                good += 1
                print(json.dumps({"picture": result.id, "label": label}), flush=True)
            else:
                bad += 1
                print(f"{result.id}: {result.error or result.answer}", file=sys.stderr)
    print(f"{good} labelled, {bad} left over", file=sys.stderr)


def plain(words: str) -> str:
    """As labels are compared: a capital, a full stop and spaces around them make no other."""
    return words.strip().rstrip(".").lower()


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """Pictures in the order of their names; read when their turn comes."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            yield {"id": path.name, "image": str(path)}


def drawn(folder: Path) -> Path:
    """Scenes of the demo's world, and a file that is no picture."""
    for asked in held_out(scenes=6, seed=0, tasks=["count"]):
        asked.picture.save(folder / f"{asked.number}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


if __name__ == "__main__":
    main()
