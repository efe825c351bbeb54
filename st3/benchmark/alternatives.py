"""st3 beside what one would use instead on a CPU: `python -m st3.benchmark.alternatives`.

Stock, stock compiled by transformers, OpenVINO's own pipeline (under another interpreter, see
`st3.profiling.openvino`), and st3: not trimmed, trimmed, trimmed and compiled. All rows of one
setting run interleaved; `--output OUT` goes on where it was stopped. Answers of every length are
run by themselves, since a static cache is as long as the answer.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from st3.benchmark.cells import Rows, timed
from st3.benchmark.lab import Lab
from st3.benchmark.run import ROWS, run
from st3.benchmark.start import noted, start
from st3.benchmark.suite import Cell
from st3.benchmark.tables import markdown
from st3.files import read_rows, write_text
from st3.methods import make_method
from st3.profiling.openvino import OPENVINO
from st3.profiling.runs import COMPILED_STOCK, STOCK, Variant

_CPU = torch.device("cpu")


def variants(lab: Lab, model: str, compilers: Sequence[str]) -> dict[str, Variant]:
    """Label -> variant; OpenVINO's pipeline only where the lab has an interpreter for it."""
    found = {STOCK: Variant(), COMPILED_STOCK: Variant(static=True)}
    peer = lab.openvino(model)
    if peer is not None:
        found[OPENVINO] = Variant(peer=peer)
    st3 = make_method("st3")
    found |= {"none": Variant(make_method("none")), "st3": Variant(st3)}
    return found | {f"st3 + {name}": Variant(st3, compile=name) for name in compilers}


def cells(
    model: str,
    dtype: str,
    batches: Sequence[int],
    new: Sequence[int],
    *,
    rounds: int,
    compilers: Sequence[str],
) -> list[Cell]:
    """A cell a setting."""

    def cell(batch: int, length: int) -> Cell:
        def measure(lab: Lab) -> Rows:
            return timed(
                lab, model, variants(lab, model, compilers), batch=batch, new=(length,),
                rounds=rounds, go_on=True,
            )  # fmt: skip

        return Cell(f"alternatives/{model}/{dtype}/{batch}/{length}", measure)

    return [cell(batch, length) for length in new for batch in batches]


def main() -> int:
    """Exit code: 0 all is measured, 1 something failed, 2 wrong use, 3 it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m st3.benchmark.alternatives")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--openvino", metavar="PYTHON", help="an interpreter with optimum-intel")
    parser.add_argument("--model", default="small", help="a shape (default small)")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--new", default="64,256", help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", default="inductor", help="a list: a row of st3 for each")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after so many")
    parser.add_argument("--commit", help="of the code, where git does not tell")
    parser.add_argument("--tiny", action="store_true", help="a dry run: shapes that say nothing")
    asked = parser.parse_args()
    if asked.openvino is not None and shutil.which(asked.openvino) is None:
        parser.error(f"--openvino: there is no interpreter {asked.openvino} that can be run")
    batches, new = ([int(part) for part in text.split(",")] for text in (asked.batches, asked.new))
    compilers = asked.compile.split(",")
    ended = "done"
    for name in asked.dtypes.split(","):
        dtype = getattr(torch, name)
        lab = Lab(_CPU, dtype, tiny=asked.tiny, openvino=asked.openvino)
        torch.manual_seed(0)
        wanted = cells(asked.model, name, batches, new, rounds=asked.rounds, compilers=compilers)
        try:
            how = run(
                asked.output, wanted, lab, seconds=60 * asked.minutes,
                start=start(_CPU, dtype, _command(sys.argv[1:]), asked.commit),
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )  # fmt: skip
        except (ValueError, OSError) as error:
            parser.error(str(error))
        finally:
            lab.forget()
        ended = how if ended == "done" else ended
        if how == "stopped":
            ended = how
            break
    write_text(asked.output / "tables.md", markdown(read_rows(asked.output / ROWS)))
    return {"done": 0, "failed": 1, "stopped": 3}[ended]


def _command(words: Sequence[str]) -> str:
    """What was asked for, without the places of this machine."""
    places = {"--output": "OUT", "--openvino": "PYTHON"}
    return noted(["python", "-m", "st3.benchmark.alternatives"], words, places)


if __name__ == "__main__":
    sys.exit(main())
