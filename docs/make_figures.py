"""Draw the figures of the docs and the README again: `python docs/make_figures.py`."""

from __future__ import annotations

import json
from pathlib import Path

import st3
from st3 import demo
from st3.attention.album import plates
from st3.attention.look import look
from st3.inference.pictures import open_picture
from st3.methods import make_method
from st3.plots.costs import save_schedule
from st3.plots.learning import save_learning
from st3.sweep.album import save_board

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Write every figure into docs/images."""
    method = make_method("st3")
    schedules = {"7B: S = 4, R = 7 %, C = 1 %": method.schedule(32)}
    schedules["13B: S = 4, R = 5 %, C = 5 %"] = method.schedule(40)
    save_schedule(IMAGES / "schedule.png", schedules, visual=576)
    log = (IMAGES.parent / "benchmarks" / "demo-training.jsonl").read_text().splitlines()
    save_learning(IMAGES / "learning.png", [json.loads(line) for line in log])
    board = (IMAGES.parent / "benchmarks" / "leaderboard.json").read_text(encoding="utf-8")
    save_board(IMAGES / "leaderboard.png", json.loads(board))
    model, processor = st3.load("demo")
    picture = open_picture(demo.PICTURE)
    seen = look("demo", model, processor, picture, demo.PROMPT, method)
    for plate in plates(seen, [3, 10, 18, 26], [1, 2, 3, 4]):
        plate.write(IMAGES / plate.name)


if __name__ == "__main__":
    main()
