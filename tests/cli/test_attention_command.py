"""`st3 attention-map` as a user meets it, and what it draws."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import KEPT, prompts, slow, tiny_llava
from PIL import Image

from st3 import demo
from st3.attention.album import plates
from st3.attention.capture import capture
from st3.attention.look import Look, analyse, sentences
from st3.attention.measures import VISUAL
from st3.inference.places import places_from
from st3.methods import make_method

PICTURES = {
    "layers.png", "heads.png", "kept.png", "kept-over-time.png", "shares-layers.png",
    "shares-tokens.png", "neighbours.png", "concentration.png",
}  # fmt: skip


def tiny_look(row: str, method: str, compare: bool = False) -> Look:
    """A look at a random model with any number of pictures, without a processor."""
    model, inputs = tiny_llava(), prompts(row)
    count = row.count("I")
    untrimmed = capture(model, inputs, make_method("none"), new_tokens=4)
    trimmed = capture(model, inputs, make_method(method), new_tokens=4 if compare else 1)
    noise = np.random.default_rng(0)
    pictures = [
        Image.fromarray(noise.integers(0, 256, (480, 480, 3), dtype=np.uint8)) for _ in range(count)
    ]
    middles = (np.arange(8) + 0.5) / 8
    places = places_from(
        pictures, np.arange(count).repeat(64), np.tile(middles, 8 * count),
        np.tile(middles.repeat(8), count),
    )  # fmt: skip
    texts = ([str(n) for n in untrimmed.answer], [str(n) for n in trimmed.answer])
    return Look(
        model="tiny", prompt="?", answer="!", method=make_method(method),
        places=places, untrimmed=untrimmed, trimmed=trimmed,
        trimmed_answer="!" if compare else None, tokens=texts, machine={},
    )  # fmt: skip


def test_the_bundled_picture(st3_: Any, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "look"
    result = st3_("attention-map", "--output", folder, "--json", "--new-tokens", 6)
    assert result.code == 0, result.err
    assert result.err == ""
    document = json.loads(result.out)
    assert set(document["files"]) == PICTURES | {"report.html", "attention.json"}
    assert {path.name for path in folder.iterdir()} == set(document["files"])
    assert json.loads((folder / "attention.json").read_text()) == document
    for name in PICTURES:
        with Image.open(folder / name) as image:
            assert min(image.size) > 300
    layers = document["layers"]
    assert [layer["layer"] for layer in layers] == list(range(1, 33))
    for n, layer in enumerate(layers):
        assert sum(layer["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert layer["visual_share"] == layer["shares"]["visual"]
        assert 1 <= layer["tokens_for_90pct"] <= 576
        assert 0 <= layer["entropy"] <= 1
        assert (layer["similarity_to_previous"] is None) == (n == 0)
        mean = sum(head["visual_share"] for head in layer["heads"]) / 4
        assert mean == pytest.approx(layer["visual_share"])
    assert [layer["kept"] for layer in layers] == KEPT
    assert len(document["generated"]) == 6
    for token in document["generated"]:
        total = sum(token[kind] for kind in ("system", "visual", "prompt", "generated"))
        assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_report_needs_nothing_else(st3_: Any, tmp_path: Path) -> None:
    st3_(
        "attention-map", demo.PICTURE, "what <b>colour</b> is the star?", "--compare",
        "--output", tmp_path, "--layers", "1", "--heads", "2", "--new-tokens", 4,
    )  # fmt: skip
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("data:image/png;base64,") == 14
    assert "&lt;b&gt;colour&lt;/b&gt;" in text
    assert "With st3:" in text
    assert len(text) < 10e6


def test_the_table(st3_: Any, tmp_path: Path) -> None:
    result = st3_("attention-map", "--output", tmp_path / "a", "--method", "pvtp")
    assert result.code == 0
    assert "tokens" in result.out
    assert "open " in result.err
    assert "pvtp keeps holds" in " ".join(result.err.split())
    assert not (tmp_path / "a" / "kept-over-time.png").exists()  # pvtp does not anneal


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--layers", "0"], 2, "--layers: this model has 1 to 32, not 0"),
        (["--layers", "4-33"], 2, "--layers: this model has 1 to 32, not 33"),
        (["--heads", "5"], 2, "--heads: this model has 1 to 4, not 5"),
        (["--heads", "all"], 2, "no list of numbers: give e.g. 1,4,9-12"),
        (["--layers", "5-3"], 2, "this model has 1 to 32, not '5-3'"),
        (["missing.png"], 1, "no file missing.png"),
        ([""], 2, "the picture is empty"),
        ([str(demo.PICTURE), " "], 2, "the prompt is empty"),
        (["--method", "none", "--compare"], 2, "give another --method"),
        (["--ratio", "0.4"], 2, "the largest R"),
        (["--output", __file__], 2, "is a file, give a folder"),
        (
            ["--output", str(Path(__file__).parent)],
            2,
            "give another --output, or --force to",
        ),
        (["--new-tokens", "0"], 2, "new-tokens"),
        (["--model", "small"], 1, "a shape without weights"),
    ],
)
def test_bad_input_is_one_line(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], code: int,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = st3_("attention-map", *arguments)
    assert result.code == code
    assert message in result.err
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_force_writes_into_a_folder_with_files(st3_: Any, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    options = ("--output", tmp_path, "--new-tokens", 1, "--layers", "1", "--heads", "1")
    assert st3_("attention-map", *options).code == 2
    assert st3_("attention-map", *options, "--force").code == 0
    assert other.read_text() == "mine"
    assert not (tmp_path / "shares-tokens.png").exists()  # one token is no course of time


@pytest.mark.parametrize("method", ["st3:stride=2,tau=8", "vtw", "fastv", "uniform:stride=3"])
@pytest.mark.parametrize("row", ["tIttt", "tItIttItt"])
def test_what_is_said_is_what_the_cache_holds(method: str, row: str) -> None:
    """Kept counts, and their share of the untrimmed attention, from the trimmed rows themselves."""
    seen = tiny_look(row, method, compare=True)
    document = analyse(seen)
    visual = seen.untrimmed.kinds == VISUAL
    whole = seen.untrimmed.prompt[..., visual].mean(1)
    alive = seen.trimmed.prompt[..., visual].mean(1) > 0
    for n, layer in enumerate(document["layers"]):
        assert layer["kept"] == int(alive[n].sum())
        share = float(whole[n][alive[n]].sum() / whole[n].sum())
        assert layer["kept_share"] == pytest.approx(share, abs=1e-6)
    worst = min(layer["kept_share"] for layer in document["layers"])
    assert document["verdict"]["worst_kept_share"] == worst
    first, second = sentences(document)
    assert "the picture could be dropped whole: even the last one gives it" in first
    assert "keeps holds" in second


@pytest.mark.parametrize("method", ["st3:stride=2,tau=8", *slow("vtw")])
@pytest.mark.parametrize("row", [*slow("tIttt"), "tItIttIttItItt"])
def test_every_plate_is_drawn_for_any_number_of_pictures(
    method: str, row: str, tmp_path: Path
) -> None:
    seen = tiny_look(row, method, compare=True)
    for plate in plates(seen, [1, 10], [1, 2, 4]):
        plate.write(tmp_path / plate.name)
        with Image.open(tmp_path / plate.name) as image:
            assert min(image.size) > 300
        assert plate.caption


def test_kept_patches_are_those_of_the_session(tmp_path: Path) -> None:
    """The picture that is drawn is grey just where the cache holds nothing."""
    from matplotlib.figure import Figure

    from st3.plots.kept import show_kept

    seen = tiny_look("tItItt", "st3:stride=2")
    session, places = seen.trimmed.session, seen.places
    for layer in (1, 4, 10):
        axis = Figure().subplots()
        show_kept(axis, places, session.kept(layer))
        shown = np.asarray(axis.images[0].get_array())
        same = np.all(shown == places.canvas, axis=2)
        assert not same[:, 480:486].any() or same[:, 480:486].all()  # the gap between them
        blocks = np.concatenate((same[:, :480], same[:, 486:]), 1).reshape(8, 60, 16, 60)
        blocks = blocks.all(axis=(1, 3))
        number = np.concatenate((np.arange(64).reshape(8, 8), np.arange(64, 128).reshape(8, 8)), 1)
        assert sorted(number[blocks].tolist()) == session.kept(layer)
