"""Progress bars on stderr, if that is a terminal."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from st3_cli.console import err

_BAR, _LEAST = 40, 5  # characters of a bar, at most and at least


def run_bar(total: int, live: Any) -> Any:
    """A bar on stderr while something is timed, if that is a terminal; yields `on_run`."""
    if live is None or not err.is_terminal:
        return nullcontext(lambda name, done: None)
    return _RunBar(total)


class _RunBar:
    """One tick a run. Rounds go on past the least number where a minimum time asks for it."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, -1
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(), console=err, transient=True, auto_refresh=False,
        )  # fmt: skip

    def __enter__(self) -> Any:
        self.bar.__enter__()
        self.task = self.bar.add_task("timing", total=self.total)
        return self

    def __call__(self, name: str, done: int) -> None:
        self.done += 1
        # Only between runs: a thread that draws would disturb them.
        self.bar.update(
            self.task, completed=min(self.done, self.total), description=name, refresh=True
        )

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)


def cell_bar() -> Any:
    """Cells done, and the time left; yields `on_cell` of `st3.sweep.run.run_cells`."""
    return _CellBar()


def batch_bar(who: str = "") -> Any:
    """Rows answered, pictures a second, time left, and where the time goes; whose, of several."""
    return _BatchBar(who)


def frame_bar() -> Any:
    """Frames decoded; yields `on_frame` of `st3.inference.videos.Video.take`."""
    return _FrameBar()


class _FrameBar:
    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), console=err,
            transient=True, disable=not err.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("frames", total=None)

    def __enter__(self) -> Any:
        self.bar.__enter__()
        return self

    def __call__(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)


class _CellBar:
    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal,
        )  # fmt: skip
        self.task: Any = None

    def __enter__(self) -> Any:
        self.bar.__enter__()
        self.task = self.bar.add_task("untrimmed answers", total=None)
        return self

    def __call__(self, done: int, total: int, spec: str) -> None:
        self.bar.update(self.task, completed=done, total=total, description=spec)

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)


class _BatchBar:
    """A narrow terminal leaves the shares out first: rows, rate and time left are what counts."""

    def __init__(self, who: str) -> None:
        self.who, self.column = who, BarColumn(_BAR)
        name = [TextColumn("{task.description}")] if who else []
        self.bar = Progress(
            *name, self.column, MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), TextColumn("{task.fields[shares]}"), console=err,
            transient=True, disable=not err.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task(who, total=None, rate="", shares="")
        self.total = 0

    def __enter__(self) -> Any:
        self.bar.__enter__()
        return self

    def begin(self, rows: int) -> None:
        """So many are to be answered."""
        self.total = rows
        self.bar.update(self.task, total=rows)

    def __call__(self, rows: int, rate: float | None, shares: dict[str, float]) -> None:
        """So many more are, so many pictures a second; None while nothing was answered."""
        speed = "" if rate is None else f"{rate:{'.3g' if rate < 1000 else '.0f'}} pictures/s"
        text = "" if rate is None else " ".join(f"{name} {x:.0%}" for name, x in shares.items())
        said = len(self.who) + 2 * len(str(self.total)) + 1 + len(speed) + len("0:00:00")
        left = err.width - said - (6 if self.who else 5)  # between columns, and at the end
        if left < _LEAST + len(text):
            text = ""
        self.column.bar_width = min(_BAR, max(_LEAST, left - len(text)))
        self.bar.update(self.task, advance=rows, rate=speed, shares=text)

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)
