"""The page without a browser: links, commands, knobs, drawings, and what visitors may not do."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
from conftest import tiny_checkpoint
from PIL import Image

import st3
from st3 import demo
from st3.inference.generation import answer, find_places
from st3.inference.pictures import open_picture
from st3.methods import make_method
from st3.page import showing
from st3.page.asking import Host, Seen
from st3.page.film import Film
from st3.page.view import OWN, View, knobs_of, read_method, turned
from st3.units import si


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model that never ends an answer by itself."""
    live, processor = st3.load(str(tiny_checkpoint(tmp_path_factory.mktemp("tiny"))), device="cpu")
    live.generation_config.eos_token_id = None
    return live, processor


def test_a_link_is_its_view() -> None:
    view = View("crowd", "Is it 100 % red & blue?", "st3:stride=2,tau=none", 32, False, 6, 17, True)
    assert View.of(dict(parse_qsl(view.query(View()))), View()) == view
    assert View().query(View()) == ""


@pytest.mark.parametrize("own", ["st3", "fastv"])
@pytest.mark.parametrize("chosen", ["st3", "fastv", "vtw"])
def test_a_link_opens_what_was_shared_whatever_the_page_opens_with(own: str, chosen: str) -> None:
    start = View(method=own, tokens=64)
    shared = View(method=chosen)
    query = shared.query(start)
    assert View.of(dict(parse_qsl(query)), start) == shared
    assert ("method=" in query) == (own != chosen)


@pytest.mark.parametrize("query", [{"tokens": "many"}, {"picture": "../x"}, {"layer": "1e9"}])
def test_a_link_that_makes_no_sense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"whole number|no bundled picture"):
        View.of(query, View())


@pytest.mark.parametrize(
    "spec",
    ["./mine.py:Mine", "mine.py", "st3:scorer=./mine.py:Mine", "st3:scorer=mine.py",
     "visionzip+./mine.py:Mine", "fitprune:table=/etc/passwd", "fitprune:table=table.json"],
)  # fmt: skip
def test_visitors_name_no_files(spec: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code = "open('ran', 'w', encoding='utf-8').close()\n"
    Path("mine.py").write_text(code, encoding="utf-8")
    with pytest.raises(ValueError, match="on a page"):
        read_method(spec, 32)
    assert not Path("ran").exists()


def test_illegal_values_say_the_legal_range() -> None:
    for spec, words in (
        ("st3:stride=2,ratio=30%", "the largest R for this S is"),
        ("st3:stride=0", "at least 1"),
        ("st3:final_keep=80%", "lower P to"),
        ("st3:tau=0", "at least 1 token"),
        ("st4", "did you mean st3"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            read_method(spec, 32)


@pytest.mark.parametrize("layers", [12, 32])
def test_a_knob_turned_is_a_knob_read(layers: int) -> None:
    spec = "st3"
    for name, value, read in (
        ("stride", 3, 3), ("prune_ratio", 40.0, 0.4), ("final_keep", 20.0, 0.2), ("tau", 64, 64),
        ("tau", 0, None), ("scorer", "random", "random"),
    ):  # fmt: skip
        spec = turned(spec, name, value, layers)
        assert knobs_of(read_method(spec, layers), layers)[name] == pytest.approx(read), spec
    spec = turned(spec, "ratio", 1.0, layers)
    assert "final_keep" not in spec
    assert knobs_of(read_method(spec, layers), layers)["ratio"] == pytest.approx(0.01)


def test_knobs_are_those_of_the_method() -> None:
    assert not knobs_of(make_method("none"), 32)
    assert set(knobs_of(make_method("vta"), 32)) == {"tau", "scorer"}
    assert "stride" in knobs_of(make_method("visionzip+st3"), 32)
    assert turned("visionzip:keep=50%+st3", "tau", 64, 32) == "visionzip:keep=50%+st3:tau=64"
    assert turned("st3:tau=64", "tau", 128, 32) == "st3"  # as it is unsaid


def test_asked_on_the_page_is_asked_by_the_library(tiny: tuple[Any, Any]) -> None:
    host, picture = Host(*tiny, "tiny"), open_picture(demo.PICTURE)
    method = make_method("st3", tau=8)
    *_, seen = host.ask(picture, "What is it?", method, 12, True)
    assert not seen.refusal
    assert (
        seen.text["trimmed"]
        == answer(*tiny, picture, "What is it?", method, max_new_tokens=12).text
    )
    none = answer(*tiny, picture, "What is it?", make_method("none"), max_new_tokens=12)
    assert seen.text["untrimmed"] == none.text
    labels = [label for label, *_ in host.rows(seen)]
    assert {"KV cache after prefill", "TTFT"} <= {*labels}
    assert all("not" not in cell for row in host.rows(seen) for cell in row), host.rows(seen)


@pytest.fixture(scope="module")
def seen_under(tiny: tuple[Any, Any]) -> Any:
    """The host, and what was seen of a method's answer, which is computed once."""
    host = Host(*tiny, "tiny")

    @cache
    def ask(spec: str) -> tuple[Host, Seen]:
        *_, seen = host.ask(open_picture(demo.PICTURE), "What is it?", make_method(spec), 3, False)
        assert not seen.refusal
        return host, seen

    return ask


BEFORE = ["divprune:keep=25%", "divprune:keep=16", "divprune:keep=50%+st3:tau=none", "prumerge"]


@pytest.mark.parametrize("spec", ["st3", "none", *BEFORE])
def test_it_says_what_is_kept(seen_under: Any, spec: str) -> None:
    """Before anything was asked, what a session then holds, as far as anybody can know it."""
    host, seen = seen_under(spec)
    session = seen.answers["trimmed"].session
    kept, (total,) = session.kept_per_layer(), session.visual_tokens
    said = showing.keeps(host.schedule(make_method(spec)))
    if spec.endswith(("=16", "prumerge")):
        assert said.startswith("Lets 16 visual" if "16" in spec else "The picture decides")
        total = kept[0]
    mean, last = (float(share) for share in re.findall(r"([\d.]+)%", said))
    assert mean == pytest.approx(100 * sum(kept) / len(kept) / total, abs=1)  # whole tokens, of 64
    assert last == pytest.approx(100 * kept[-1] / total, abs=1)


@pytest.mark.parametrize("spec", BEFORE)
def test_macs_are_of_what_entered(seen_under: Any, spec: str) -> None:
    """Products and attention of a LLaMA by hand, at the tokens that each layer held."""
    host, seen = seen_under(spec)
    ours = seen.answers["trimmed"]
    (total,), config = ours.session.visual_tokens, host.model.config.get_text_config()
    d, m = config.hidden_size, config.intermediate_size
    pairs = config.num_key_value_heads * config.head_dim

    def macs(visual: int) -> int:
        n = visual + ours.prompt_tokens - total
        return n * (2 * d * d + 2 * d * pairs + 3 * d * m) + 2 * n * n * d

    trimmed, full = sum(map(macs, ours.session.kept_per_layer())), host.layers * macs(total)
    (row,) = (row for row in host.rows(seen) if "MACs" in row[0])
    assert row[1:] == (si(trimmed), si(full), f"{1 - trimmed / full:.0%} less")


@pytest.mark.parametrize("spec", ["st3:tau=8", "pvtp", "vta:tau=5"])
def test_a_film_is_what_the_session_kept(tiny: tuple[Any, Any], spec: str) -> None:
    picture, prompt = open_picture(demo.PICTURE), "What is it?"
    done = answer(*tiny, picture, prompt, make_method(spec), max_new_tokens=12)
    assert done.session is not None
    film = Film.of(done.session, find_places(*tiny, picture, prompt), 12)
    for after in range(12):
        held = [set(done.session.kept(layer, 0, after)) for layer in range(1, film.layers + 1)]
        assert [set(film.kept(layer, after)) for layer in range(1, film.layers + 1)] == held
        deepest = [max((n for n, kept in enumerate(held, 1) if t in kept), default=0)
                   for t in range(film.places.count)]  # fmt: skip
        assert film.deepest(after).tolist() == deepest


def test_whoever_leaves_ends_the_answer(tiny: tuple[Any, Any]) -> None:
    host, picture = Host(*tiny, "tiny"), open_picture(demo.PICTURE)
    asking = host.ask(picture, "What is it?", make_method("st3"), 400, True)
    while not next(asking).text["trimmed"]:
        pass
    asking.close()
    assert host._turn.acquire(timeout=30)  # long before 400 tokens, twice
    host._turn.release()
    *_, seen = host.ask(picture, "What is it?", make_method("st3"), 3, False)
    assert seen.answers["trimmed"].new_tokens == 3


def test_closing_ends_what_runs_and_takes_no_more(tiny: tuple[Any, Any]) -> None:
    host, picture = Host(*tiny, "tiny"), open_picture(demo.PICTURE)
    asking = host.ask(picture, "What is it?", make_method("st3"), 400, True)
    while not next(asking).text["trimmed"]:
        pass
    host.close()
    *_, seen = asking
    assert seen.answers["trimmed"].new_tokens < 400
    assert list(host.ask(picture, "What is it?", make_method("st3"), 3, False)) == []


def test_what_goes_wrong_is_said_in_a_line(tiny: tuple[Any, Any]) -> None:
    host = Host(*tiny, "tiny", explain=lambda error: f"said: {error}")
    *_, seen = host.ask(open_picture(demo.PICTURE), "x " * 9000, make_method("st3"), 3, False)
    assert seen.refusal.startswith("said: ")
    assert host.rows(Seen()) == []


def test_words_that_differ_are_marked() -> None:
    left, right = showing.marked("a red <star> here", "a blue <star> here too")
    assert left == "a <mark>red</mark> &lt;star&gt; here"
    assert right == "a <mark>blue</mark> &lt;star&gt; here <mark>too</mark>"
    bare = [html.unescape(re.sub(r"</?mark>", "", text)) for text in (left, right)]
    assert bare == ["a red <star> here", "a blue <star> here too"]


def test_bundled_pictures_are_of_the_demos_world() -> None:
    from st3.demo.likeness import of_this_world

    for path in demo.PICTURES.values():
        assert of_this_world(open_picture(path)), path
    assert demo.bundled("demo:crowd") == demo.PICTURES["crowd"]
    assert demo.bundled("demo") == demo.PICTURE
    assert demo.bundled("crowd") is None


def test_without_gradio_it_says_what_to_install(st3_: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = st3_("page")
    assert ran.code == 1
    assert "pip install 'st3[page]'" in ran.err


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio")
@pytest.mark.filterwarnings("ignore")
def test_uploads_are_refused_in_the_words_of_the_command(
    tiny: tuple[Any, Any], tmp_path: Path, st3_: Any
) -> None:
    """And are no files any more, whether they were taken or not."""
    from st3.page.handlers import Page

    page = Page(Host(*tiny, "tiny"), View())
    text, bomb, good = (tmp_path / name for name in ("notes.txt", "bomb.png", "good.png"))
    for file in (text, bomb):
        text.write_text("no picture", encoding="utf-8")
        Image.new("1", (20_000, 20_000)).save(bomb)
        said = st3_("run", file, "What?").err.strip().removeprefix("st3: ")
        said = said.removesuffix(", nor a video")  # the page takes none
        *_, refusal = page.upload(str(file))
        assert not file.exists()
        assert said.replace(str(file), file.name) in html.unescape(refusal)
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(good)
    (name, data), *_, refusal = page.upload(str(good))
    assert (name, refusal, good.exists()) == ("good.png", "", False)
    assert page.picture(OWN, (name, data)).size == (7, 9)


def test_a_space_is_whole(tmp_path: Path) -> None:
    """The demo's model loads from the folder alone, by the package in it."""
    root = Path(__file__).parent.parent.parent
    made = tmp_path / "space"
    subprocess.run([sys.executable, root / "docs" / "space" / "make.py", made], check=True)
    needs = (made / "requirements.txt").read_text(encoding="utf-8")
    assert "gradio" in needs
    assert "transformers" in needs
    compile((made / "app.py").read_text(encoding="utf-8"), "app.py", "exec")
    code = (
        "import st3.page.start, st3.page.asking, st3.demo as d, st3.inference.checkpoints as c; "
        "print(d.PICTURE, c.find('demo').place)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=made, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(made)},
    )  # fmt: skip
    for path in ran.stdout.split():
        assert Path(path).is_relative_to(made)
        assert Path(path).exists()
