"""What batches bring: servers take turns, their answers are held against each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from served import data_url, endless, noise, serving, until
from typer.testing import CliRunner

from st3.serving.http import measure
from st3.serving.http.batching_table import table
from st3.serving.load import Ask, question

TURNS, CALLERS, ROUNDS = 6, 3, 2


def asks(model: str = "tiny") -> list[Ask]:
    return [
        Ask(question(model, "how many", [data_url(noise(seed))], 4 + seed)) for seed in range(TURNS)
    ]


def test_servers_take_turns(tmp_path: Path) -> None:
    live, processor = endless(tmp_path)
    with (
        serving(live, processor) as alone,
        serving(live, processor, batch_size=CALLERS) as many,
    ):
        servers = [measure.Server(1, alone.url), measure.Server(CALLERS, many.url)]
        found = list(measure.take_turns(servers, asks(), CALLERS, ROUNDS))
        for one in (alone, many):  # the last byte comes before it is counted
            until(lambda one=one: one.ended("200") == TURNS * (1 + ROUNDS))
            assert one.chat.active == 0
        with pytest.raises(ValueError, match=r"--batch-size 1: .*unknown model 'other'"):
            list(measure.take_turns(servers, asks("other"), CALLERS, ROUNDS))
    assert [rows[0]["rounds"] for rows in found] == [1, 2]
    assert found[0][0]["spread"] is None  # one round has none
    one, three = found[-1]
    assert (one["batch_size"], one["batch"], one["same"]) == (1, 1, 1)
    assert (three["batch_size"], three["same"]) == (CALLERS, 1)
    assert 1 < three["batch"] <= CALLERS
    rates = three["samples"]["requests_per_second"]
    assert min(rates) <= three["requests_per_second"] <= max(rates)
    settings = {"model": "demo", "callers": CALLERS, "requests": TURNS}
    shown = table({"serving": found[-1], "settings": settings})
    assert shown.title == "st3 serve on the demo, 3 callers, 6 pictures a round"
    assert [line[2] for line in shown.rows] == [
        "1.00x", f"{three['requests_per_second'] / one['requests_per_second']:.2f}x",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """It starts servers of its own, with the options behind the dashes, and leaves none."""
    app = typer.Typer()
    app.command()(measure.main)
    path = tmp_path / "rows.json"
    asked = ["--batch-sizes", "2", "--requests", "2", "--callers", "2", "--rounds", "1"]
    done = CliRunner().invoke(app, [*asked, "--output", str(path), "--", "--method", "vtw"])
    assert done.exit_code == 0, done.output
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["settings"]["options"] == ["--method", "vtw"]
    assert [row["batch_size"] for row in document["serving"]] == [2]
    assert table(document).markdown() in done.output
    lost = CliRunner().invoke(app, [*asked, "--model", str(tmp_path / "none")])
    assert lost.exit_code == 1
    assert "st3: st3 serve did not start: it says above why\n" in lost.output
    for sizes in ("0", "1,,2", "many"):
        wrong = CliRunner().invoke(app, ["--batch-sizes", sizes])
        assert wrong.exit_code == 2
        assert "give whole numbers above 0" in " ".join(wrong.output.split())
