"""What a progress bar says on a narrow terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from st3_cli import progress

SHARES = {"pictures": 0.1, "prefill": 0.3, "decode": 0.6}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("who", ["", "process 1 of 2"])
def test_shares_give_way_before_rows_rate_and_time(
    width: int, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(file=io.StringIO(), width=width, force_terminal=True)
    monkeypatch.setattr(progress, "err", terminal)

    def shown() -> str:
        paper = Console(file=io.StringIO(), width=width, color_system=None)
        with paper.capture() as drawn:
            paper.print(bar.bar.get_renderable())
        return drawn.get()

    with progress.batch_bar(who) as bar:
        bar.begin(100_000)
        bar(3, None, dict.fromkeys(SHARES, 0.0))
        assert "pictures" not in shown()  # nothing was answered yet
        bar(2_000, 1234.5, SHARES)
        line = shown()
        for words in (who, "  2003/100000", "1234 pictures/s"):
            assert words in line
        assert re.search(r"[-\d]:[-\d]{2}:[-\d]{2}", line)
        assert ("pictures 10% prefill 30% decode 60%" in line) == (width - len(who) >= 80)
        assert ("prefill" in line) == ("decode 60%" in line)
        assert len(line.rstrip("\n")) <= width
