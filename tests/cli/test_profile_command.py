"""`st3 profile`, `st3 methods` and `st3 env` as a user meets them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from PIL import Image

from st3.methods import METHODS
from st3.profiling.report import markdown

KEYS = {
    "method", "prefill_macs", "prefill_macs_ratio", "decode_macs", "kv_bytes", "kv_ratio",
    "ttft_ms", "prefill_ms", "tpot_ms", "e2e_ms", "speedup", "peak_memory_bytes",
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A config.json that a test can time."""
    path = tmp_path / "config.json"
    path.write_text(tiny_config().to_json_string())
    return path


def test_published_figures_without_weights_or_gpu_in_little_memory() -> None:
    """DESIGN section 2, to four digits; below 2 GB."""
    code = (
        "import sys; sys.argv = ['st3', 'profile', '--model', '13b', '--json']\n"
        "from st3_cli.app import main\n"
        "try: main()\n"
        # The process's own peak; getrusage's can be that of the process which started it.
        "finally: print(*[x for x in open('/proc/self/status') if 'VmHWM' in x], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert int(done.stderr.split()[-2]) < 2e6  # kB
    document = json.loads(done.stdout)
    rows = {row["method"]: row for row in document["rows"]}
    assert list(rows) == ["stock", "none", "pvtp", "vta", "st3", "fastv", "vtw", "pyramiddrop"]
    assert f"{rows['none']['prefill_macs'] / 1e12:.4f}" == "8.2879"
    assert f"{rows['st3']['prefill_macs'] / 1e12:.4f}" == "3.2943"
    assert rows["st3"]["prefill_macs_ratio"] == pytest.approx(0.3975, abs=5e-5)
    assert f"{rows['st3']['kv_ratio']:.4f}" == "0.4015"
    assert rows["none"]["kv_bytes"] == 2 * 40 * 5120 * 640 * 2  # bfloat16
    assert all(row.keys() >= KEYS for row in rows.values())
    assert document["weights"] is None
    assert "not measured" in document["notes"][0]
    assert {"rows", "shape", "settings", "machine"} <= document.keys()


@pytest.mark.slow
def test_operators(st3_: Any, tiny: Path) -> None:
    options = ["--methods", "st3", "--repeats", "1", "--new-tokens", "6", "--operators"]
    document = json.loads(st3_("profile", "--config", tiny, *options, "--json").out)
    assert [(e["method"], e["phase"]) for e in document["operators"]] == [
        ("stock", "prefill"), ("stock", "decode step"),
        ("st3", "prefill"), ("st3", "decode step"),
    ]  # fmt: skip
    assert "Operators of the decoder's prefill" in markdown(document)
    shown = st3_("profile", "--config", tiny, *options)
    assert shown.code == 0
    assert "matmul" in shown.out
    refused = st3_("profile", "--config", tiny, "--no-latency", "--operators")
    assert refused.code == 2
    assert "leave --operators out" in refused.err


def test_seven_billion(st3_: Any) -> None:
    result = st3_("profile", "--model", "7b", "--no-latency", "--json", "--methods", "none,st3")
    rows = {row["method"]: row for row in json.loads(result.out)["rows"]}
    assert f"{rows['none']['prefill_macs'] / 1e12:.4f}" == "4.2520"
    assert f"{rows['st3']['prefill_macs'] / 1e12:.4f}" == "1.6775"
    assert f"{rows['st3']['prefill_macs_ratio']:.3f}" == "0.395"
    assert f"{rows['st3']['kv_ratio']:.3f}" == "0.399"
    assert rows["st3"]["ttft_ms"] is rows["stock"]["speedup"] is None


def test_the_share_that_fastv_publishes(st3_: Any) -> None:
    methods = "fastv:k=2,r=0.5,fastv:k=2,r=75%,fastv:k=2,r=90%"
    result = st3_(
        "profile", "--model", "7b", "--methods", methods, "--text-tokens", 36, "--new-tokens", 1,
        "--no-latency", "--json",
    )  # fmt: skip
    rows = json.loads(result.out)["rows"][1:]
    assert [f"{row['prefill_macs_ratio']:.0%}" for row in rows] == ["55%", "33%", "20%"]
    assert rows[0]["method"] == "fastv:k=2,r=0.5"
    assert rows[2]["settings"] == {
        "scorer": "last-token",
        "kv_cache_dtype": "auto",
        "k": 2,
        "r": 0.9,
    }
    assert rows[0]["decode_macs"] == 0
    assert rows[0]["decode_macs_ratio"] is None


def test_states_are_noted_and_pictures_can_be_unknown(
    st3_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders are counted where no image processor runs, if somebody says how many tokens."""
    from families.zoo import ZOO

    from st3.profiling import picture

    def none(config: Any) -> Any:
        raise ValueError("there is no image processor")

    monkeypatch.setattr(picture, "image_processor_for", none)
    path = tmp_path / "config.json"
    path.write_text(ZOO["qwen3_5"].configuration().to_json_string(use_diff=False), encoding="utf-8")
    common = ("profile", "--config", path, "--methods", "st3:stride=1,ratio=0.1", "--json")
    refused = st3_(*common)
    assert refused.code == 1
    assert "there is no image processor; or say how many by --visual-tokens" in refused.err
    result = st3_(*common, "--visual-tokens", 64, "--dtype", "float32")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["shape"]["state_bytes"] == 3 * 4 * (4 * 16 * 16 + 4 * 128)
    notes = " ".join(document["notes"])
    assert "Latency not measured: there is no image processor." in notes
    assert "Vision tower and projector not counted: there is no image processor." in notes
    assert "keep 18.43 kB of state for each prompt" in notes
    rows = document["rows"]
    assert rows[0]["vision_macs"] is rows[0]["projector_macs"] is None
    assert rows[1]["prefill_macs"] < rows[0]["prefill_macs"]
    named = st3_(*common, "--visual-tokens", 64, "--weights", "random")
    assert named.code == 1
    assert "there is no image processor" in named.err


def test_options_go_to_the_st3_family(st3_: Any) -> None:
    result = st3_(
        "profile", "--methods", "stock,st3,pvtp,fastv,st3:tau=9", "--stride", "2", "--tau", "32",
        "--no-latency", "--json",
    )  # fmt: skip
    rows = {row["method"]: row["settings"] for row in json.loads(result.out)["rows"]}
    ours = "st3:stride=2,tau=32"
    assert list(rows) == ["stock", ours, "pvtp:stride=2", "fastv", "st3:tau=9,stride=2"]
    assert {row["stride"] for name, row in rows.items() if "stride" in name} == {2}
    assert rows[ours]["tau"] == 32
    assert rows["st3:tau=9,stride=2"]["tau"] == 9  # what a method names itself stays
    assert "tau" not in rows["fastv"]


def test_measured(st3_: Any, tiny: Path) -> None:
    out, plot = tiny.with_name("report.md"), tiny.with_name("plot.png")
    result = st3_(
        "profile", "--config", tiny, "--methods", "none,st3", "--batch-size", "1,2", "--repeats", 2,
        "--new-tokens", 3, "--output", out, "--plot", plot,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "random weights" in result.out
    assert "Prefill of the decoder against the roofline" in " ".join(result.out.split())
    assert "not measured" not in result.out
    assert "TFLOP/s in a matrix product" in " ".join(result.err.split())
    saved = out.read_text()
    assert saved.count("random weights") == 12 + 1  # titles, and the note
    assert "Latency of random weights of the true shape" in saved
    assert "by `st3 profile --config" in saved
    with Image.open(plot) as image:
        assert image.size[0] >= 1200


def test_the_packaged_weights_are_timed(st3_: Any) -> None:
    result = st3_(
        "profile", "--methods", "st3", "--repeats", 1, "--new-tokens", 2, "--json",
    )  # fmt: skip
    document = json.loads(result.out)
    assert document["weights"] == "pretrained"
    stock, st3 = document["rows"]
    assert stock["speedup"] == 1
    assert st3["speedup_over_none"] is None  # none was not asked for
    assert st3["ttft_ms"] > st3["prefill_ms"] > 0
    assert st3["peak_memory_bytes"] is None or torch.cuda.is_available()
    assert st3["kv_allocated_bytes"] >= st3["kv_bytes"]


def test_files(st3_: Any, tiny: Path) -> None:
    """JSON, CSV and Markdown say the same; nothing is overwritten unasked."""
    common = ("profile", "--config", tiny, "--methods", "st3", "--no-latency")
    paths = [tiny.with_name(f"report.{kind}") for kind in ("json", "csv", "md")]
    for path in paths:
        assert st3_(*common, "--output", path).code == 0
    document = json.loads(paths[0].read_text())
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert [row["method"] for row in rows] == ["stock", "st3"]
    assert int(rows[1]["prefill_macs"]) == document["rows"][1]["prefill_macs"]
    assert json.loads(rows[1]["settings"]) == document["rows"][1]["settings"]
    assert rows[1]["ttft_ms"] == ""
    text = paths[2].read_text()
    assert text.splitlines()[:-1] == markdown(document).splitlines()[:-1]  # but for the command
    assert "| Latency" not in text
    assert text.count("not measured") == 1
    before = paths[0].read_text()
    result = st3_(*common, "--output", paths[0])
    assert result.code == 2
    assert "--force" in result.err
    assert paths[0].read_text() == before
    assert st3_(*common, "--output", paths[0], "--force").code == 0


def test_results_are_printed_before_they_are_saved(
    st3_: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from st3_cli import profile

    def full(*args: Any) -> None:
        raise ValueError("cannot write x.json: No space left on device")

    monkeypatch.setattr(profile, "save", full)
    result = st3_("profile", "--config", tiny, "--no-latency", "--output", tiny.with_name("x.json"))
    assert result.code == 1
    assert "No space left" in result.err
    assert "KV cache" in result.out


def test_a_folder_with_a_configuration_alone_is_counted(st3_: Any, tiny: Path) -> None:
    for arguments in (("--model", tiny.parent), ("--config", tiny.parent)):
        result = st3_("profile", *arguments, "--no-latency", "--methods", "stock,st3")
        assert result.code == 0, result.err


def test_baselines_stay_what_they_are(st3_: Any) -> None:
    result = st3_(
        "profile", "--methods", "st3,random,uniform", "--scorer", "prompt", "--no-latency", "--json"
    )
    rows = {row["method"]: row["settings"] for row in json.loads(result.out)["rows"][1:]}
    assert {name: row["scorer"] for name, row in rows.items()} == {
        "st3:scorer=prompt": "prompt", "random": "random", "uniform": "uniform",
    }  # fmt: skip


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def changed(path: Path, **text: Any) -> Path:
    """tiny_config with another text_config."""
    config = tiny_config().to_dict()
    config["text_config"] |= text
    return write(path, json.dumps(config))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--methods", "magic"], 2, "unknown method 'magic'; known: none"),
        (["--methods", "FastVV"], 2, "unknown method 'FastVV' (did you mean fastv?)"),
        (["--methods", "fastv:q=1"], 2, "no parameter 'q'; it has: scorer, kv_cache_dtype, k, r"),
        (["--methods", "fastv:k=32"], 2, "K must lie in 1..31"),
        (["--methods", "vtw,fastv", "--tau", "3"], 2, "--tau is for the ST3 family"),
        (["--ratio", "0.3"], 2, "the largest R for this S"),
        (["--visual-tokens", "-5"], 2, "visual-tokens"),
        (["--new-tokens", "0"], 2, "new-tokens"),
        (["--batch-size", "0"], 2, "give whole numbers from 1 on"),
        (["--batch-size", "1,x"], 2, "give whole numbers from 1 on"),
        (["--repeats", "0"], 2, "repeats"),
        (["--config", "missing.json"], 1, "cannot read missing.json: No such file"),
        (["--config", "c.json", "--model", "7b"], 2, "give one of them"),
        (["--no-latency", "--weights", "random"], 2, "leave --weights random out"),
        (
            ["--weights", "random", "--visual-tokens", "100"],
            1,
            "no whole number of pictures of 576",
        ),
        (["--weights", "random", "--visual-tokens", "5760"], 1, "do not fit a context of 2048"),
        (["--weights", "pretrained", "--model", "small"], 1, "a shape without weights"),
        (["--output", "x.txt"], 2, "name it x.json"),
        (["--output", "nowhere/x.json"], 2, "no folder nowhere"),
        (["--plot", "x.jpg"], 2, "name it x.png"),
        (["--model", "nobody"], 1, "give demo, 7b, 13b"),
    ],
)
def test_bad_input_is_one_line(st3_: Any, arguments: list[str], code: int, message: str) -> None:
    result = st3_("profile", *arguments)
    assert result.code == code
    assert message in result.err
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1


def test_bad_configurations(st3_: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    cases = {
        "is no JSON": write(path.with_name("a.json"), "{'a': 1}"),
        "has no model_type": write(path.with_name("b.json"), "[1, 2]"),
        "'nonsense', which the installed transformers does not know": write(
            path.with_name("d.json"), '{"model_type": "nonsense"}'
        ),
        "the family 'llama' is none that answers questions about pictures": write(
            path.with_name("e.json"), '{"model_type": "llama"}'
        ),
        "hidden_size must be a whole number from 1 on, got -64": changed(
            path.with_name("f.json"), hidden_size=-64
        ),
        "num_hidden_layers must be a whole number from 1 on, got 0": changed(
            path.with_name("g.json"), num_hidden_layers=0
        ),
        "cannot share 3 key-value heads": changed(
            path.with_name("h.json"), num_key_value_heads=3
        ),
        "builds no model: KeyError 'foo'": changed(path.with_name("i.json"), hidden_act="foo"),
        "expected int, got str": changed(path.with_name("j.json"), hidden_size="64"),
        "image_token_id 99 is not in the vocabulary of 50": changed(
            path.with_name("k.json"), vocab_size=50
        ),
    }  # fmt: skip
    for message, file in cases.items():
        result = st3_("profile", "--config", file)
        assert result.code == 1
        assert message in result.err
        assert len(result.err.strip().splitlines()) == 1
    result = st3_("profile", "--config", changed(path), "--weights", "pretrained")
    assert "a bare configuration has no weights" in result.err


def test_a_model_too_big_is_said_before_it_is_tried(
    st3_: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from st3.profiling import subject

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(subject, "free_memory", lambda device: 10e9)
    monkeypatch.setattr(subject, "random_model", never)
    result = st3_("profile", "--model", "13b", "--weights", "random")
    assert result.code == 1
    assert "cannot time 13b: it needs about 27.97 GB on cpu and 10 GB are free" in result.err
    assert "17.97 GB too little" in result.err
    assert len(result.err.strip().splitlines()) == 1
    result = st3_("profile", "--model", "7b", "--json")
    assert json.loads(result.out)["notes"][0].startswith("Latency not measured: it needs about")


def test_a_large_model_is_not_timed_on_a_cpu_unasked(
    st3_: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from st3.profiling import subject

    monkeypatch.setattr(subject, "free_memory", lambda device: 1e12)
    result = st3_("profile", "--model", "7b", "--device", "cpu", "--methods", "none")
    assert result.code == 0
    text = " ".join(result.err.split())
    assert "Latency not measured: 7.063 G parameters take many minutes on a CPU" in text
    assert "Latency" not in result.out
    assert text.count("not measured") == 1
    assert "medians" not in text  # of what?


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(st3_: Any) -> None:
    result = st3_("profile", "--device", "cuda")
    assert result.code == 1
    assert "torch sees none" in result.err


def test_ctrl_c_prints_what_there_is(
    st3_: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from st3.profiling import latency

    generate, calls = latency.generate_once, []

    def stop(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return generate(*args)

    monkeypatch.setattr(latency, "generate_once", stop)
    output = tiny.with_name("x.json")
    result = st3_("profile", "--config", tiny, "--methods", "none,st3", "--output", output)
    assert result.code == 130
    document = json.loads(output.read_text())
    assert document["interrupted"] is True
    assert [len(sample["e2e_ms"]) for sample in document["samples"]] == [1, 1, 1]
    assert "Interrupted" in result.err
    assert "speedup" in result.out


def test_methods(st3_: Any) -> None:
    result = st3_("methods")
    assert result.code == 0
    for name, cls in METHODS.items():
        assert name in result.out
        assert cls.source.split()[-1] in result.out
    found = json.loads(st3_("methods", "--json").out)
    assert [method["name"] for method in found["methods"]] == list(METHODS)
    assert found["methods"][4]["parameters"] == {
        "scorer": "last-token",
        "kv_cache_dtype": "auto",
        "k": 2,
        "r": 0.5,
    }
    assert "uniform" in found["scorers"]


def test_env(st3_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HOME", "/home/somebody/models")
    text = st3_("env").out
    assert torch.__version__ in text
    assert "secret" not in text
    assert "somebody" not in text
    found = json.loads(st3_("env", "--json").out)
    assert found["HF_TOKEN"] == found["HF_HOME"] == "set"
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1e8
    assert found["python"] == sys.version.split()[0]


def test_run_takes_a_peer(st3_: Any) -> None:
    result = st3_("run", "--method", "fastv:k=3,r=25%", "--json", "--max-new-tokens", 2)
    document = json.loads(result.out)
    assert document["method"] == "fastv"
    assert document["visual_tokens"]["kept_per_layer"] == [576] * 3 + [432] * 29


def test_a_large_picture_of_another_family(st3_: Any) -> None:
    """Without weights; the counts are in test_picture and test_profiling."""
    done = st3_(
        "profile", "--model", "qwen3-vl-8b", "--picture", "640X480", "--methods", "none,st3",
        "--pictures", "2", "--json", "--no-latency",
    )  # fmt: skip
    assert done.code == 0
    document = json.loads(done.out)
    assert document["settings"]["visual_tokens"] == 2 * 20 * 15
    assert document["shape"]["picture_tokens"] == 20 * 15
    assert document["shape"]["picture_size"] == [640, 480]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--picture", "0x0"), "give width x height in pixels, e.g. 1344x896"),
        (("--picture", "big"), "give width x height in pixels"),
        (("--picture", "90000x90000"), "more than 100 million pixels"),
        (("--picture", "9000x3", "--model", "qwen3-vl-8b"), "takes no picture of 9000 x 3 pixels"),
        (("--pictures", "2", "--visual-tokens", "576"), "leave --pictures out"),
    ],
)
def test_pictures_that_cannot_be(st3_: Any, arguments: tuple[str, ...], words: str) -> None:
    done = st3_("profile", "--no-latency", *arguments)
    assert done.code != 0
    assert words in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_a_tower_that_needs_numbers_is_left_out(st3_: Any, tmp_path: Path) -> None:
    """Gemma 4's drops patches by what they hold; its decoder is counted all the same."""
    from families.zoo import ZOO

    path = tmp_path / "config.json"
    path.write_text(ZOO["gemma4"].configuration().to_json_string(use_diff=False), encoding="utf-8")
    common = ("profile", "--config", path, "--methods", "none,pvtp:stride=1,ratio=0.1")
    refused = st3_(*common)
    assert refused.code == 1
    assert "--visual-tokens" in refused.err
    assert len(refused.err.splitlines()) == 1
    done = st3_(*common, "--visual-tokens", 64, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert "Vision tower and projector not counted" in " ".join(document["notes"])
    assert document["rows"][-1]["prefill_macs_ratio"] < 1


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl_moe", "gemma3"])
def test_layers_of_all_kinds_are_counted_and_timed(name: str, st3_: Any, tmp_path: Path) -> None:
    """The live cache holds what was counted, or the command says so and fails."""
    from families.zoo import ZOO

    config = ZOO[name].configuration()
    (tmp_path / "config.json").write_text(config.to_json_string())
    done = st3_(
        "profile", "--config", tmp_path / "config.json", "--picture", "64x64", "--text-tokens", 40,
        "--new-tokens", 5, "--repeats", 1, "--methods", "none,pvtp", "--stride", 1, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = {row["method"]: row for row in json.loads(done.out)["rows"]}
    assert rows["pvtp:stride=1"]["kv_ratio"] < 1 == rows["none"]["kv_ratio"]
    assert rows["none"]["prefill_macs"] == rows["stock"]["prefill_macs"]
    assert rows["none"]["ttft_ms"] > 0


def test_what_is_refused_is_told_and_the_others_go_on(st3_: Any) -> None:
    """`evs` is for videos, and what is asked of the model is a picture."""
    asked = ("profile", "--model", "7b", "--new-tokens", 2)
    document = json.loads(st3_(*asked, "--methods", "none,evs,divprune:keep=3", "--json").out)
    assert [row["method"] for row in document["rows"]] == ["stock", "none", "divprune:keep=3"]
    assert any(note.startswith("evs: no row: it goes by what") for note in document["notes"])
    alone = st3_(*asked, "--methods", "evs")
    assert alone.code != 0
    assert "ask for a video" in alone.err
