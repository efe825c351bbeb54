"""`st3 methods`: by stage, one explained, and what fits a model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from st3.methods import METHODS
from st3.methods.before import selectors


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
