"""The peers' own code beside st3, on this machine: one command.

    python docs/benchmarks/peers/measure.py FOLDER --output OUT

FOLDER has the environments, or gets them (`environments.py`). Every way runs in a process of its
own, with the same weights, prompts and threads; they take turns. OUT/rows.jsonl grows by a setting
as it ends, and the same command goes on where it was stopped. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from environments import ENVIRONMENTS, make, python_of

import st3
from st3.benchmark.album import save_album, save_tables
from st3.benchmark.lab import Lab
from st3.benchmark.peers import Subject, Way, cell
from st3.benchmark.run import ROWS, run
from st3.benchmark.standing import standing
from st3.benchmark.start import noted, start
from st3.benchmark.suite import Cell, chosen
from st3.demo import held_out
from st3.files import read_rows
from st3.inference.chat import in_chat_format
from st3.inference.presets import known_config
from st3.inference.random_weights import random_model
from st3.inference.shrink import shrink
from st3.profiling.openvino import OPENVINO, PIPELINE
from st3.profiling.picture import picture_of
from st3.profiling.runs import STOCK, random_inputs
from st3.profiling.shape import Workload

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
DTYPES = "float32", "bfloat16", "float16"
STATIC, COMPILED = {"cache": "static"}, {"method": "st3", "compile": "inductor"}
NARROW = {
    "hidden_size": 640, "intermediate_size": 1728, "num_attention_heads": 10,
    "num_key_value_heads": 2, "vocab_size": 32064,
}  # fmt: skip
"""Qwen2.5-VL 7B's depth at the width of `small`, with as many words: no released model's."""


def ways(folder: Path, names: set[str], *, tiny: bool) -> dict[str, Way]:
    """Label -> way, those of `names` and of no environment; missing environments are made.

    A dry run leaves out what is compiled, which takes minutes.
    """
    own = sys.executable
    plain, ours = HERE / "transformers_pipeline.py", HERE / "st3_pipeline.py"
    place = str(folder.resolve())  # of this machine, and nobody's business
    found = {name: make(folder, name) for name in ENVIRONMENTS if name in names}
    problems = {name: why and why.replace(place, "FOLDER") for name, why in found.items()}

    def theirs(name: str, pipeline: Path, **options: Any) -> dict[str, Way]:
        if name not in names:
            return {}
        label = options.pop("label", name)
        return {label: Way(python_of(folder, name), pipeline, options, problems[name])}

    press = HERE / "kvpress_pipeline.py"
    return {
        STOCK: Way(own, plain),
        **({} if tiny else {"stock, static cache + compiled": Way(own, plain, STATIC)}),
        **theirs("quantized", plain, cache="quantized", label="stock, KV cache in 4 bits (hqq)"),
        **theirs("openvino", PIPELINE, label=OPENVINO),
        **theirs("kvpress", press, press="SnapKVPress", ratio=0.6, label="kvpress, SnapKV 60 %"),
        **theirs("kvpress", press, press="KnormPress", ratio=0.6, label="kvpress, norms 60 %"),
        **theirs("sparsevlm", HERE / "sparsevlm_pipeline.py", keep=0.25, label="sparsevlm, 25 %"),
        "none": Way(own, ours, {"method": "none"}),
        "st3": Way(own, ours, {"method": "st3"}),
        **({} if tiny else {"st3 + compiled": Way(own, ours, COMPILED)}),
    }  # fmt: skip


def shaped(name: str, *, tiny: bool, new: int, picture: tuple[int, int], folder: Path) -> Subject:
    """Random weights of a shape, one prompt with one picture of noise."""
    config = narrow(name) if name.startswith("qwen") else known_config(name)
    if tiny:
        config = shrink(config, image_size=112)
    model: Any = random_model(config, device="cpu")
    model.save_pretrained(folder)
    work = Workload(picture_of(model.config, picture).tokens, 64, new, 1, picture)
    label = f"tiny {name}" if tiny else f"narrow {name}" if name.startswith("qwen") else name
    return Subject(label, "random", model.config, folder, [random_inputs(model, work)], work)


def narrow(name: str) -> Any:
    """A shape of a built-in name's depth, `NARROW`."""
    config = known_config(name)
    found = config.to_dict()
    text, vision = found["text_config"], found["vision_config"]
    text |= NARROW
    text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": [8, 12, 12]}
    vision |= {
        "depth": 6, "hidden_size": 256, "intermediate_size": 684, "num_heads": 4,
        "out_hidden_size": NARROW["hidden_size"], "fullatt_block_indexes": [5],
    }  # fmt: skip
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    found |= {key: NARROW["vocab_size"] - 8 + number for number, key in enumerate(ids)}
    return type(config)(**found)


def the_demo(*, questions: int, new: int) -> Subject:
    """The packaged model, and held-out questions about its world."""
    model, processor = st3.load("demo", device="cpu", dtype="float32")
    prompts = []
    for one in itertools.islice(held_out.held_out(questions, 0), questions):
        text = in_chat_format(processor, one.question.prompt)
        made = processor(images=one.picture, text=text, return_tensors="pt")
        prompts.append({k: v for k, v in made.items() if isinstance(v, torch.Tensor)})
    visual = int((prompts[0]["input_ids"] == model.config.image_token_index).sum())
    text_tokens = round(sum(p["input_ids"].shape[1] for p in prompts) / len(prompts)) - visual
    folder = Path(st3.__file__).parent / "demo" / "model"
    end = model.generation_config.eos_token_id
    work = Workload(visual, text_tokens, new)
    return Subject("demo", "trained", model.config, folder, prompts, work, end)


def settings(asked: argparse.Namespace, temporary: Path) -> list[Cell]:
    """A cell a setting, the quickest first."""
    threads, tiny, new = torch.get_num_threads(), asked.tiny, 4 if asked.tiny else asked.new
    mine = {*asked.peers.split(",")}
    llava = ways(asked.folder, mine - {"sparsevlm"}, tiny=tiny)
    qwen = ways(asked.folder, mine & {"sparsevlm", "openvino"}, tiny=tiny)
    found = []
    for name in asked.dtypes.split(","):
        dtype, rounds = getattr(torch, name), 1 if tiny else asked.rounds
        more: dict[str, Any] = {"threads": threads, "folder": temporary}
        if name == "float32":
            questions = 2 if tiny else 24
            found.append(
                cell(
                    f"peers/demo/{name}", lambda _, n=questions: the_demo(questions=n, new=new),
                    llava, dtype, rounds=questions, **more,
                )
            )  # fmt: skip
        for model, side, ask in (("small", 336, llava), ("qwen2.5-vl-7b", 896, qwen)):
            size = (112, 112) if tiny else (side, side)

            def made(folder: Path, model: str = model, size: tuple[int, int] = size) -> Subject:
                place = Path(tempfile.mkdtemp(dir=folder))
                return shaped(model, tiny=tiny, new=new, picture=size, folder=place)

            found.append(cell(f"peers/{model}/{name}", made, ask, dtype, rounds=rounds, **more))
    return found


def main() -> int:
    """Exit code: 0 all is measured, 1 something failed, 2 wrong use, 3 it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the environments")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT")
    parser.add_argument("--peers", default=",".join(ENVIRONMENTS), help="only these environments")
    parser.add_argument("--cells", default="", help="only cells whose names begin so")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate (default 64)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many")
    parser.add_argument("--commit", help="of the code, where git does not tell")
    parser.add_argument("--tiny", action="store_true", help="a dry run: shapes that say nothing")
    asked = parser.parse_args()
    if wrong := _wrong(asked):
        parser.error(wrong)
    path = asked.output / ROWS
    begun = start(CPU, torch.float32, _command(asked), asked.commit)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="st3-peers-") as temporary:
        try:
            every = settings(asked, Path(temporary))
            names = [cell.name for cell in every]

            def tell(line: str) -> None:
                print(line, file=sys.stderr, flush=True)
                save_tables(asked.output, rows := read_rows(path), standing(rows, names))

            ended = run(
                asked.output, chosen(every, asked.cells), Lab(CPU, torch.float32, tiny=asked.tiny),
                seconds=60 * asked.minutes, start=begun, say=tell,
            )  # fmt: skip
        except (ValueError, OSError) as error:
            parser.error(str(error))
    rows = read_rows(path)
    so_far = standing(rows, names)
    save_album(asked.output, rows, so_far, "st3 beside its peers' own code")
    return {"done": 0, "failed": 1, "gone": 1, "stopped": 3}[ended]


def _wrong(asked: argparse.Namespace) -> str | None:
    """What makes no sense, before anything is installed."""
    for peer in filter(None, asked.peers.split(",")):
        if peer not in ENVIRONMENTS:
            return f"--peers: no environment {peer!r}; there are: {', '.join(ENVIRONMENTS)}"
    for name in asked.dtypes.split(","):
        if name not in DTYPES:
            return f"--dtypes: {name!r} is none of {', '.join(DTYPES)}"
    if not (math.isfinite(asked.minutes) and asked.minutes > 0):
        return f"--minutes {asked.minutes:g} is no time: give more than 0"
    if asked.new < 2 or asked.rounds < 1:
        return "--new: at least 2 tokens, of which one has a step; --rounds: at least 1"
    return None


def _command(asked: argparse.Namespace) -> str:
    """What was asked for, without the places of this machine."""
    places = {str(asked.folder): "FOLDER", "--output": "OUT"}
    return noted(["python", "docs/benchmarks/peers/measure.py"], sys.argv[1:], places)


if __name__ == "__main__":
    sys.exit(main())
