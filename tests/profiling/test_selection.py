"""What choosing costs is part of a run."""

from __future__ import annotations

import torch
from conftest import tiny_llava

from st3.methods import make_method
from st3.profiling.clocks import LaunchCounter
from st3.profiling.runs import Variant, generate_once, random_inputs
from st3.profiling.shape import Workload


def test_choosing_is_counted_where_it_happens() -> None:
    """In operations: none of stock and `none`, the cuts of FastV, rows of the tower besides."""
    model = tiny_llava()
    work = Workload(visual=128, text=9, new=2, batch=1)
    inputs = random_inputs(model, work)
    found: dict[str, float | None] = {}
    for spec in ("stock", "none", "fastv", "divprune:keep=8", "fastervlm:keep=8", "scope:keep=8"):
        method = None if spec == "stock" else make_method(spec)
        with LaunchCounter() as counter, torch.no_grad():
            run = generate_once(model, inputs, work, Variant(method), counter)
        found[spec] = run.selection
        if run.selection is not None:
            assert 0 <= run.selection < run.ttft
    assert found["stock"] is None
    assert found["none"] == 0
    assert 0 < (found["fastv"] or 0) < (found["fastervlm:keep=8"] or 0)
    assert (found["fastervlm:keep=8"] or 0) < (found["scope:keep=8"] or 0)
    assert (found["divprune:keep=8"] or 0) > 0
