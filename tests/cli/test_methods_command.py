"""`st3 methods`: by stage, one explained, and what fits a model."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from st3.methods import METHODS, make_method
from st3.methods.before import selectors
from st3_cli import console


def test_by_stage(st3_: Any) -> None:
    shown = st3_("methods").out
    stages = ("nothing", "before the decoder", "in the decoder", "in the decoder and while")
    places = [shown.index(f"Methods that drop {stage}") for stage in stages]
    assert places == sorted(places)
    for name in selectors():
        assert shown.index(name, places[1]) < places[2]
    found = json.loads(st3_("methods", "--json").out)["methods"]
    assert [one["name"] for one in found] == list(METHODS)
    by_name = {one["name"]: one for one in found}
    assert by_name["divprune"]["order"]
    assert not by_name["hiprune"]["order"]
    assert by_name["scope"]["needs"] == ["attention features", "patches"]
    assert by_name["fastv"]["stage"] == "in the decoder"


@pytest.mark.parametrize("name", METHODS)
def test_one_is_explained(st3_: Any, name: str) -> None:
    shown = " ".join(st3_("methods", name).out.split())
    assert METHODS[name].source.split()[-1] in shown
    for setting in getattr(METHODS[name], "published", {}):
        assert f"{name}:{setting}" in shown
    assert json.loads(st3_("methods", name, "--json").out)["name"] == name


def test_which_fit_a_model(st3_: Any) -> None:
    """A class token, none, and no tower to look into."""
    fits = {}
    for model in ("7b", "gemma3-12b"):
        found = json.loads(st3_("methods", "--model", model, "--json").out)["methods"]
        fits[model] = {one["name"]: (one["fits"], one["instead"]) for one in found}
        assert all(fit for fit, _ in fits[model].values())
    assert fits["7b"]["fastervlm"] == (True, "")
    assert fits["gemma3-12b"]["fastervlm"] == (
        True, "no class token: attention from all patches instead",
    )  # fmt: skip
    assert fits["gemma3-12b"]["hiprune"] == fits["gemma3-12b"]["divprune"] == (True, "")
    shown = " ".join(st3_("methods", "fastervlm", "--model", "gemma3-12b").out.split())
    assert "no class token" in shown


def test_a_fit_is_that_of_what_was_asked_for(st3_: Any) -> None:
    """`dpp:64` counts positions anew, and those of Qwen2.5-VL lie on a grid; `dpp` does not."""
    fits = {
        asked: json.loads(st3_("methods", asked, "--model", "qwen2.5-vl-7b", "--json").out)["fits"]
        for asked in ("dpp", "dpp:64", "dpp:64,positions=original")
    }
    assert fits == {"dpp": True, "dpp:64": False, "dpp:64,positions=original": True}
    said = json.loads(st3_("methods", "pvtp:scorer=fastervlm", "-m", "gemma3-12b", "--json").out)
    assert "no class token" in said["instead"]
    said = json.loads(st3_("methods", "cdpruner", "--model", "7b", "--json").out)
    assert "text encoder" in said["instead"]


def test_what_a_tower_lacks_is_said(st3_: Any) -> None:
    """Tiles for HiRED where a picture has none; a first block that sees windows alone."""

    def instead(name: str, model: str) -> str:
        found = json.loads(st3_("methods", name, "--model", model, "--json").out)
        assert found["fits"]
        said: str = found["instead"]
        return said

    for model in ("7b", "internvl3-8b"):
        assert "as fastervlm" in instead("hired", model)
    assert "fastervlm" not in instead("hired", "llava-next-7b")
    windows = instead("hired", "qwen2.5-vl-7b")
    assert all(part in windows for part in ("no class token", "windows in the tower", "fastervlm"))
    assert "windows" not in instead("fastervlm", "gemma3-12b")
    for name in ("hiprune", "pool"):
        assert "stretches of the prompt" in instead(name, "llava-next-7b")
        assert "stretches" not in instead(name, "7b")


@pytest.mark.parametrize("name", ["st3:tau=-1", "vta:tau=0", "pvtp:prune_ratio=2", "dpp:tau=-1"])
def test_parameters_that_no_depth_allows_are_not_explained(st3_: Any, name: str) -> None:
    result = st3_("methods", name)
    assert result.code != 0
    assert len(result.err.strip().splitlines()) == 1


def test_a_family_without_a_tower() -> None:
    from families.zoo import ZOO

    from st3.inference.suits import suits

    config = ZOO["gemma4_unified"].configuration()
    assert suits(METHODS["divprune"], config) == (True, "")
    fit, why = suits(METHODS["scope"], config)
    assert not fit
    assert "vision tower" in why
    assert suits(METHODS["pyramiddrop"], config)[0]


def test_no_such_method(st3_: Any) -> None:
    result = st3_("methods", "divprun")
    assert result.code == 2
    assert "unknown method 'divprun' (did you mean divprune?); known: none" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_one_with_its_settings(st3_: Any) -> None:
    found = json.loads(st3_("methods", "cdpruner:64,theta=0.5", "--json").out)
    assert (found["name"], found["parameters"]["keep"]) == ("cdpruner", 64)
    assert found["parameters"]["theta"] == 0.5
    shown = " ".join(st3_("methods", "fastervlm").out.split())
    assert "fastervlm:drop-90% keeps 58 tokens of each picture and the marks" in shown
    shown = " ".join(st3_("methods", "hired").out.split())
    assert "hired:keep-20% keeps 0.2 of all of each picture" in shown


def test_settings_of_no_use(st3_: Any) -> None:
    result = st3_("methods", "divprune:keep=200%")
    assert result.code == 2
    assert result.err.strip().endswith("got 200%")
    result = st3_("run", "x.jpg", "what", "--keep", "64")
    assert result.code == 2
    assert "It is a method's own: write it behind the name, as in" in result.err
    assert ":keep=..." in result.err


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_names_are_whole_at_any_width(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(console.out, "width", columns)
    shown = st3_("methods").out
    assert max(map(len, shown.splitlines())) <= columns
    words = {*shown.replace(",", " ").split()}
    assert {*METHODS, "object_layer=0.375"} <= words
    for method in METHODS.values():
        assert {*method.source.replace(",", " ").split()} <= words


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("divprune", {"tau": 2.5}, "divprune: tau must be a whole number or None, got 2.5"),
        ("divprune", {"tau": "64"}, "tau must be a whole number or None, got '64'"),
        ("cdpruner", {"theta": None}, "theta must be a number, got None"),
        ("divprune:tau=-1", {}, "tau must be at least 1 token"),
        ("divprune:annealing=foo", {}, "unknown annealing 'foo'"),
        ("divprune:keep=\u0663", {}, "keep must be a share above 0"),
        ("divprune:scorer=dpp", {}, "chooses before the decoder itself, and no order of 'dpp'"),
        ("pvtp:scorer=dpp:64", {}, "a scorer is a name alone"),
        ("pvtp:scorer=Divprune", {}, "did you mean divprune"),
    ],
)
def test_parameters_that_cannot_be(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_method(name, **given)


def test_numbers_of_numpy_and_of_text_are_numbers() -> None:
    want = make_method("dpp", keep=64)
    assert make_method("dpp", keep=np.int64(64)) == make_method("dpp:keep=64") == want
    assert isinstance(make_method("dpp:keep=64").settings(2)["keep"], int)
    assert make_method("cdpruner", theta=np.float32(0.5)) == make_method("cdpruner:theta=0.5")


def test_an_explanation_has_no_markup(st3_: Any) -> None:
    result = st3_("methods", "dpp:64", "--json")
    assert json.loads(result.out)["parameters"]["keep"] == 64
    assert "*" not in st3_("methods", "divprune").out
