"""`st3` as a user meets it: what it prints, where, and how it ends."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import KEPT, tiny_checkpoint
from PIL import Image

import st3
from st3 import demo
from st3_cli import console


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "-h"], ["profile", "-h"], ["--version"], []]
)
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['st3', *%r]\n"
        "from st3_cli.app import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code % arguments], capture_output=True, text=True)
    assert "AssertionError" not in done.stderr
    text = done.stdout + done.stderr
    assert ("Usage" in text) or (st3.__version__ in text)


def test_the_bundled_picture(st3_: Any) -> None:
    result = st3_("run")
    assert result.code == 0
    assert result.out == (
        "at the top centre a black star, at the top right a purple square, in the centre an orange "
        "cross and at the centre right a blue circle.\n"
    )
    assert "tok/s" in result.err
    assert "TTFT" in result.err
    assert "one cold run: " in result.err
    assert len(result.err.splitlines()[-1]) <= 80


def test_json(st3_: Any) -> None:
    result = st3_("run", demo.PICTURE, "how many objects are there?", "--json", "--compare")
    assert result.code == 0
    assert result.err == ""
    document = json.loads(result.out)
    assert document["answer"] == "four"
    assert document["model"] == "demo"
    assert document["method"] == "st3"
    visual = document["visual_tokens"]
    assert visual["total"] == 576
    assert visual["kept_per_layer"] == KEPT
    kv = document["kv_cache"]
    text = document["prompt_tokens"] - 576
    token = 2 * 4 * 32 * 4  # keys and values, heads, head size, fp32
    assert kv["bytes"] == token * (sum(visual["kept_per_layer"]) + 32 * text)
    assert kv["untrimmed_bytes"] == token * 32 * (576 + text)
    assert kv["ratio"] == pytest.approx(kv["bytes"] / kv["untrimmed_bytes"])
    timing = document["timing"]
    assert 0 < timing["ttft_ms"] <= timing["total_ms"]
    assert document["new_tokens"] == 2
    assert timing["tpot_ms"] == pytest.approx(timing["total_ms"] - timing["ttft_ms"])
    assert document["settings"]["tau"] == 128
    assert document["untrimmed"]["kv_cache"]["ratio"] == 1
    assert document["untrimmed"]["method"] == "none"
    assert document["same_answer"] is True


def test_compare(st3_: Any) -> None:
    result = st3_("run", demo.PICTURE, "describe", "--compare")
    assert result.code == 0
    assert "untrimmed" in result.out
    assert "One warm run each" in result.out
    assert "KV cache" in result.out


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--stride", "1", "--final-keep", "1%"], {"stride": 1, "final_keep": 0.01}),
        (["--ratio", "0.06", "--prune-ratio", "40%"], {"ratio": 0.06, "prune_ratio": 0.4}),
        (["--stride", "30"], {"stride": 30, "ratio": 0}),  # too long for a second cut: legal
        (["--tau", "none"], {"tau": None}),
        (["--tau", "9", "--annealing", "linear"], {"tau": 9, "annealing": "linear"}),
        (["--method", "vta", "--tau", "7"], {"tau": 7}),
        (["--method", "pvtp", "--scorer", "prompt"], {"scorer": "prompt"}),
        (["--method", "none"], {}),
    ],
)
def test_settings_arrive(st3_: Any, options: list[str], settings: dict[str, Any]) -> None:
    result = st3_("run", demo.PICTURE, "describe", "--json", "--max-new-tokens", "2", *options)
    assert result.code == 0, result.err
    found = json.loads(result.out)["settings"]
    assert {key: found[key] for key in settings} == pytest.approx(settings)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_tables_keep_their_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setattr(console.out, "width", width)
    heads = [
        "setting", "C %", "MACs %", "KV %", "TTFT ms", "TPOT ms", "same %", "KL mnat", "right %",
    ]  # fmt: skip
    figures = ("31.0", "16.5*", "17.3*", "69.2", "13.5*", "99.3", "1.38e+03", "97.8")
    title = "A title is as wide as the terminal, whatever its table is"
    console.print_table(title, heads, [("random:prune_ratio=0.8,final_keep=0.01", *figures)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(title[: width - 10])
    assert max(map(len, lines)) <= width
    assert [word for line in lines for word in line.split() if word in figures] == list(figures)


@pytest.mark.parametrize("command", ["run", "attention-map"])
def test_the_picture_demo(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    """IMAGE `demo` is the bundled picture wherever one is; a file of that name is ./demo."""
    monkeypatch.chdir(tmp_path)
    Path("demo").write_bytes(b"no picture")
    question = "is there a purple square?"
    result = st3_(command, "demo", question, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["answer"] == "yes"
    result = st3_(command, "./demo", question, *(["--output", "x"] if command != "run" else []))
    assert result.code == 1
    assert "./demo is not a picture" in result.err


def photo() -> Path:
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def test_the_demo_says_when_a_picture_is_not_of_its_world(st3_: Any, tmp_path: Path) -> None:
    common = ("--max-new-tokens", 1, "--json")
    result = st3_("run", photo(), "describe", *common)
    assert result.code == 0
    assert len(result.err.splitlines()) == 1
    assert "this picture does not look like the demo model's world" in result.err
    assert st3_("run", demo.PICTURE, "describe", *common).err == ""
    result = st3_("attention-map", photo(), "--new-tokens", 1, "--json", "--output", tmp_path / "x")
    assert "not look like the demo model's world" in result.err


def test_show_kept(st3_: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept.png"
    result = st3_("run", "--show-kept", path)
    assert result.code == 0
    with Image.open(path) as image:
        assert image.size[0] > 800
    before = path.read_bytes()
    result = st3_("run", "--show-kept", path)
    assert result.code == 2
    assert "--force" in result.err
    assert path.read_bytes() == before
    assert st3_("run", "--show-kept", path, "--force").code == 0
    assert list(tmp_path.iterdir()) == [path]


def test_standard_input(st3_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO(demo.PICTURE.read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    result = st3_("run", "-", "how many shapes do you see")
    assert result.out == "four\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "missing.png"], 1, "no file missing.png"),
        (["run", "."], 1, "is a folder without frames"),
        (["run", "How many?"], 1, "the picture comes first"),
        (["run", "", "How many?"], 2, "picture is empty"),
        (["run", "--force"], 2, "goes with --show-kept"),
        (["run", "--show-kept", "."], 2, "is a folder"),
        (["run", "--compare", "--method", "none"], 2, "another --method"),
        (["run", "--tau", "5", "--annealing", "none"], 2, "contradict"),
        (["run", "--tau", "none", "--annealing", "cosine"], 2, "contradict"),
        (["run", "--final-keep", "5"], 2, "did you mean 5%?"),
        (["run", "--device", "tpu"], 2, "'--device': 'tpu' is not one of"),
        (["run", demo.PICTURE, ""], 2, "prompt is empty"),
        (["run", demo.PICTURE, "a " * 3000], 1, "shorten the prompt by"),
        (["run", demo.PICTURE, "what is <image>?"], 1, "leave <image> out"),
        (["run", "--ratio", "0.3"], 2, "the largest R for this S is 0.0714"),
        (["run", "--ratio", "x"], 2, "give a share such as 0.07"),
        (["run", "--ratio", "nan"], 2, "not between 0 and 1"),
        (["run", "--prune-ratio", "2"], 2, "not between 0 and 1"),
        (["run", "--final-keep", "70%"], 2, "lower P to 0.3"),
        (["run", "--ratio", "0.1", "--final-keep", "0.1"], 2, "not both"),
        (["run", "--stride", "0"], 2, "from 1 on"),
        (["run", "--stride", "2.5"], 2, "whole number"),
        (["run", "--tau", "-3"], 2, "or none"),
        (["run", "--tau", "soon"], 2, "or none"),
        (["run", "--annealing", "sine"], 2, "quarter-cosine"),
        (["run", "--scorer", "best"], 2, "known: last-token"),
        (["run", "--method", "magic"], 2, "known: none, pvtp, vta, st3"),
        (["run", "--method", "none", "--tau", "3"], 2, "has no parameter 'tau'"),
        (["run", "--model", "gpt"], 1, "give demo, 7b, 13b"),
        (["run", "--model", "./nowhere"], 1, "no folder ./nowhere"),
        (["run", "--max-new-tokens", "0"], 2, "max-new-tokens"),
        (["run", "--temperature", "-1"], 2, "temperature"),
        (["run", "--show-kept", "kept.jpg"], 2, "kept.png"),
        (["run", "--show-kept", "nowhere/kept.png"], 2, "no folder nowhere"),
        (["run", "--dtype", "int4"], 2, "bfloat16"),
        (["run", "--attn-implementation", "flex"], 2, "flash_attention_2"),
        (["run", "--nonsense"], 2, "--nonsense"),
        (["fly"], 2, "fly"),
    ],
)
def test_bad_input_is_one_line(st3_: Any, arguments: list[Any], code: int, message: str) -> None:
    result = st3_(*arguments)
    assert result.code == code
    assert message in result.err
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1
    assert "Traceback" not in result.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(st3_: Any) -> None:
    result = st3_("run", "--device", "cuda")
    assert result.code == 1
    assert "torch sees none" in result.err


@pytest.mark.filterwarnings("always::st3.engine.recording.DecodeGraphWarning")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there they can be had")
def test_cuda_graphs_where_there_is_no_cuda(st3_: Any) -> None:
    """The same answer, and one line that says why it took no shorter."""
    plain = st3_("run", "--json")
    asked = st3_("run", "--json", "--cuda-graphs")
    assert asked.code == 0
    assert json.loads(asked.out)["answer"] == json.loads(plain.out)["answer"]
    said = " ".join(asked.err.split())
    assert "note: decoding goes on without CUDA graphs: CUDA graphs need a CUDA device" in said


def test_offline(st3_: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = st3_("run", "--model", "nobody/nothing")
    assert result.code == 1
    assert "HF_HUB_OFFLINE is set" in result.err
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.filterwarnings("ignore:this checkpoint has no chat template")
def test_a_local_checkpoint(st3_: Any, tmp_path: Path) -> None:
    """Another grid, another depth, no chat template, the same command."""
    tiny_checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    result = st3_(
        "run", demo.PICTURE, "hello", "--model", tmp_path, "--json", "--max-new-tokens", 5
    )
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["visual_tokens"]["kept_per_layer"] == [64, 64, 64, 22, 13, 3]


def test_damaged_weights(st3_: Any, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, layers=4)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    result = st3_("run", "--model", tmp_path)
    assert result.code == 1
    assert "weights are damaged" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_out_of_memory_says_what_to_lower(st3_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from st3.inference import generation

    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(generation, "answer", full)
    result = st3_("run")
    assert result.code == 1
    assert "lower --max-new-tokens" in result.err


def test_debug_shows_where(st3_: Any) -> None:
    result = st3_("run", "missing.png", "--debug")
    assert "Traceback" in result.err
    assert result.err.strip().splitlines()[-1].startswith("st3: there is no file")


def test_interruption(st3_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from st3.inference import generation

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "answer", stop)
    result = st3_("run")
    assert result.code == 130
    assert result.err.strip().splitlines()[-1] == "st3: interrupted"


def test_a_prompt_with_broken_bytes(st3_: Any) -> None:
    result = st3_("run", demo.PICTURE, "How many \udcff objects?")
    assert result.code == 2
    assert "bytes that are no UTF-8" in result.err


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "st3_cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("st3 ")
