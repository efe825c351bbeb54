"""Kill `st3 batch` again and again, and see that nothing is lost or done twice.

    python tests/batch/killing.py --rows 10000 --kills 10 --max-new-tokens 4 [--model demo]

Asks a tiny model with random weights about so many rows, 1 % of them with a broken picture, once
undisturbed; and once more, killed (SIGKILL, all its processes) at moments drawn at random, gone on
with by one process or by two. Both files must be the same, byte for byte. The pictures of all rows
are a few.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import tiny_checkpoint

from st3.demo.held_out import held_out

ROOT = Path(__file__).parents[2]
_PICTURES = 20


def make_rows(folder: Path, count: int) -> Path:
    """A file of rows; every hundredth, and the fourth, has a picture that is cut short."""
    asked = [asked for asked, _ in zip(held_out(_PICTURES, 0), range(_PICTURES), strict=False)]
    for number, one in enumerate(asked):
        one.picture.save(folder / f"{number}.png")
    whole = (folder / "0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as out:
        for number in range(count):
            kind = number % len(asked)
            image = "broken.png" if number % 100 == 3 else f"{kind}.png"
            row = {"id": f"r{number}", "image": image, "prompt": asked[kind].question.prompt}
            out.write(json.dumps(row) + "\n")
    return rows


def start(rows: Path, output: Path, *options: str, processes: int = 1) -> subprocess.Popen[str]:
    """`st3 batch`, in a process group of its own."""
    command = [sys.executable, "-m", "st3_cli", "batch", str(rows), "--output", str(output)]
    if processes > 1:
        command[1:3] = [
            "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
            "-m", "st3_cli",
        ]  # fmt: skip
    return subprocess.Popen(
        [*command, *options],
        cwd=ROOT, start_new_session=True, text=True, stderr=subprocess.PIPE,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def kill(started: subprocess.Popen[str]) -> None:
    """With all that it has started: torchrun's processes are no group of its own."""
    family = psutil.Process(started.pid).children(recursive=True)
    for one in (*family, started):
        with suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    started.communicate()


def finished(output: Path) -> int:
    """Rows in the file."""
    return output.read_bytes().count(b"\n") if output.exists() else 0


def main() -> None:
    """Run it and say whether the files are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--max-new-tokens", default="4")
    parser.add_argument("--model", help="[a tiny one]")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = asked.model or str(tiny_checkpoint(folder / "tiny"))
        options = ["--max-new-tokens", asked.max_new_tokens, "--model", model]
        rows = make_rows(folder, asked.rows)
        began = time.perf_counter()
        plain = start(rows, folder / "plain.jsonl", *options)
        _, said = plain.communicate()
        assert plain.returncode == 0, said
        print(f"undisturbed: {time.perf_counter() - began:.0f} s")
        output = folder / "killed.jsonl"
        targets = sorted(draw.sample(range(asked.rows), asked.kills))
        for number, target in enumerate(targets):
            processes = 1 + number % 2
            going = start(rows, output, *options, processes=processes)
            while going.poll() is None and finished(output) <= target:
                time.sleep(0.01 + 0.1 * draw.random())
            assert going.poll() is None, "it ended before it was killed: give it more rows"
            kill(going)
            print(f"killed with {finished(output)} rows, {processes} process(es)", flush=True)
        last = start(rows, output, *options)
        _, said = last.communicate()
        assert last.returncode == 0, said
        same = output.read_bytes() == (folder / "plain.jsonl").read_bytes()
        print("the same file" if same else "OTHER FILES")
        sys.exit(not same)


if __name__ == "__main__":
    main()
